"""Peers of a small run in processes of their own, as in the tests of a run's life."""

from tests.live.peer.test_life import start, swarm

__all__ = ["start", "swarm"]
