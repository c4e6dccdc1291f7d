"""The single process that live runs are compared with: its losses, per settings and seed, kept beside the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gwtf_p2p.ab.trials.task import RunTask

FILE = "control.json"


def add_controls(out: Path, tasks: Sequence[RunTask]) -> None:
    """Train what is not there yet: a model as small as that takes seconds."""
    known: dict[str, Sequence[float]] = dict(read_controls(out))
    missing = {key: task for task in tasks if (key := f"{task.settings}/{task.seed}") not in known}
    if not missing:
        return
    from gwtf_p2p.training.control import control_losses

    torch.set_num_threads(1)
    for key, task in missing.items():
        record = replace(task.record, seed=task.seed)
        known[key] = control_losses(record, task.scenario.iterations, record.data_peers)
        (out / FILE).write_text(json.dumps(known), encoding="utf-8")


def read_controls(out: Path) -> dict[str, tuple[float, ...]]:
    """Losses of each iteration by `settings/seed`."""
    path = out / FILE
    if not path.exists():
        return {}
    return {key: tuple(losses) for key, losses in json.loads(path.read_text(encoding="utf-8")).items()}
