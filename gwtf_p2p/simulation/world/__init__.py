"""The simulated swarm: peers, a network, a directory of records, faults; it carries out effects and reports what came of them.

It decides nothing, and its invariants watch the protocol's promises. Start with `world.World`; `population` is how events
reach peers, `pushes` how tensors do. `small_swarm` is a swarm for tests, `faults` are scripts as data, `invariants` what must
hold.
"""
