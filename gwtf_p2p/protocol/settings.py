"""What is asked of every router's settings, so that nobody has to look into the settings of one router or another."""

from __future__ import annotations


class RouterSettings:
    """What a peer and a run must know of a router's settings, whichever router it is; each adds its own, as a frozen
    dataclass."""

    __slots__ = ()

    @property
    def official_failures(self) -> bool:
        """Failures are taken as the official SWARM code takes them (`swarm_failures`)."""
        return False

    @property
    def queues_inputs(self) -> bool:
        """Stage peers take inputs that have to wait for a slot."""
        return False

    @property
    def moves(self) -> bool:
        """Stage peers change to the stage that is the bottleneck (`rebalancing`)."""
        return False

    @property
    def restarts_whole(self) -> bool:
        """A crash on a microbatch's way back has all of it begun again (simulated runs alone)."""
        return False

    @property
    def rebalance_period_s(self) -> float:
        """Between two moves by SWARM's rule (`swarm_rebalancing`), in seconds; 0 for never."""
        return 0.0
