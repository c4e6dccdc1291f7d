"""What several verbs have in common: the flags of peers, run files, local runs with churn, watching.

Start with `peer_flags` (flags to options, and `serve`) and `run_file`; `local_run.LocalRun` is a swarm on this machine.
"""
