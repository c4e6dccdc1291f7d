"""A small live swarm for stories and soaks: started, watched until something is so, broken on purpose, compared at the end.

It is the demo's local run (`cli.local_run`) with waits that fail by name. Nothing here decides anything about the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.live.emulation.faults import Fault
from gwtf_p2p.protocol.wire.records import RunRecord

POLL_S = 0.05
DEADLINE_S = 180.0
"""How long a story waits for what must come. It is no measure of speed: the machine may be busy with something else."""

TOLERANCE = 1e-4

_SIZES = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": None}
_KEYS = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "eos_token_id": 256}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4}
MODELS: dict[str, str | dict[str, Any]] = {
    "tiny-llama": "tiny-llama",
    "mixture of experts": {"model_type": "mixtral", **_SIZES, **_KEYS, **_MOE},
    "hybrid": {
        "model_type": "jamba", **_SIZES, **_KEYS, **_MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": None,
    },
    "sliding window": {
        "model_type": "gemma2", **_SIZES, **_KEYS, "head_dim": 8, "sliding_window": 8, "pad_token_id": None,
    },
}  # fmt: skip
"""Of small runs by name: the demo's, and one for each kind of decoder layer that keeps or routes something."""


class StoryFailed(AssertionError):
    """What should have happened did not."""


@dataclass(frozen=True)
class SmallRun:
    """A run that takes seconds. `steps` 0: no end."""

    stages: int = 2
    peers_per_stage: int = 2
    data_peers: int = 1
    steps: int = 6
    microbatches: int = 4
    capacity: int = 4
    microbatch_size: int = 1
    sequence_length: int = 32
    learning_rate: float = 1.5e-3
    seed: int = 0
    checkpoint_every: int = 2
    max_skipped_steps: int = 10
    model: str = "tiny-llama"
    audit: float = 0.0
    replica_sync: int = 0

    def plain(self) -> dict[str, Any]:
        """As a run file says it."""
        return {
            "run_id": f"story-{self.seed}",
            "stages": self.stages,
            "peers_per_stage": self.peers_per_stage,
            "data_peers": self.data_peers,
            "model": MODELS[self.model],
            "dataset": "stdlib",
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "microbatch_size": self.microbatch_size,
            "microbatches_per_data_peer": self.microbatches,
            "total_iterations": self.steps,
            "checkpoint_every": self.checkpoint_every,
            "max_skipped_steps": self.max_skipped_steps,
            "audit": self.audit,
            "replica_sync": self.replica_sync,
            "optimizer": {"learning_rate": self.learning_rate, "warmup_iterations": 10},
        }

    def record(self) -> RunRecord:
        """Raises InputError."""
        plain = self.plain()
        return run_from_plain(plain, plain["run_id"])


@dataclass
class Swarm:
    """One life of a swarm in a folder; `heard` is everything that it has said."""

    small: SmallRun
    folder: Path
    faults: Mapping[str, tuple[Fault, ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        defaults = {"checkpoint_dir": self.folder / "checkpoints", "own_folders": True}
        config = LocalRunConfig(
            data_peers=self.small.data_peers,
            peers_per_stage=self.small.peers_per_stage,
            capacity=self.small.capacity,
            **{**defaults, **self.options},
        )
        self.run = LocalRun(config, self.small.record(), self.folder, self.faults)
        self.state = self.run.state
        self.heard: list[tuple[str, Mapping[str, Any]]] = []

    def __enter__(self) -> Swarm:
        self.run.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.run.stop()

    # ---- waiting

    def poll(self) -> None:
        self.heard += [(name, report) for name, report in self.run.poll(POLL_S) if report["name"] != "figures"]

    def until(self, what: str, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> float:
        """Seconds that it took. Raises StoryFailed."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > deadline_s:
                raise StoryFailed(f"not in {deadline_s:.0f} s: {what}; last said: {[r['name'] for _, r in self.heard[-8:]]}")
            self.poll()
        return time.monotonic() - began

    def until_step(self, step: int) -> None:
        self.until(f"step {step} is committed", lambda: self.state.iterations >= step)

    def to_the_end(self) -> None:
        self.until("everybody has done all steps", lambda: self.run.finished(self.small.steps))
        self.adds_up()

    def adds_up(self) -> None:
        """Nothing lost and nothing counted twice in any iteration so far. Raises StoryFailed."""
        self.until("every stage has told of the steps that data peers have told of", self._all_told)
        accounting = self.state.accounting()
        check(accounting["lost"] + accounting["double_counted"] == 0, f"the ledger adds up: {accounting}")

    def _all_told(self) -> bool:
        state = self.state
        return all((iteration, stage) in state.averaged for iteration in state.ended_at for stage in range(state.stages + 1))

    def said(self, report: str, by: str = "") -> list[Mapping[str, Any]]:
        return [r for name, r in self.heard if r["name"] == report and by in ("", name)]

    def wait_for(self, report: str, by: str = "") -> Mapping[str, Any]:
        self.until(f"{by or 'somebody'} says {report}", lambda: bool(self.said(report, by)))
        return self.said(report, by)[-1]

    @property
    def delay(self) -> str:
        """What a recovery took, for the table."""
        figures = self.state.recovery
        if figures.delay_s is None:
            return "no microbatch had to be handed on"
        return f"moved on after {1000 * figures.delay_s:.0f} ms, a hop {1000 * figures.hop_s:.0f} ms"


def check(holds: bool, what: str) -> None:
    """Raises StoryFailed unless it holds."""
    if not holds:
        raise StoryFailed(f"does not hold: {what}")


def weights(folder: Path, stage: int, step: int) -> dict[str, torch.Tensor]:
    """Of a stage after so many steps, from any peer's checkpoint of it. Raises StoryFailed."""
    name = f"stage_{stage:05d}/step_{step:08d}/model.safetensors"
    found = sorted(folder.glob(f"*/{name}"))
    check(bool(found), f"there is a checkpoint {name}")
    states = [load_file(path) for path in found]
    for path, state in zip(found, states, strict=True):
        equal = all(torch.equal(state[key], states[0][key]) for key in states[0])
        check(equal, f"{path} is equal to {found[0]}, to the bit")
    return states[0]


def check_equal_weights(ours: Path, theirs: Path, stages: int, step: int) -> float:
    """Largest difference over all stages. Raises StoryFailed above the tolerance."""
    largest = 0.0
    for stage in range(stages + 1):
        mine, expected = weights(ours, stage, step), weights(theirs, stage, step)
        largest = max(largest, *(float((mine[key] - expected[key]).abs().max()) for key in expected))
    check(largest <= TOLERANCE, f"weights are equal to the undisturbed run's within {TOLERANCE}: they differ by {largest:.2g}")
    return largest
