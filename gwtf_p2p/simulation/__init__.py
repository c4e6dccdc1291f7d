"""Interpreter 1 of the protocol: virtual time. Imports the protocol and nothing else of the package.

It runs the same state machines as the live swarm, thousands of times faster, and decides nothing. Start with `run.simulate`.
Rooms, low to high: lines, measure < world, scenario < swarm < bounds < `run`, `negotiation_run`.
"""
