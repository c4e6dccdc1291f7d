"""`gwtf top` with a keyboard: what it shows of a run, how it is sorted and asked for more, and what it does not believe."""

from __future__ import annotations

import copy
import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.shared.observing import observe_until
from gwtf_p2p.monitor.history.store import open_history
from gwtf_p2p.monitor.page.watched_runs import WatchedRuns
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.monitor.top.app import Top
from gwtf_p2p.monitor.top.shown import WrongAnswer, losses, shown
from gwtf_p2p.monitor.top.source import ApiSource, OnShown, OnTrouble, SwarmSource
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.records import PeerState
from tests.monitor.watched import A1, A2, B1, DATA, RUN, record, swarm

SMALL = (60, 24)


def documents() -> tuple[WatchedRuns, Any]:
    """A run that was looked at twice: a peer has gone in between."""
    runs, state = WatchedRuns(open_history(None)), SwarmState(RUN)
    for records, now in ((swarm(2), 100.0), ([*swarm(3)[:3], record(PeerId("QmpeerZ9"), 2, state=PeerState.JOINING)], 102.0)):
        runs.look(state, state.look(records, now))
    return runs, runs.by_id[RUN.run_id].feed.document


class Told:
    """A source that tells what the test hands it, and remembers whose details were asked for."""

    name = "a test"

    def __init__(self, *documents: Any) -> None:
        self.first, self.asked = documents, list[str]()
        self._look: OnShown | None = None
        self.trouble: OnTrouble | None = None

    def watch(self, look: OnShown, trouble: OnTrouble, stop: threading.Event) -> None:
        self._look, self.trouble = look, trouble
        for document in self.first:
            self.tell(document)
        stop.wait()

    def tell(self, document: Any) -> None:
        assert self._look is not None
        self._look(shown(document), [4.0, 3.5, 3.0])

    def details(self, run_id: str, peer: str) -> Mapping[str, Any] | None:
        self.asked.append(peer)
        return {"peer": peer, "wire_version": 2, "links": [{"to": "abc", "round_trip_s": 0.0123}]}


async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    """The app's threads have told, and it has drawn."""
    for _ in range(500):
        await pilot.pause(0.01)
        if condition():
            return
    raise AssertionError("the app does not show it")


def text(app: Top, widget: str) -> str:
    return str(app.query_one(widget, Static).content)


def names(app: Top) -> list[str]:
    return [str(app.table.get_row_at(i)[0]) for i in range(app.table.row_count)]


async def test_a_run_is_shown_and_its_peers_are_sorted_filtered_and_detailed_by_key() -> None:
    source = Told(documents()[1])
    app = Top(source)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: app.table.row_count == 4)
        assert names(app) == [DATA[-6:], A1[-6:], A2[-6:], "peerZ9"]
        head = text(app, "#head")
        assert "watched · router gwtf" in head and "loss 3.7000" in head and "iteration 3/100" in head
        assert "Training waits: no peer is online in stage 2." in text(app, "#findings")
        assert "peerB1 is gone" in text(app, "#happened")
        await pilot.press("s", "s", "s")
        assert names(app) == sorted(names(app)) and "sorted by name" in text(app, "#about")
        await pilot.press("t")
        assert names(app) == ["peerZ9"]
        await pilot.press("t", "up", "enter")
        await until(pilot, lambda: "wire version: 2" in text(app, "#known"))
        assert source.asked == [A2]
        assert "round_trip_s 0.0123" in text(app, "#known")
        assert app.query_one("#details").display and not app.query_one("#events").display
        await pilot.press("escape")
        assert not app.query_one("#details").display
        await pilot.press("q")
    assert not app.is_running


async def test_what_changes_is_changed_where_it_stands_and_the_cursor_stays_on_its_peer() -> None:
    document = documents()[1]
    source = Told(document)
    app = Top(source)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: app.table.row_count == 4)
        await pilot.press("down", "down")
        after = copy.deepcopy(document)
        after["iterations"] = 4
        after["peers"] = [peer for peer in after["peers"] if peer["peer"] != A1]
        after["peers"][0]["is_silent"] = True
        threading.Thread(target=source.tell, args=(after,)).start()
        await until(pilot, lambda: app.table.row_count == 3)
        assert "iteration 4/100" in text(app, "#head")
        assert str(app.table.get_row_at(0)[2]) == "silent"
        assert names(app)[app.table.cursor_row] == A2[-6:]


async def test_several_runs_are_gone_through_and_trouble_is_told_beside_what_was_seen() -> None:
    document = documents()[1]
    source = Told(document, {**document, "run_id": "another"})
    app = Top(source)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: len(app.runs) == 2)
        assert "(2 runs: n)" in text(app, "#head")
        first = app.run_id
        await pilot.press("n")
        assert app.run_id != first and app.run_id in text(app, "#head")
        assert source.trouble is not None
        threading.Thread(target=source.trouble, args=("the monitor is away",)).start()
        await until(pilot, lambda: "the monitor is away" in text(app, "#findings"))
        assert app.table.row_count == 4


@pytest.mark.parametrize("size", [(60, 24), (40, 12), (200, 60)])
async def test_no_line_is_wider_than_the_terminal(size: tuple[int, int]) -> None:
    app = Top(Told({**documents()[1], "run_id": "r" * 150}))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.table.row_count == 4)
        assert all(len(line) <= size[0] - 2 for line in text(app, "#head").splitlines())
        assert app.query_one("#peers").size.height >= 3


# ---- where it is from


class Answering(BaseHTTPRequestHandler):
    """A monitor on another machine; `answers` by path."""

    answers: Mapping[str, bytes]

    def do_GET(self) -> None:
        body = self.answers.get(self.path.split("?")[0])
        self.send_response(404 if body is None else 200)
        if body is not None and body[:2] == b"\x1f\x8b":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


@pytest.fixture
def monitor() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def looked(server: ThreadingHTTPServer, answers: Mapping[str, bytes]) -> tuple[list[Any], list[str]]:
    """What a source makes of these answers in one look: what it shows, and its troubles."""
    Answering.answers = answers
    seen, troubles, stop = [], [], threading.Event()

    def trouble(why: str) -> None:
        troubles.append(why)
        stop.set()

    host, port = server.server_address[:2]
    ApiSource(f"http://{host!s}:{port}").watch(lambda state, curve: seen.append((state, curve)), trouble, stop)
    return seen, troubles


def api(state: Any) -> dict[str, bytes]:
    runs = json.dumps({"runs": [{"run_id": "watched"}]}).encode()
    history = json.dumps({"points": [[32, 4.0, 4.0, 4.0, None, 1.0], [64, 3.5, 3.5, 3.5, None, 1.0]]}).encode()
    document = json.dumps(state).encode()
    base = "/api/v1/runs"
    return {base: runs, f"{base}/watched/state": gzip.compress(document), f"{base}/watched/history": history}


def test_a_monitors_api_is_read(monitor: ThreadingHTTPServer) -> None:
    ((state, curve),), troubles = looked(monitor, api(documents()[1]))
    assert (state.run_id, state.iterations, curve, troubles) == ("watched", 3, [4.0, 3.5], [""])


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({}, "404"),
        ({"/api/v1/runs": b"<html>"}, "does not answer as a monitor"),
        ({"/api/v1/runs": b"{}"}, "runs: Field required"),
        (api({}), "Field required"),
        (api({"iterations": -1}), "run_id: Field required"),
        ({**api({}), "/api/v1/runs/watched/state": gzip.compress(b" " * (17 << 20))}, "more than 16 MB"),
        ({**api({}), "/api/v1/runs/watched/state": b"\x1f\x8bnonsense"}, "does not answer as a monitor"),
    ],
)
def test_what_is_no_monitor_is_told_and_asked_again(monitor: ThreadingHTTPServer, answers: dict[str, bytes], told: str) -> None:
    seen, (trouble,) = looked(monitor, answers)
    assert not seen and told in trouble


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", float("nan")), ("iterations", -1), ("peers", [{}]), ("run_id", "r" * 300), ("peers", "all"), ("seen_at", 1e30)],
)
def test_a_figure_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(WrongAnswer, match=field):
        shown({**documents()[1], field: value})


def test_markup_in_an_answer_stays_text() -> None:
    state = shown({**documents()[1], "run_id": "[red]x[/red]"})
    assert state.run_id == "[red]x[/red]"
    assert losses({"points": [[1, None], [2, 3.0]]}) == [3.0]


def test_a_swarm_is_looked_at_with_what_the_monitor_is_made_of() -> None:
    runs, seen = WatchedRuns(open_history(None)), []

    def observe(on_look: Callable[..., bool], stop: threading.Event) -> str:
        state = SwarmState(RUN)
        on_look(state, state.look(swarm(), 100.0))
        return "no initial peer answers"

    troubles: list[str] = []
    source = SwarmSource("watched", runs, observe)
    source.watch(lambda state, curve: seen.append((state.iterations, curve)), troubles.append, threading.Event())
    assert seen == [(3, [3.7])] and troubles == ["no initial peer answers"]
    details = source.details("watched", B1)
    assert details is not None and details["peer"] == B1
    assert source.details("unknown", B1) is None


def test_a_network_that_is_not_there_is_told_and_ends_nothing_else() -> None:
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers

    peers = parse_initial_peers([f"/ip4/127.0.0.1/tcp/9/p2p/12D3Koo{'W' * 45}"], {})
    why = observe_until(peers, (RunId("r"),), lambda state, changes: True, threading.Event())
    assert "127.0.0.1" in why


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ftp://x"], "expected the address of a monitor"),
        (["http://x", "--initial_peers", "/ip4/1.2.3.4/tcp/1"], "expected one of them"),
        (["http://x", "--run_id", "a", "b"], "expected one run"),
        ([], "--run_id"),
        (["http://127.0.0.1:1"], "expected a terminal"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1
