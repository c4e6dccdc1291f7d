"""Which folder may import which, and that importing the package does no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gwtf_p2p"
HEAVY = {"torch", "transformers", "datasets", "hivemind"}
WEB = {"starlette", "uvicorn", "jinja2", "segno"}
"""What the monitor's page is served with: an extra, which no peer needs."""

# Folder -> what of the package and which of the heavy libraries it may import.
ALLOWED: dict[str, set[str]] = {
    "protocol": {"protocol"},
    "simulation": {"simulation", "protocol"},
    "training": {"training", "protocol", "torch", "transformers", "datasets", "jinja2"},
    "live": {"version", "live", "protocol", "training", "hivemind", "torch", "transformers"},
    "monitor": {"monitor", "protocol", "live", "version", *WEB},
    "ab": {"ab", "live", "training", "simulation", "protocol", "monitor", "version", "torch"},
    "cli": {
        "cli",
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


def imported(path: Path) -> set[str]:
    """Top names that a module imports; for our own package the folder below it."""
    names: set[str] = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names.add(statement.module)
    return {n.split(".")[1] if n.startswith("gwtf_p2p.") else n.split(".")[0] for n in names}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_only_what_they_may(folder: str) -> None:
    ours = {p.name for p in PACKAGE.iterdir() if p.is_dir()} | {"version"}
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        wrong = (imported(path) & (ours | HEAVY | WEB)) - ALLOWED[folder]
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_only_the_page_imports_the_web_server() -> None:
    page = PACKAGE / "monitor" / "page"
    for path in sorted((PACKAGE / "monitor").rglob("*.py")):
        wrong = imported(path) & WEB
        assert not wrong or page in path.parents, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


@pytest.mark.parametrize("folder", ["protocol", "simulation"])
def test_pure_code_has_no_clock_and_no_io(folder: str) -> None:
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        wrong = imported(path) & FORBIDDEN_IN_PURE_CODE
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", ["gwtf_p2p", "gwtf_p2p.simulation", "gwtf_p2p.protocol.peer.data_peer", "gwtf_p2p.cli.main"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY | WEB!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
