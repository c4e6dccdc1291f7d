"""Where a comparison ran: commit, versions, machine; printed in its report."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gwtf_p2p.version import VERSION

PACKAGES = ("torch", "transformers", "hivemind", "numpy", "scipy", "uvloop")


def commit() -> str:
    """Of the source tree, marked + when the package differs from it; the version where the package is installed without it."""
    package = Path(__file__).parents[2]
    try:
        head = _git(package, "rev-parse", "--short", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return f"version {VERSION}"
    return head + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    told = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return told.stdout.strip()


def environment() -> dict[str, str]:
    """Versions of what the figures depend on, and the machine."""
    found = {"gwtf_p2p": VERSION, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {**found, "cores": str(os.cpu_count()), "memory": f"{pages / 2**30:.0f} GiB"}
