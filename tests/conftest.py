"""The loop of all async tests, and how Hypothesis searches.

The same examples in every run of the tests; new ones when somebody asks for them.

`make test` must not be a lottery, so the default profile derives its examples from the test alone. `make explore` sets
HYPOTHESIS_PROFILE=explore: fresh random seeds, and more examples (`tests/exploring.py`). What it finds becomes an `@example` of
the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.exploring import PROFILE

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(PROFILE)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The loop that peers run on. asyncio's own may close before it has heard of the end of a p2pd, and says so at a garbage
    collection in whatever test runs then."""
    return {"uvloop": uvloop.new_event_loop}
