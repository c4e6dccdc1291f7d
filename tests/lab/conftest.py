"""Labs for tests. Where there can be none, every test marked `netns` is skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from experiments.lab.lab import Lab, why_unavailable
from experiments.lab.topology import load_topology

reason = cache(why_unavailable)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("netns") and reason():
            item.add_marker(pytest.mark.skip(reason=f"no lab: {reason()}"))


@pytest.fixture(scope="module")
def nat_kinds() -> Iterator[Lab]:
    """Hosts `first` and `second` on the internet, and one behind each kind of router."""
    with Lab(load_topology("nat_kinds")) as lab:
        yield lab
