"""A real swarm, its monitor and a real browser: a peer is killed, and the page shows it long before its record expires."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.support.live_swarm import SmallRun, Swarm
from gwtf_p2p.cli.shared.local_run import RunFailed
from tests.monitor.page.chromium import DEADLINE_S, Chromium, needs_browser

pytestmark = [pytest.mark.live, pytest.mark.browser, needs_browser]

SCREENSHOTS = os.environ.get("GWTF_SCREENSHOTS", "")


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Fails by name when it does not come about."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        threading.Event().wait(0.05)


@contextlib.contextmanager
def heard(swarm: Swarm) -> Iterator[None]:
    """Hears the peers all the while: one whose reports nobody takes stops, and a browser takes its time."""
    done, failed = threading.Event(), []

    def hear() -> None:
        try:
            while not done.is_set():
                swarm.poll()
        except RunFailed as error:
            failed.append(error)

    thread = threading.Thread(target=hear)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not failed, failed


@pytest.fixture
def monitored(tmp_path: Path) -> Iterator[tuple[Swarm, str]]:
    """A swarm that trains, and the address of its monitor's page."""
    told = tmp_path / "monitor.log"
    with Swarm(SmallRun(steps=100_000), tmp_path / "swarm") as swarm:
        swarm.until_step(2)
        whom = ["--initial_peers", swarm.run.initial_peer(), "--run_id", swarm.run.record.run_id]
        command = [sys.executable, "-m", "gwtf_p2p", "monitor", *whom, "--port", "0", "--history", str(tmp_path / "h.sqlite")]
        with told.open("w") as log, heard(swarm), subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as monitor:
            try:
                wait_until("the monitor serves", lambda: "serving" in told.read_text())
                assert "libtorch" not in Path(f"/proc/{monitor.pid}/maps").read_text(), "torch alone is 200 MB"
                yield swarm, told.read_text().split()[1]
            finally:
                monitor.terminate()
                monitor.wait()
    assert monitor.returncode == 0, told.read_text()


def test_a_killed_peer_is_seen_on_the_page(monitored: tuple[Swarm, str], tmp_path: Path) -> None:
    swarm, url = monitored
    chromium = Chromium(tmp_path / "profile")
    try:
        chromium.driver.get(url)
        run = f"{url}runs/{swarm.run.record.run_id}"

        def is_there() -> bool:
            if chromium.driver.current_url != run:
                chromium.driver.get(run if chromium.count(".runs a") else url)
            return chromium.count(".node.ONLINE") == 5 and chromium.count(".hop") > 0

        chromium.until("five peers and their flows", is_there)
        chromium.until("that it follows", lambda: chromium.text("#connection") == "live")
        begun = swarm.state.iterations
        chromium.until("new iterations", lambda: int(chromium.text("#f-iterations").split()[0]) > begun)
        victim = next(name for name, line in swarm.run.lines.items() if line.stage == 1)
        swarm.run.kill(victim)
        chromium.until("that a peer does not answer", lambda: chromium.count(".node.silent") == 1)
        chromium.until("it in words", lambda: "does not answer any more" in chromium.text("#events"))
        assert "Not answering any more" in chromium.text("#findings")
        assert chromium.count(".node.GONE") == 0, "its record has not expired yet"
        if SCREENSHOTS:
            chromium.screenshot(Path(SCREENSHOTS) / "live-killed.png")
        assert chromium.errors() == []
    finally:
        chromium.close()
