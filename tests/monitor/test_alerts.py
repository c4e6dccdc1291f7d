"""An alert that lasts calls the user's command once, with what has happened; one that passes calls nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwtf_p2p.live.peer.reporting import run_alert
from gwtf_p2p.monitor.alerts import Alerts
from gwtf_p2p.monitor.swarm_state import SwarmState
from tests.monitor.watched import RUN, swarm


def test_an_alert_is_told_once_when_it_has_lasted() -> None:
    alerts, state = Alerts("", 60.0), SwarmState(RUN)
    told = []
    for now in range(0, 200, 10):
        state.look([], float(now))
        told += alerts.look(state)
    assert told == ["unseen"]
    state.look(swarm(), 200.0)
    assert alerts.look(state) == []
    for now in range(210, 260, 10):
        state.look([], float(now))
        assert alerts.look(state) == [], "it begins anew"


async def test_the_command_of_a_peer_hears_what_has_happened(tmp_path: Path) -> None:
    await run_alert(f'echo "$GWTF_ALERT_CODE: $GWTF_ALERT_TEXT" > {tmp_path}/said', "empty_stage", "Training waits.")
    assert (tmp_path / "said").read_text() == "empty_stage: Training waits.\n"


async def test_a_command_that_fails_is_said_and_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    await run_alert("exit 3", "empty_stage", "Training waits.")
    assert "ended with 3" in caplog.text
