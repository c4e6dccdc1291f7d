"""The event log takes every event, a plan revised in mid-iteration included."""

from __future__ import annotations

import json
from pathlib import Path

from gwtf_p2p.live.peer.event_log import EventLog
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.schedule.iteration_plan import plan_for, revise
from tests.protocol.schedule.test_search import figures_for


def test_a_revised_plan_is_told_by_its_flows(tmp_path: Path) -> None:
    figures = figures_for(2)
    revised = revise(figures, plan_for(figures, (), 0), 1, 0)
    assert revised is not None and revised.underway is not None
    log = EventLog(tmp_path / "events.jsonl")
    log.write(ev.Planned(revised), 1.5)
    log.write(ev.Planned(None), 2.5)
    log.close()
    told, nothing = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert [tuple(flow["stage_peers"]) for flow in told["flows"]] == [flow.stage_peers for flow in revised.flows]
    assert (told["reason"], nothing["reason"], nothing["now"]) == (revised.reason, "", 2.5)
