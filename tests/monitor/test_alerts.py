"""An alert that lasts calls the user's command once, with what has happened; one that passes calls nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwtf_p2p.live.measure.alert_command import run_alert
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


def test_the_command_of_a_peer_hears_what_has_happened(tmp_path: Path) -> None:
    command = f'echo "$GWTF_ALERT_CODE: $GWTF_ALERT_TEXT" > {tmp_path}/said'
    run_alert(command, {"CODE": "empty_stage", "TEXT": "Training waits."}).join()
    assert (tmp_path / "said").read_text() == "empty_stage: Training waits.\n"


def test_what_a_stranger_has_said_is_no_part_of_the_command(tmp_path: Path) -> None:
    run_alert(f'printf %s "$GWTF_ALERT_TEXT" > {tmp_path}/said', {"TEXT": f"$(touch {tmp_path}/done); `id`"}).join()
    assert (tmp_path / "said").read_text() == f"$(touch {tmp_path}/done); `id`"
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("text", ["nothing\0at all", "\udce4", "x" * (1 << 22)])
def test_what_no_variable_can_hold_is_said_and_ends_nobody(text: str, caplog: pytest.LogCaptureFixture) -> None:
    run_alert("true", {"TEXT": text}).join()
    assert "--on_alert" in caplog.text or text == "\udce4", "a byte of another encoding is passed on as it is"


def test_a_command_that_fails_is_said_and_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    run_alert("exit 3", {"CODE": "empty_stage"}).join()
    assert "ended with 3" in caplog.text
