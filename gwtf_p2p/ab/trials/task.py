"""One run that is to be done: which arm, in which scenario, with which seed, where."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gwtf_p2p.ab.trials.arms import parse_arm
from gwtf_p2p.ab.trials.result import RunKey
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.simulation.scenario.scenario import Scenario
from gwtf_p2p.simulation.swarm.build import Arm


def slug_of(key: RunKey) -> str:
    """A run's name in file names."""
    return in_file_names(f"{key.scenario}-{key.arm}-{key.seed}-{key.backend}")


def in_file_names(name: str) -> str:
    """As a part of one, whatever arms are called."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "_", name)


@dataclass(frozen=True)
class RunTask:
    """`record`: what a live run trains; its seed is the task's. `emulate_links`: see `live/emulation`."""

    scenario: Scenario
    arm_text: str
    seed: int
    backend: str
    time_scale: float
    record: RunRecord
    out: Path
    commit: str
    emulate_links: bool = True

    @property
    def key(self) -> RunKey:
        return RunKey(self.scenario.name, self.seed, self.arm_text, self.backend)

    @property
    def arm(self) -> Arm:
        return parse_arm(self.arm_text, self.record.recovery, base=self.record.wire)

    @property
    def tokens_per_microbatch(self) -> int:
        return self.record.microbatch_size * self.record.sequence_length

    def head(self) -> dict[str, Any]:
        """The fields of a `RunResult` that say what was run."""
        return {
            **asdict(self.key),
            "time_scale": self.time_scale,
            "settings": self.settings,
            "commit": self.commit,
            "churn": self.scenario.churn.crash_probability,
            "warmup_iterations": self.scenario.warmup_iterations,
            "microbatches_per_iteration": self.scenario.data_peers * self.scenario.model.microbatches_per_data_peer,
            "tokens_per_microbatch": self.tokens_per_microbatch,
        }

    @property
    def slug(self) -> str:
        """The run's name in file names."""
        return slug_of(self.key)

    @property
    def gantt_path(self) -> Path:
        return self.out / "gantt" / f"{self.slug}.json"

    @property
    def settings(self) -> str:
        """Names everything besides the key that a result depends on; a run with other settings is done again."""
        record = {k: v for k, v in asdict(self.record).items() if k not in ("run_id", "router", "seed")}
        told = (repr(self.scenario), sorted(record.items(), key=str), self.time_scale, self.emulate_links)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]
