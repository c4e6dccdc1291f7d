"""What the doctor's report is made of: lines, each with a status and a remedy, and roles."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MB = 1e6


class Status(Enum):
    GOOD = "good"
    REMARK = "remark"
    """Works, but not well."""
    BAD = "bad"
    UNKNOWN = "unknown"


class RoleVerdict(Enum):
    FIT = "fit"
    UNFIT = "unfit"
    UNKNOWN = "unknown"


BOOTSTRAP, STAGE, DATA = ROLES = ("bootstrap", "stage", "data")
TRAINING = (STAGE, DATA)


@dataclass(frozen=True, slots=True)
class Line:
    """`against`: roles that this line is an obstacle to (BAD), or leaves open (UNKNOWN). `values` are for programs."""

    check: str
    status: Status
    text: str
    remedy: str = ""
    against: tuple[str, ...] = ()
    is_network: bool = False
    values: dict[str, Any] = field(default_factory=dict)
