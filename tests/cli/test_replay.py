"""`gwtf replay` on logs of simulated peers: repaired, revised and torn ones; mistakes in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.shared.pictures import bars_of_files
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.peer.factory import PeerSettings, RouterChoice, compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeerConfig
from gwtf_p2p.protocol.replay.log import LogReader, LogWriter, Opening
from gwtf_p2p.protocol.replay.replay import replay
from gwtf_p2p.protocol.routers.factory import KINDS, default_config
from gwtf_p2p.protocol.schedule.iteration_plan import plan_for, revise
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Forward
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, StageRecord
from tests.protocol.flow.problems import record
from tests.protocol.schedule.test_search import figures_for

ME = PeerId("p")
NOTHING_MEASURED: Mapping[ev.Work, float] = {}


def opening(router: str = "gwtf") -> Opening:
    config = default_config(router)
    settings = PeerSettings(
        me=ME,
        stage=Stage(1),
        stages=2,
        router=RouterChoice(router, config, seed=3),
        stage_peer=StagePeerConfig(2, config.queues_inputs, moves=True),
    )
    return Opening(settings, {ev.Work.FORWARD: 0.1, ev.Work.BACKWARD: 0.2}, "test")


def log_of(told: Opening) -> list[str]:
    """Of a peer that starts, sees others, is asked for something and hears of a timer."""
    machine, writer = compose(told.settings), LogWriter()
    machine.measured(told.measured)
    everybody = [record("a", 0, 2), record("p", 1, 2, 0.1), record("q", 1, 2, 0.1), record("r", 2, 2, 0.1)]
    events: list[ev.Event] = [ev.Started(incarnation=1)]
    events += [ev.ViewChanged(NetworkView.of(peers, 2, 1_000)) for peers in (everybody[:2], everybody, everybody[:-1])]
    events += [ev.TimerFired((ev.Timer.SEEK, "")), ev.CheckFailed(PeerId("r"), "gone", silent=True), ev.DrainRequested()]
    lines = [writer.opening(told)]
    for now, event in enumerate(events):
        lines.append(writer.happened(event, float(now), machine.handle(event, float(now))))
    return lines


@pytest.mark.parametrize("router", KINDS)
def test_the_same_settings_and_events_give_the_same_effects(router: str) -> None:
    """A log may hold one machine after the other, as of a peer that moves; each begins with what it was made of."""
    lines = log_of(opening(router))
    replayed = replay([*lines, *log_of(opening("greedy"))], "log")
    assert (replayed.difference, replayed.events, replayed.machines) == (None, 2 * len(lines) - 2, 2)


def test_settings_and_views_come_back_as_they_were() -> None:
    told, reader = opening("negotiated"), LogReader()
    first, *others = [reader.read(line) for line in log_of(told)]
    assert first == told
    views = [line.event.view for line in others if not isinstance(line, Opening) and isinstance(line.event, ev.ViewChanged)]
    assert [list(view.records) for view in views] == [["a", "p"], ["a", "p", "q", "r"], ["a", "p", "q"]]


def linked(number: int, peers: int, rng: Random) -> StageRecord:
    """The record of one of so many peers, as it is published again: its links are older, one is measured anew, one is gone."""
    others = rng.sample([other for other in range(peers) if other != number], peers - 2)
    links = [
        LinkMeasurement(PeerId(f"peer {other:030d}"), rng.choice((0.01, 0.02)), 1e6 + other, LinkSource.PROBE, 3, rng.random())
        for other in others
    ]
    own = record(f"peer {number:030d}", 1, 2, sequence_number=rng.randrange(1 << 30))
    return replace(own, links=tuple(sorted(links, key=lambda link: (link.round_trip_s, link.to))))


def test_records_that_have_changed_come_back_as_they_were_and_take_little_room() -> None:
    rng, writer, reader = Random(7), LogWriter(), LogReader()
    peers = 24
    whole = most = 0
    for look in range(12):
        there = rng.sample(range(peers), peers - look % 3)
        view = NetworkView.of([linked(number, peers, rng) for number in there], 2, 1_000)
        line = writer.happened(ev.ViewChanged(view), float(look), [])
        read = reader.read(line)
        assert not isinstance(read, Opening) and read.event == ev.ViewChanged(view)
        whole = whole or len(line)
        most = max(most, len(line) if look % 3 else 0)
    assert most < 0.35 * whole


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ('{"capacity": 3}', "changed.peer"),
        ('{"peer": "stranger"}', "changed.peer"),
        ('{"peer": "p", "capacity": "much"}', "changed.capacity"),
        ('{"peer": "p", "links": [4]}', "changed.links"),
        ('{"peer": "p", "links": ["a"]}', "changed.links"),
        ('{"peer": "p", "links": 3}', "changed.links"),
        ("7", "changed"),
    ],
)
def test_a_change_of_a_record_that_is_none_is_refused(changed: str, named: str) -> None:
    writer, reader = LogWriter(), LogReader()
    reader.read(writer.happened(ev.ViewChanged(NetworkView.of([record("p", 1, 2)], 2, 1_000)), 0.0, []))
    line = writer.happened(ev.ViewChanged(NetworkView.of([record("p", 1, 3)], 2, 1_000)), 1.0, [])
    assert '"changed": [{"capacity": 3, "peer": "p"}]' in line
    with pytest.raises(RemoteProtocolError, match=named):
        reader.read(line.replace('{"capacity": 3, "peer": "p"}', changed))


def test_a_log_of_an_older_release_is_read() -> None:
    """It tells every record that has changed whole."""
    lines = [line.replace('"format": 2', '"format": 1').replace(', "changed": []', "") for line in log_of(opening())]
    assert '"format": 1' in lines[0] and not any("changed" in line for line in lines)
    assert replay(lines, "log").difference is None


def test_a_plan_that_revises_another_comes_back_as_it_was() -> None:
    figures = figures_for(2)
    revised = revise(figures, plan_for(figures, (), 0), 1, 0)
    assert revised is not None and revised.is_revision
    for plan in (revised, None):
        read = LogReader().read(LogWriter().happened(ev.Planned(plan), 1.5, []))
        assert not isinstance(read, Opening) and read.event == ev.Planned(plan) and read.now == 1.5


def test_an_effect_that_is_not_asked_for_again_is_named() -> None:
    lines = log_of(opening("swarm"))
    writer = LogWriter()
    changed = writer.happened(ev.Started(incarnation=1), 0.0, [ef.Publish(), ef.Publish()])
    found = replay([lines[0], changed, *lines[2:]], "log").difference
    assert found is not None and (found.line, found.event, found.first) == (2, "Started", 1)


def test_a_machine_that_failed_fails_again() -> None:
    told = opening()
    line = LogWriter().happened(ev.Started(incarnation=1), 0.0, [], raised="LocalProtocolError('microbatch')")
    found = replay([LogWriter().opening(told), line], "log").difference
    assert found is not None and (found.expected_raised, found.got_raised) == ("LocalProtocolError('microbatch')", "")


def test_a_last_line_that_is_not_whole_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, lines = tmp_path / "log", log_of(opening())
    path.write_text("".join(lines)[:-20])
    assert main(["replay", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"same effects: {len(lines) - 2} events"


OPENING = log_of(opening())[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty file"),
        ("hello\n", ":1: expected a JSON object"),
        ("[1]\n", ":1: expected a JSON object"),
        ('{"event": "Started", "now": 0, "effects": []}\n', ":1: expected the settings"),
        ('{"event": "Composed", "format": 7}\n', "format"),
        (OPENING.replace('"stages": 2', '"stages": 0'), "stage: expected"),
        (OPENING.replace('"gwtf"', '"fastest"'), "fastest"),
        (OPENING + '{"event": "Begun", "now": 0, "effects": []}\n', ":2: event"),
        (OPENING + '{"event": "Kept", "now": 0, "effects": [], "versions": 3}\n', ":2: versions: expected a list"),
        (OPENING + '{"event": "Kept", "now": "soon", "effects": [], "versions": []}\n', ":2: now"),
        (OPENING + '{"event": "Kept", "now": 0, "versions": []}\n', ":2: effects"),
        (OPENING + '{"event": "Kept", "now": 0, "effects": []}\n', ":2: Kept"),
    ],
)
def test_what_is_no_log_is_told_in_one_line(text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    assert main(["replay", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"gwtf replay: {path}") and named in printed.err


def test_replay_loads_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(log_of(opening())))
    run = f"from gwtf_p2p.cli.main import main; main(['replay', {str(path)!r}, '--json'])"
    code = f"import sys; {run}; print(*sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(printed[0])["difference"] is None
    assert not {"torch", "hivemind", "transformers"} & set(printed[1].split())


def test_an_iteration_of_several_logs_is_drawn(tmp_path: Path) -> None:
    """What a peer computed and averaged is in its own log, what came to it too; the sender's stage is in the sender's."""
    mb = MicrobatchId(PeerId("QmData"), 3, 0)
    forward, sender, first = Forward(mb, (0,), Stage(2)), PeerId("p"), opening()
    other = replace(first, settings=replace(first.settings, me=PeerId("QmNext"), stage=Stage(2)))
    happenings: list[tuple[float, ev.Event]] = [
        (10.0, ev.Offered(sender, forward)),
        (10.5, ev.Delivered(sender, forward)),
        (11.5, ev.Computed(ev.Work.FORWARD, mb, 0.75)),
        (14.0, ev.AverageDone(3, 0, "d", 1.5)),
    ]
    logs = []
    for told, events in ((other, happenings), (first, [(9.0, ev.Computed(ev.Work.FORWARD, mb, 0.25))])):
        writer = LogWriter()
        lines = [writer.opening(told), *(writer.happened(event, now, []) for now, event in events)]
        logs.append(tmp_path / f"{told.settings.me}.jsonl")
        logs[-1].write_text("".join(lines) + '{"torn')
    bars, stages = bars_of_files(logs)
    assert stages == {"p": 1, "QmNext": 2}
    assert [(b.peer, b.what, b.began, b.ended, b.to) for b in bars] == [
        ("p", "forward", 10.0, 10.5, "QmNext"),
        ("QmNext", "forward", 10.75, 11.5, ""),
        ("QmNext", "average", 12.5, 14.0, ""),
        ("p", "forward", 8.75, 9.0, ""),
    ]
    page = tmp_path / "iteration.html"
    assert main(["replay", *map(str, logs), "--draw", str(page)]) == 0
    assert "iteration 3" in page.read_text()
