"""One iteration of a run as rows: who computed and who sent what, when; kept in a file for the report's Gantt charts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """`to` is empty for a computation. `about` is iteration/index of the microbatch where there is one."""

    peer: str
    what: str
    about: str
    began: float
    ended: float
    to: str = ""


def write_rows(path: Path, rows: Iterable[Row], window: tuple[float, float], time_scale: float) -> None:
    """What overlaps the window, in seconds of the scenario since its begin."""
    begin, end = window
    kept = [
        {
            **asdict(row),
            "began": (max(row.began, begin) - begin) / time_scale,
            "ended": (min(row.ended, end) - begin) / time_scale,
        }
        for row in rows
        if row.ended > begin and row.began < end
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": (end - begin) / time_scale, "rows": kept}), encoding="utf-8")


def read_rows(path: Path) -> tuple[float, list[Row]] | None:
    """Length of the iteration and its rows; None when the run left none."""
    if not path.exists():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    return told["seconds"], [Row(**row) for row in told["rows"]]
