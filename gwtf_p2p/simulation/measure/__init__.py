"""What a run was: microbatches, seconds, waste, recoveries, and the trace of its events.

It listens and changes nothing. Start with `metrics.Metrics`; `trace.Trace` writes the events and hashes them, so that two runs
can be compared.
"""
