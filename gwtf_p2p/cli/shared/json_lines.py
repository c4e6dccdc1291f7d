"""JSON as others can read it: what is not finite (a loss that has blown up) is null, since JSON has no word for it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


def to_json(value: Any) -> str:
    """One line. Floats that are not finite become null, wherever they are."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def note(text: str) -> None:
    """What is being done, for a person who waits at a terminal; programs that read the output are told results alone."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
