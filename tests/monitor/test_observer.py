"""`gwtf monitor` and `gwtf routes`: what an observer makes of the records, and what it serves."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.verbs.routes import table
from gwtf_p2p.live.measure.run_progress import Progress, route_name
from gwtf_p2p.monitor.routes import RoutePlans
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.monitor.swarm_view import plain_line, render_swarm
from gwtf_p2p.monitor.web import WebServer
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.schedule.iteration_plan import tag
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, PeerState, RunRecord, StageRecord, Timing

RUN = RunRecord(RunId("watched"), {"hidden_size": 64}, ((0, 1), (1, 2)), 0, 16, 2, 4, data_peers=1)
DATA, A1, A2, B1 = (PeerId(name) for name in ("Qmdata00", "QmRelayA1", "QmRelayA2", "QmRelayB1"))


def record(peer: PeerId, stage: int, **fields: object) -> StageRecord:
    links = tuple(LinkMeasurement(to, 0.01, 1e7, LinkSource.PROBE, 3, 0.0) for to in (DATA, A1, A2, B1) if to != peer)
    timing = Timing(0.01, 3, 0.0)
    known = StageRecord(
        peer, RUN.run_id, Stage(stage), PeerState.ONLINE, 4, forward=timing, backward=timing, finish=timing, links=links
    )
    return replace(known, **fields)  # type: ignore[arg-type]


def swarm(version: int = 3, **data: object) -> list[StageRecord]:
    progress = {"loss": 4.0 - version / 10, "iteration_s": 2.0, "microbatches": 4.0 * version}
    first = record(DATA, 0, weights_version=version, progress=progress, **data)
    return [first, *(record(peer, stage, weights_version=version) for peer, stage in ((A1, 1), (A2, 1), (B1, 2)))]


def test_what_changes_between_two_looks_is_told() -> None:
    state = SwarmState(RUN)
    assert state.look(swarm(), 1.0) == [], "the first look compares with nothing"
    later = [r for r in swarm(4) if r.peer != A2]
    later[1] = replace(later[1], state=PeerState.DRAINING, sequence_number=2)
    later.append(record(PeerId("QmnewB2"), 2, state=PeerState.SYNCING))
    told = [change.text for change in state.look(later, 3.0)]
    assert len(told) == 3
    assert "stage peer of stage 1 layA1 is DRAINING, was ONLINE".replace("layA1", A1[-6:]) in told
    assert any("is gone" in text for text in told) and any("has come" in text for text in told)
    assert state.totals == {"gone": 1, "came": 1}
    assert state.losses == {2: pytest.approx(3.7), 3: pytest.approx(3.6)}
    assert state.tokens_per_second == pytest.approx(4 * 2 * 16 / 2.0)


def test_of_two_records_of_a_peer_the_newest_counts() -> None:
    state = SwarmState(RUN)
    state.look([record(A1, 1, sequence_number=7, occupancy=3), record(A1, 1, sequence_number=6, occupancy=1)], 1.0)
    assert state.records[A1].occupancy == 3


def test_metrics_are_in_the_text_format() -> None:
    state = SwarmState(RUN)
    state.look(swarm(), 1.0)
    text = state.prometheus()
    sample = re.compile(r'^gwtf_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+$')
    lines = text.splitlines()
    assert all(line.startswith("# ") or sample.match(line) for line in lines), text
    assert "gwtf_iterations_total 3" in lines
    assert f'gwtf_microbatches_total{{peer="{DATA}",stage="0"}} 12' in lines
    assert 'gwtf_peers{stage="1",state="ONLINE"} 2' in lines


def test_the_terminal_view_names_peers_and_empty_stages() -> None:
    state = SwarmState(RUN)
    state.look(swarm()[:3], 1.0)
    out = StringIO()
    Console(width=120, file=out).print(render_swarm(state))
    shown = out.getvalue()
    assert A1[-6:] in shown and "no peer online in stage 2" in shown
    assert plain_line(state).startswith("iteration 3  loss 3.7000")


@pytest.fixture
def served() -> Iterator[tuple[SwarmState, str]]:
    state = SwarmState(RUN)
    server = WebServer("127.0.0.1", 0, lambda: state.plain() if state.looks else None, state.prometheus)
    server.start()
    yield state, server.url
    server.stop()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def test_the_web_server_serves_page_state_and_metrics(served: tuple[SwarmState, str]) -> None:
    state, url = served
    with pytest.raises(urllib.error.HTTPError) as early:
        get(url)
    assert early.value.code == 503, "nothing has been seen yet"
    early.value.close()
    state.look(swarm(), 1.0)
    state.look(swarm(4)[:-1], 2.0)
    assert json.loads(get(url + "api/v1/state"))["iterations"] == 4
    page = get(url)
    assert B1[-6:] in page and "is gone" in page and "<script" not in page
    assert "gwtf_loss 3.6" in get(url + "metrics")
    with pytest.raises(urllib.error.HTTPError) as wrong:
        get(url + "secrets")
    assert wrong.value.code == 404
    wrong.value.close()


def test_a_name_in_a_record_cannot_become_markup(served: tuple[SwarmState, str]) -> None:
    state, url = served
    state.look([record(PeerId("<b>x"), 1)], 1.0)
    assert "<b>x" not in get(url)


def planned(*stage_peers: PeerId) -> tuple[str, ...]:
    """What a data peer publishes whose microbatches go over these stage peers of stage 1 and B1."""
    return tuple(f"{n}:{tag(stage_peer)}{tag(B1)}" for n, stage_peer in enumerate(stage_peers))


def test_routes_show_the_published_plan_with_its_reason_and_what_was_measured() -> None:
    plans = RoutePlans(RUN)
    data: dict[str, Any] = {
        "route_seconds": {route_name((A1, B1)): 0.5},
        "flows": planned(A1, A1, A1, A2),
        "flows_iteration": 3,
    }
    told = plans.look(swarm(**data))
    assert "first plan" in told[0]
    by_route = {line.route: line for line in plans.lines}
    one, other = by_route[route_name((A1, B1))], by_route[route_name((A2, B1))]
    assert (one.microbatches, one.measured_s, other.microbatches, other.measured_s) == (3, 0.5, 1, None)
    least_s = 0.02 * 3 + 4 * 0.005
    assert all(line.predicted_s and line.predicted_s > least_s for line in (one, other)), (
        "three computations each way, four hops"
    )
    assert plans.look(swarm(**data)) == [], "equal records, equal plan"
    assert "measured times" in plans.look(swarm(**{**data, "flows": planned(A1, A1, A2, A2)}))[0]
    gone = plans.look([r for r in swarm(**{**data, "flows": planned(A2, A2, A2, A2)}) if r.peer != A1])
    assert "came or went" in gone[0] and A1[-6:] in gone[0]
    assert table(plans)[0].startswith("watched, router gwtf: 4 microbatches")


def test_routers_without_a_plan_show_what_was_measured() -> None:
    plans = RoutePlans(replace(RUN, router="swarm"))
    plans.look(swarm(route_seconds={route_name((A1, B1)): 0.5}))
    assert "no plan" in plans.reason
    assert [(line.microbatches, line.predicted_s, line.measured_s) for line in plans.lines] == [(0, None, 0.5)]


def test_progress_measures_routes_losses_and_iterations() -> None:
    progress = Progress()
    progress.hear("iteration_begins", {"iteration": 0}, 10.0)
    for index, seconds in enumerate((2.0, 4.0)):
        name = f"x/0/{index}"
        progress.hear("injected", {"microbatch": name, "route": [A1, B1], "reason": ""}, 10.0)
        progress.hear("microbatch_done", {"microbatch": name, "loss": 5.0 + index, "route": [A1, B1]}, 10.0 + seconds)
    progress.hear("stepped", {"iteration": 0, "microbatches": 2}, 15.0)
    assert progress.figures() == {"microbatches": 2.0, "loss": 5.5, "iteration_s": 5.0}
    assert progress.route_seconds() == {route_name((A1, B1)): 3.0}


@pytest.mark.parametrize("verb", ["monitor", "routes"])
@pytest.mark.parametrize(("flags", "says"), [([], "--run_id"), (["--run_id", "r"], "--initial_peers")])
def test_a_mistake_is_one_line(verb: str, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, *flags]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
