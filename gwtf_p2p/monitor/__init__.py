"""Read-only observers of a run: terminal, web page, metrics.

They read records, as any peer does, or the reports of local peers, and never take part. Start with `observer.observe` and
`swarm_state.SwarmState`, what is known of a swarm; `run_state` is the same from the reports of a local run.
"""
