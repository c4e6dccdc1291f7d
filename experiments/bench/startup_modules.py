"""What each verb loads before it answers, in how many seconds, and what a bootstrap peer holds once it is up.

    python -m experiments.bench.startup_modules
    python -m experiments.bench.startup_modules --bootstrap

Each command runs in an interpreter of its own. RSS is the Python process alone; the p2pd beside it is another line. For the
bootstrap peer the floor is shown as well: an interpreter that has imported torch, one that has imported hivemind's DHT, nothing
else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.bench.startup import memory_mb

PROGRAM = """
import sys
from gwtf_p2p.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code or 0
loaded = [name for name in ("torch", "transformers", "datasets", "hivemind") if name in sys.modules]
print("LOADED", code, len(sys.modules), ",".join(loaded) or "none")
"""


def main() -> int:
    """Prints a line for each command: exit code, heavy libraries, number of modules, seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bootstrap", action="store_true", help="start a bootstrap peer too, and weigh it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for words in commands(folder):
            began = time.perf_counter()
            code, count, loaded = loaded_by(words, folder)
            shown = " ".join(word.replace(name, "") for word in words)
            print(f"exit {code}  {count:>5} modules  heavy: {loaded:24} {time.perf_counter() - began:6.2f} s  gwtf {shown}")
        if args.bootstrap:
            weigh(folder)
    return 0


def commands(folder: Path) -> list[list[str]]:
    """Command lines that have to be answered at once."""
    run_file = folder / "bad.toml"
    run_file.write_text('run_id = "r"\nseeed = 1\n')
    identity = ["--identity_path", str(folder / "a.key")]
    good = f"/ip4/127.0.0.1/tcp/31337/p2p/12D3Koo{'W' * 45}"
    return [
        ["--help"],
        ["id", *identity],
        ["peer", "--help"],
        ["plan", str(folder / "none.json")],
        ["peer", "--run_id", "r", "--initial_peers", "/ip4/nowhere"],
        ["bootstrap", "--initial_peers", "/ip4/nowhere"],
        ["data", "--new_run", str(run_file), "--initial_peers", good],
    ]


def loaded_by(words: list[str], folder: Path) -> tuple[int, int, str]:
    """Exit code, number of modules, and the heavy libraries among them."""
    environment = {**os.environ, "GWTF_HOME": str(folder)}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    _, code, count, loaded = done.stdout.splitlines()[-1].split()
    return int(code), int(count), loaded


def weigh(folder: Path) -> None:
    """A bootstrap peer's own memory once it is up, its p2pd's, and what hivemind alone takes."""
    for what in ("import torch", "import hivemind.dht"):
        rss, pss = weight_of(what)
        print(f"RSS {rss:6.0f} MB  PSS {pss:6.0f} MB  an interpreter after `{what}`", flush=True)
    with bootstrap_peer(folder) as (process, started):
        for pid, name in ((process.pid, "gwtf bootstrap"), (started["p2pd"], "its p2pd")):
            rss, pss = memory_mb(pid)
            print(f"RSS {rss:6.0f} MB  PSS {pss:6.0f} MB  {name}")


def weight_of(statement: str) -> tuple[float, float]:
    """RSS and PSS in MB of an interpreter that has run one statement."""
    code = f"{statement}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        weight = memory_mb(process.pid)
        process.stdin.close()
    return weight


@contextmanager
def bootstrap_peer(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """One on loopback, and what it reported when it was up."""
    where = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--identity_path", str(folder / "bootstrap.key")]
    command = [sys.executable, "-m", "gwtf_p2p", "bootstrap", "--json", *where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, next(fields for line in process.stdout if (fields := json.loads(line))["name"] == "started")
        finally:
            process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
