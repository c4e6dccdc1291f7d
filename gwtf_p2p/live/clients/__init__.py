"""Those that ask a running swarm for something and take no part in it: they hold no stage, and nobody waits for them.

Each is what `run_peer` does once it has joined (`lifecycle.TakePart`). Start with `generate`.
"""
