"""Which room may import which, that nothing imports in a circle, and that importing the package does no work.

A room is a folder of the package; the modules that lie directly in `protocol` count as rooms of their own. A rule names
everything that a room may import of its own package; what another package may import of it is said by `PACKAGES`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gwtf_p2p"
HEAVY = {"torch", "transformers", "datasets", "hivemind"}
WEB = {"starlette", "uvicorn", "jinja2", "segno"}
"""What the monitor's page is served with: an extra, which no peer needs."""

# Folder -> what of the package and which of the heavy libraries it may import.
PACKAGES: dict[str, set[str]] = {
    "protocol": {"protocol"},
    "simulation": {"simulation", "protocol"},
    "drawing": {"drawing", "protocol"},
    "training": {"training", "protocol", "torch", "transformers", "datasets", "jinja2"},
    "live": {"version", "live", "protocol", "training", "hivemind", "torch", "transformers"},
    "monitor": {"monitor", "drawing", "protocol", "live", "version", *WEB},
    "ab": {"ab", "drawing", "live", "training", "simulation", "protocol", "monitor", "version", "torch"},
    "cli": {
        "cli",
        "drawing",
        "ab",
        "monitor",
        "live",
        "training",
        "simulation",
        "protocol",
        "version",
        "torch",
        "transformers",
        "hivemind",
    },
}
FORBIDDEN_IN_PURE_CODE = {"asyncio", "socket", "time", "threading", "subprocess", "multiprocessing", "datetime", "secrets"}

_LOW = "limits remembered ids errors settings negotiation wire view events effects core"
# Package -> room -> the rooms of the same package that it may import, besides itself. Low rooms come first.
ROOMS: dict[str, dict[str, str]] = {
    "protocol": {
        "limits": "",
        "elastic_shares": "",
        "replica_sync": "",
        "remembered": "",
        "ids": "limits",
        "errors": "",
        "settings": "ids errors",
        "wire": "limits elastic_shares replica_sync ids errors",
        "negotiation": "limits ids errors settings wire",
        "view": "limits remembered ids errors wire",
        "events": "limits ids errors wire view",
        "effects": "limits ids errors wire view events",
        "core": "limits replica_sync ids errors settings negotiation wire view events effects",
        "exchange": "limits ids errors wire",
        "flow": "limits ids errors wire view",
        "schedule": "limits remembered ids errors wire view",
        "routers": f"{_LOW} flow schedule",
        "transfer": _LOW,
        "averages": "limits ids errors",
        "commit": f"{_LOW} transfer averages",
        "membership": f"{_LOW} transfer commit",
        "audit": f"{_LOW} transfer commit",
        "trust": f"{_LOW} transfer commit membership audit",
        "peer": f"{_LOW} transfer averages commit membership routers audit trust",
        "stall": "limits ids errors wire view peer",
        "replay": f"{_LOW} routers peer",
    },
    "live": {
        "libp2p": "",
        "lives": "libp2p",
        "discovery": "libp2p",
        "direct": "libp2p",
        "rpc": "libp2p direct",
        "exchange": "libp2p discovery rpc",
        "nat": "libp2p discovery rpc",
        "compute": "libp2p discovery rpc nat",
        "state": "libp2p discovery rpc nat compute",
        "text": "libp2p discovery rpc nat compute state",
        "measure": "libp2p discovery rpc nat compute state text",
        "emulation": "libp2p discovery rpc nat measure compute state",
        "peer": "libp2p lives direct discovery rpc exchange nat text measure compute state emulation",
        "clients": "libp2p discovery rpc exchange nat text measure compute state emulation peer",
        "doctor": "libp2p discovery rpc nat measure",
    },
    "simulation": {
        "lines": "",
        "measure": "lines",
        "scenario": "lines",
        "world": "lines measure scenario",
        "swarm": "lines measure scenario world",
        "bounds": "lines scenario swarm",
        "": "lines measure scenario world swarm bounds",
    },
    "training": {
        "data": "",
        "model": "data",
        "compute": "model",
        "codecs": "compute",
        "state": "codecs compute data model",
        "": "codecs compute data model state",
    },
    "ab": {"trials": "", "live": "trials", "report": "trials"},
    "cli": {
        "flags": "",
        "shared": "flags",
        "process": "",
        "": "shared flags process",
        "verbs": "shared flags process",
        "local": "shared flags",
        "clients": "shared flags",
    },
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in the file, also for type checkers alone."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            assert not statement.level, f"{path}: relative imports hide which room is meant"
            for alias in statement.names:
                whole = f"{statement.module}.{alias.name}"
                yield whole if whole in MODULES else statement.module


GRAPH = {name: {target for target in imports(path) if target in MODULES} - {name} for name, path in MODULES.items()}


def room_of(module: str) -> tuple[str, str]:
    """Package and room of a module; the room of what lies directly in a package is '', in `protocol` its own name."""
    package, *below = module.split(".")[1:]
    if package == "protocol" and below:
        return package, below[0]
    is_room = len(below) > 1 or (below and MODULES[module].name == "__init__.py")
    return package, below[0] if is_room else ""


def imported(path: Path) -> set[str]:
    """Top names that a module imports; for our own package the folder below it."""
    return {n.split(".")[1] if n.startswith("gwtf_p2p.") else n.split(".")[0] for n in imports(path)}


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("folder", sorted(PACKAGES))
def test_folders_import_only_what_they_may(folder: str) -> None:
    ours = {p.name for p in PACKAGE.iterdir() if p.is_dir()} | {"version"}
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        wrong = (imported(path) & (ours | HEAVY | WEB)) - PACKAGES[folder]
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_only_the_page_imports_the_web_server() -> None:
    page = PACKAGE / "monitor" / "page"
    for path in sorted((PACKAGE / "monitor").rglob("*.py")):
        wrong = imported(path) & WEB
        assert not wrong or page in path.parents, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_rooms_import_only_lower_ones(package: str) -> None:
    for module, targets in GRAPH.items():
        if module.count(".") < 2 or room_of(module)[0] != package:
            continue
        room = room_of(module)[1]
        assert room in ROOMS[package], f"{module}: say in this test what the room {room!r} may import"
        may = {room, *ROOMS[package][room].split()}
        inside = [target for target in targets if target.count(".") > 1 and room_of(target)[0] == package]
        wrong = [target for target in inside if room_of(target)[1] not in may]
        assert not wrong, f"{module} imports {wrong}"


def test_the_rules_are_in_order_from_low_to_high() -> None:
    for package, rules in ROOMS.items():
        order = list(rules)
        for room, may in rules.items():
            above = [other for other in may.split() if order.index(other) >= order.index(room)]
            assert not above, f"{package}: {room} may import {above}, which come after it"


def test_no_two_rooms_import_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        if module.count(".") > 1:
            here = "/".join(room_of(module))
            inside = {"/".join(room_of(target)) for target in targets if target.count(".") > 1}
            rooms.setdefault(here, set()).update(inside - {here})
    assert circle_in(rooms) == [], circle_in(rooms)


def test_no_two_modules_import_each_other() -> None:
    assert circle_in(GRAPH) == []


def test_every_room_has_a_face() -> None:
    for path in MODULES.values():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(PACKAGE)} says nothing"


@pytest.mark.parametrize("folder", ["protocol", "simulation"])
def test_pure_code_has_no_clock_and_no_io(folder: str) -> None:
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        wrong = imported(path) & FORBIDDEN_IN_PURE_CODE
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def loaded_by(code: str) -> list[str]:
    """The heavy libraries that a fresh interpreter has loaded after `code`."""
    code = f"import sys\n{code}\nprint(*sorted(set(sys.modules) & {HEAVY | WEB!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_faces_and_the_core_load_nothing_heavy() -> None:
    faces = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    core = ["gwtf_p2p.simulation.run", "gwtf_p2p.protocol.peer.data_peer", "gwtf_p2p.cli.main"]
    settings = ["gwtf_p2p.live.libp2p.options", "gwtf_p2p.live.libp2p.identity", "gwtf_p2p.live.state.options"]
    assert loaded_by("import " + ", ".join([*faces, *core, *settings, "gwtf_p2p.training.compute.config"])) == []
