"""Does a stage fit into the memory that a volunteer gives? Told before anything is allocated.

What cannot be done without is counted first: the process, the stage's state, what a step and a snapshot of it need beside it,
and one microbatch. What is left is room for activations of more microbatches, up to the capacity, and for what is kept of
microbatches until the iteration commits.
"""

from __future__ import annotations

from dataclasses import dataclass

PROCESS_BYTES = 450_000_000
"""A peer that holds nothing yet: torch, transformers and their threads (measured on Linux: 0.35 to 0.48 GB)."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What one stage takes, in bytes. `state`: weights, gradient sum, moments. `beside`: gradients of one backward or of an
    average, and a snapshot of the state for its copies. `activations`: what one microbatch keeps between its passes, or with
    `recomputes` during its backward alone: those of one at a time. `microbatch`: what is kept of one until the
    iteration commits."""

    stage: int
    state: int
    beside: int
    activations: int
    microbatch: int
    recomputes: bool = False

    @property
    def least(self) -> int:
        """With less there is no taking part."""
        return self.needed(1)

    def needed(self, capacity: int) -> int:
        """With the activations, and the tensors, of so many microbatches at once."""
        base = PROCESS_BYTES + self.state + self.beside
        return base + self.activations_of(capacity) + capacity * self.microbatch

    def activations_of(self, capacity: int) -> int:
        """Of so many microbatches at once."""
        return self.activations * (min(capacity, 1) if self.recomputes else capacity)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a stage is held within the limit: activations of so many microbatches, and at most so many bytes of what is kept."""

    capacity: int
    kept_bytes: int


def memory_plan(stage: StageMemory, capacity: int, allowed: int, most_kept: int = 0) -> MemoryPlan | None:
    """None if the stage does not fit into `allowed` bytes. `most_kept` 0: no limit of its own on what is kept."""
    if allowed < stage.least:
        return None
    each = stage.needed(2) - stage.least
    held = min(capacity, 1 + (allowed - stage.least) // max(1, each))
    left = allowed - stage.needed(0) - stage.activations_of(held)
    return MemoryPlan(held, min(left, most_kept) if most_kept else left)
