"""Every decision of the swarm, in pure code: no I/O, no clock, no global RNG; time and RNG are arguments.

A peer is a state machine: `handle(event, now)` in `peer/` returns effects, which the simulator and the live swarm carry out.
Start with `events` and `effects`, then `core/lifecycle`, the life of one microbatch. Rooms, low to high: limits, ids, errors <
wire < negotiation, view < events, effects < core < transfer < commit < membership < peer; flow and schedule stand on view,
routers on all of them but peer. Nothing here knows of `simulation`, `live` or torch.
"""
