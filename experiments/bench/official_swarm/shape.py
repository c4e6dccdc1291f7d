"""What both sides train: `gwtf demo`'s model and batches, in three stages with two peers each, start weights of one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.wire.records import RunRecord


@dataclass(frozen=True)
class Shape:
    """`clients`: data peers here, trainers there; each has `microbatches` of an optimizer step. A stage peer here holds
    `in_flight` at once, and a trainer there has so many under way. `warm_up` and `timed` count over all clients."""

    stages: int = 3
    peers_per_stage: int = 2
    clients: int = 2
    microbatches: int = 16
    in_flight: int = 4
    microbatch_size: int = 4
    sequence_length: int = 128
    seed: int = 0
    thin: bool = True
    warm_up: int = 64
    timed: int = 224
    idle_s: float = 20.0

    @property
    def per_step(self) -> int:
        """Microbatches of an optimizer step."""
        return self.clients * self.microbatches

    @property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps that warm up, and that are timed."""
        return -(-self.warm_up // self.per_step), -(-self.timed // self.per_step)

    def plain(self) -> dict[str, Any]:
        """As a run file says it."""
        return {
            "run_id": f"beside-official-{self.seed}",
            "stages": self.stages,
            "peers_per_stage": self.peers_per_stage,
            "data_peers": self.clients,
            "model": "tiny-llama",
            "dataset": "stdlib",
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "microbatch_size": self.microbatch_size,
            "microbatches_per_data_peer": self.microbatches,
            "thin_data_peers": self.thin,
            "total_iterations": sum(self.steps),
            "checkpoint_every": 100_000,
        }

    def record(self) -> RunRecord:
        """Checked once in a process, which takes seconds. Raises InputError."""
        return _checked(self)


@cache
def _checked(shape: Shape) -> RunRecord:
    return run_from_plain(shape.plain(), "beside-official")
