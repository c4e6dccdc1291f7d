"""What `gwtf top` shows of a run, checked: a monitor on another machine may answer anything.

The fields are those of `/api/v1/runs/RUN/state` (`monitor/page/static/schema.json`); what is not shown is not read.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_PEERS, MOST_LINES, MOST_POINTS = 5000, 500, 5000
Word = Annotated[str, Field(max_length=200)]
Line = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class WrongAnswer(Exception):
    """The other side is no monitor, or speaks another version of the API; the message says what is wrong."""


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Finding(_Checked):
    """One sentence on how the run is. `level`: alert, notice or ok."""

    level: Word
    text: Line


class Change(_Checked):
    """Something that happened, at seconds since the epoch."""

    at: Annotated[float, Field(ge=0, lt=1e11)]
    text: Line


class Peer(_Checked):
    """A row of the table."""

    peer: Word
    name: Word
    role: Word
    stage: Count
    state: Word
    is_silent: bool
    path: Word
    occupancy: Count
    capacity: Count
    behind: Count
    microbatches_per_s: Number | None

    @property
    def is_well(self) -> bool:
        """Does it take microbatches?"""
        return self.state == "ONLINE" and not self.is_silent


class Shown(_Checked):
    """A run as it is now."""

    run_id: Word
    router: Word
    model: Line
    stages: Count
    iterations: Count
    total_iterations: Count
    loss: Number | None
    held_out_loss: Number | None
    tokens_per_second: Number
    seconds_left: Annotated[float, Field(ge=0, lt=1e11)] | None
    seen_at: Annotated[float, Field(ge=0, lt=1e11)]
    peers_seen: Count
    peers_online: Count
    findings: Annotated[list[Finding], Field(max_length=MOST_LINES)]
    peers: Annotated[list[Peer], Field(max_length=MOST_PEERS)]
    changes: Annotated[list[Change], Field(max_length=MOST_LINES)]


class _Run(_Checked):
    run_id: Word


class _Runs(_Checked):
    runs: Annotated[list[_Run], Field(max_length=MOST_LINES)]


class _Series(_Checked):
    points: Annotated[list[list[Number | None]], Field(max_length=MOST_POINTS)]


def shown(plain: Any) -> Shown:
    """Raises WrongAnswer."""
    try:
        return Shown.model_validate(plain)
    except ValidationError as error:
        raise WrongAnswer(_first(error)) from error


def run_ids(plain: Any) -> list[str]:
    """Of `/api/v1/runs`. Raises WrongAnswer."""
    try:
        return [run.run_id for run in _Runs.model_validate(plain).runs]
    except ValidationError as error:
        raise WrongAnswer(_first(error)) from error


def losses(plain: Any) -> list[float]:
    """Of `/api/v1/runs/RUN/history`: the second number of each point. Raises WrongAnswer."""
    try:
        points = _Series.model_validate(plain).points
    except ValidationError as error:
        raise WrongAnswer(_first(error)) from error
    return [point[1] for point in points if len(point) > 1 and point[1] is not None]


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"]) or "the answer"
    return f"{where}: {found['msg']}"
