"""Bytes by kind, from what peers report of themselves."""

from __future__ import annotations

from gwtf_p2p.live.measure.traffic import traffic
from gwtf_p2p.live.rpc.meter import Meter
from gwtf_p2p.monitor.traffic import KINDS, TrafficFigures


def figures(meter: Meter, record_bytes: int = 0) -> dict[str, object]:
    return {"name": "figures", **traffic(meter, record_bytes)}


def test_payloads_are_counted_by_what_they_are_for_and_the_rest_is_control() -> None:
    meter = Meter(other_bytes=7)
    for kind, size in (("Forward", 100), ("Backward", 50), ("average", 30), ("state_chunk", 20), ("probe", 3)):
        meter.pushed(kind, size, size)
    state = TrafficFigures()
    state.hear("a", figures(meter, 11))
    state.hear("b", figures(meter))
    assert state.totals == dict(zip(KINDS, (200, 100, 60, 40, 11, 20), strict=True))
    assert state.plain()["per_hop"] == 150


def test_what_was_refused_was_sent_but_is_no_hop() -> None:
    meter = Meter()
    for whole in (None, 100, 100):
        meter.pushed("Forward", 100, whole)
    meter.pushed("Backward", 10, 10)
    state = TrafficFigures()
    state.hear("a", figures(meter))
    assert state.totals["activations"] == 300
    assert state.per_hop == 110


def test_the_newest_figures_of_a_peer_count_and_those_of_its_earlier_life_too() -> None:
    meter, state = Meter(), TrafficFigures()
    for _ in range(2):
        meter.pushed("Forward", 100, 100)
        state.hear("a", figures(meter))
    assert state.totals["activations"] == 200
    assert state.per_hop is None and state.lines() == []
    state.hear("a", {"name": "started"})
    state.hear("a", figures(Meter()))
    assert state.totals["activations"] == 200
