"""A process that holds no tensors runs hivemind's DHT without torch, by hivemind's own modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gwtf_p2p.live.libp2p.light_import import PACKAGES, origins_of

DHT_WITHOUT_TORCH = """
import sys
from gwtf_p2p.live.libp2p.light_import import without_torch
without_torch()
import hivemind
import gwtf_p2p.live.peer.lifecycle, gwtf_p2p.monitor.observer
assert "torch" not in sys.modules
assert hivemind.dht.DHTNode is sys.modules["hivemind.dht.node"].DHTNode
assert hivemind.__version__
try:
    hivemind.no_such_name
except AttributeError as error:
    print(error)
"""

EVERY_NAME = """
import sys
from gwtf_p2p.live.libp2p.light_import import PACKAGES, origins_of, without_torch
from pathlib import Path
without_torch()
for package in PACKAGES:
    module = sys.modules[package]
    for name in origins_of(Path(module.__file__).read_text("utf-8"), package):
        assert getattr(module, name) is not None
print(len(PACKAGES), "torch" in sys.modules)
"""


def _output_of(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_a_dht_node_needs_no_torch_and_a_wrong_name_stays_wrong() -> None:
    assert _output_of(DHT_WITHOUT_TORCH) == "module 'hivemind' has no attribute 'no_such_name'"


def test_every_name_of_the_packages_is_found_when_it_is_asked_for() -> None:
    assert _output_of(EVERY_NAME) == f"{len(PACKAGES)} True"


def test_it_changes_nothing_once_hivemind_is_there() -> None:
    program = "import hivemind; from gwtf_p2p.live.libp2p.light_import import without_torch as w; w(); print(type(hivemind))"
    assert _output_of(program) == "<class 'module'>"


@pytest.mark.parametrize(
    ("line", "origins"),
    [
        ("from a.b import c as d, e", {"d": "a.b", "e": "a.b"}),
        ("from .near import f", {"f": "package.near"}),
        ("VERSION = '1'", {}),
    ],
)
def test_names_lead_to_the_modules_that_define_them(line: str, origins: dict[str, str]) -> None:
    assert origins_of(line, "package") == origins
