"""How long a run lasts and what is kept of it: the part of a run's record that the life of each of its peers depends on."""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.replica_sync import ReplicaSync


@dataclass(frozen=True, slots=True)
class RunLife:
    """`total_iterations` 0: without end. `checkpoint_every`: the run's interval, equal for all its peers, since a version of
    the weights is worth something only if every stage has it; 0: this peer keeps no checkpoints. `own_every`: this peer's
    additional ones, 0 for none. `stays`: it goes on serving when the run is complete. `max_skipped_steps`: after so many in a
    row whose gradient was not finite the run pauses; 0: never. `rebuilds`: when it leads, it has stages that are lost rebuilt.
    `patience`: so many evaluations in a row without a lower loss end the run; 0: none do. `best_of`: of every so many
    iterations the weights may turn out to be the best, and are kept until that is known; 0: none are. `thin`: the first stage
    has the embedding, the last one the head, and neither is like a neighbour. `ahead`: so many iterations are computed beside
    the one that is being closed (`delay_optimizer_step`: 1). `replica_sync`: iterations between two averages of a stage's
    copies, 0: these never differ.
    """

    total_iterations: int = 0
    checkpoint_every: int = 0
    own_every: int = 0
    stays: bool = False
    max_skipped_steps: int = 0
    rebuilds: bool = False
    patience: int = 0
    best_of: int = 0
    thin: bool = False
    ahead: int = 0
    replica_sync: int = 0

    @property
    def sync(self) -> ReplicaSync:
        """When the copies of a stage are averaged."""
        return ReplicaSync(self.replica_sync, self.total_iterations)

    @property
    def may_end(self) -> bool:
        """Whether this run has an end at all."""
        return self.total_iterations > 0 or self.patience > 0

    @property
    def keeps(self) -> bool:
        """Whether this peer has a place for checkpoints."""
        return self.checkpoint_every > 0

    def is_open(self, iteration: int, version: int) -> bool:
        """Whether microbatches of this iteration are computed while that of `version` is closed. Those of an iteration are
        computed with the weights of as many versions before it (the first ones with the first)."""
        return version <= iteration <= version + self.ahead

    def is_over(self, version: int) -> bool:
        """Whether these are the weights after the last iteration that is planned."""
        return 0 < self.total_iterations <= version

    def is_due(self, version: int) -> bool:
        """Whether a checkpoint of these weights is kept as a matter of course: at an interval's end, of the last, and of those
        that may be the best."""
        intervals = [every for every in (self.checkpoint_every, self.own_every, self.best_of) if every > 0]
        return self.is_over(version) or any(version % every == 0 for every in intervals)

    def average_key(self, name: str, iteration: int) -> tuple[str, ...]:
        """Under which an average of this iteration is timed: one of the copies takes as long as thousands of the others."""
        return (name, "copies") if self.sync.averages_copies(iteration) else (name,)
