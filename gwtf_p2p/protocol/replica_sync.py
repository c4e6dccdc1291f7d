"""Copies of a stage that are averaged every so many iterations, instead of their gradients in each.

**Local** iterations: each peer steps by the gradient of its own microbatches, so the copies of a stage differ from each other
until the next average; one that had no microbatch keeps its weights. What a group averages of them is one number, the norm by
which all clip. Each `every`-th iteration, and the run's last, ends with an **average of the copies**: weights and what the
optimizer keeps, as well as the iteration's gradients, weighted by its microbatches; then all step alike, and are equal to the
bit again. The versions after such a step, and version 0, are **whole**: they alone are checkpointed, and gone back to.

The averages are local SGD's (Stich, arXiv 1805.09767) with the optimizer's moments averaged too. In float32: a weight, unlike
a gradient, does not bear the rounding of a smaller format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_EVERY = 10_000


@dataclass(frozen=True, slots=True)
class ReplicaSync:
    """`every` 0: each iteration averages gradients, and copies never differ. `total_iterations` 0: without end."""

    every: int = 0
    total_iterations: int = 0

    @property
    def is_on(self) -> bool:
        """Copies of a stage may differ."""
        return self.every > 0

    def averages_copies(self, iteration: int) -> bool:
        """This iteration ends with an average of the copies."""
        return self.is_on and self.is_whole(iteration + 1)

    def is_local(self, iteration: int) -> bool:
        """In this iteration each peer steps by its own gradient."""
        return self.is_on and not self.averages_copies(iteration)

    def is_whole(self, version: int) -> bool:
        """The copies of a stage that have these weights are equal."""
        return not self.is_on or version % self.every == 0 or version == self.total_iterations

    def since_whole(self, version: int) -> int:
        """Iterations between the last whole version and this one, whose own steps a peer has to itself."""
        return 0 if self.is_whole(version) else version % self.every


def what_holds(every: int) -> str:
    """For people: what copies of a stage are to each other in such a run."""
    return (
        f"copies of a stage are averaged every {every} iterations and differ in between: one that is lost loses what it has "
        f"learned since, from its own microbatches of up to {every - 1} iterations; what is redone is redone with other weights"
    )


def wrong_in(every: int, needs: Sequence[tuple[str, bool, str]], intervals: Mapping[str, int]) -> tuple[str, str] | None:
    """Which of a run's settings does not go with it, and what was expected there. `needs`: fields, whether they are right, and
    what they have to be; `intervals`: iterations between versions that have to be whole (0: there are none)."""
    if every == 1:
        return "replica_sync", "expected 0 (each iteration averages gradients), or at least 2"
    if not every:
        return None
    for field, is_right, expected in needs:
        if not is_right:
            return field, f"expected {expected} with replica_sync = {every}"
    for field, interval in intervals.items():
        if interval % every:
            return field, f"expected a multiple of replica_sync = {every}, as copies differ in between, got {interval}"
    return None
