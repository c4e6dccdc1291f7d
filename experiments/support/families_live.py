"""A small model of any family, trained by a swarm of real peers on this machine: two stages, one data peer, text as bytes."""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig, RunFailed
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.model.split import PartSpec, boundary_of, default_layer_split

VOCABULARY = 320
"""Room for bytes and the end of a document."""

DEADLINE_S = 400.0
POLL_S = 0.05


def live_record(run: RunRecord, steps: int) -> RunRecord:
    """The run of `families.small_run` with a vocabulary for bytes, in two stages. Raises InputError."""
    layers = run.layer_split[-1][1]
    live = replace(
        run,
        run_id=RunId("families"),
        model_config=_for_bytes(run.model_config),
        layer_split=default_layer_split(layers, min(2, layers)),
        dataset=f"text:{__file__}",
        microbatches_per_data_peer=4,
        total_iterations=steps,
        checkpoint_every=steps,
    )
    return replace(live, boundary=boundary_of(PartSpec.of(live, 0)))


@dataclass(frozen=True, slots=True)
class LiveTraining:
    """What a swarm has done: committed steps, the mean losses of the first and of the last three, microbatches lost or counted
    twice, and what is wrong: empty when it did all steps, lost nothing, and its loss ends lower."""

    steps: int = 0
    losses: tuple[float, float] | None = None
    lost: int = 0
    wrong: str = ""


def trained_live(run: RunRecord, steps: int) -> LiveTraining:
    """A swarm of two stages and a data peer, from its start to the end of the run."""
    try:
        record = live_record(run, steps)
    except InputError as error:
        return LiveTraining(wrong=f"live: {error}")
    with tempfile.TemporaryDirectory(prefix="gwtf-families-") as folder:
        local = LocalRun(LocalRunConfig(1, 1), record, Path(folder))
        state = local.state
        end = time.monotonic() + DEADLINE_S
        try:
            local.begin()
            while not local.finished(steps):
                local.poll(POLL_S)
                if time.monotonic() > end:
                    return LiveTraining(state.iterations, wrong=f"live: {state.iterations} steps in {DEADLINE_S:.0f} s")
        except RunFailed as error:
            return LiveTraining(state.iterations, wrong=f"live: {' '.join(str(error).split())[:300]}")
        finally:
            local.stop()
        first, last = (sum(state.loss(i) for i in each) / 3 for each in (range(3), range(steps - 3, steps)))
        accounting = state.accounting()
        lost = accounting["lost"] + accounting["double_counted"]
        wrong = "" if math.isfinite(last) and last < first else f"live: its loss went from {first:.4f} to {last:.4f}"
        return LiveTraining(state.iterations, (first, last), lost, f"live: {accounting}" if lost else wrong)


def _for_bytes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every vocabulary in a config, and those of the configs in it, as large as it takes."""
    return {name: _large_enough(name, value) for name, value in config.items()}


def _large_enough(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _for_bytes(value)
    is_vocabulary = re.fullmatch(r"(?:.*_)?vocab_size.*", name) is not None and isinstance(value, int)
    return max(value, VOCABULARY) if is_vocabulary else value
