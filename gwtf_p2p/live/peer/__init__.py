"""One real peer: its start, its place in the run, its state machine driven by asyncio, its way out.

`driver.Driver` carries out effects and feeds events; the rest connects the other rooms. Start with `lifecycle.run_peer`, then
`running_peer` (serving), `wiring` (its parts) and `reporting` (what it tells). Others use `config.PeerConfig`, `run_peer` and
`local_swarm.LocalSwarm`, peers as child processes.
"""
