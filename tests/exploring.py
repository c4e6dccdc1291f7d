"""How many examples a property is tried with: the usual number, or `MORE` times as many in `make explore`."""

from __future__ import annotations

import os

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
MORE = 20


def examples(usual: int) -> settings:
    """The settings of one property."""
    return settings(max_examples=usual * (MORE if PROFILE == "explore" else 1), deadline=None)
