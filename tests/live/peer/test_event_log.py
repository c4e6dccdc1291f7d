"""The event log of a live peer can be told again: same effects, or the line at which something differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.live.peer.event_log import EventLog
from gwtf_p2p.protocol.events import Started

DEADLINE_S = 300


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all peers of a small swarm in which a stage peer is killed between its forward and its backward."""
    folder = tmp_path_factory.mktemp("logs")
    size = ["--steps", "3", "--stages", "2", "--data_peers", "1", "--microbatches", "4", "--microbatch_size", "1"]
    churn = ["--churn", "kill stage stage=1 index=any at=forward_sent iter=1", "--keep_logs", str(folder)]
    command = [sys.executable, "-m", "gwtf_p2p", "demo", *size, "--sequence_length", "32", "--capacity", "2", *churn]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.live
def test_the_logs_of_a_swarm_with_a_killed_stage_peer_give_the_same_effects(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(logs.glob("*.events.jsonl"))
    assert len(paths) == 5, "one data peer, two stage peers in each of two stages"
    recoveries = 0
    for path in paths:
        assert main(["replay", str(path)]) == 0, capsys.readouterr().out
        recoveries += path.read_text().count('"name": "recovery"')
        assert capsys.readouterr().out.startswith("same effects: ")
    assert recoveries, "somebody has repaired what was lost"


@pytest.mark.live
def test_a_log_that_was_changed_names_its_first_difference(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (logs / "data0.events.jsonl").read_text().splitlines()
    changed = next(i for i, line in enumerate(lines) if '"effect": "Compute"' in line)
    event = json.loads(lines[changed])
    compute = next(effect for effect in event["effects"] if effect["effect"] == "Compute")
    compute["work"] = "uncount"
    copy = tmp_path / "changed.jsonl"
    copy.write_text("\n".join([*lines[:changed], json.dumps(event), *lines[changed + 1 :]]) + "\n")
    assert main(["replay", str(copy), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["difference"]["line"], told["difference"]["event"]) == (changed + 1, event["event"])
    first = told["difference"]["first"]
    assert told["difference"]["expected"]["effects"][first] == compute
    assert told["difference"]["got"]["effects"][first]["work"] == "embed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_ends_the_log_and_not_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(Path("/dev/full"))
    for now in (1.0, 2.0):
        log.write(Started(), now, ())
    log.close()
    assert [record.getMessage() for record in caplog.records] == ["/dev/full: the event log ends here: No space left on device"]
