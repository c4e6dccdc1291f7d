"""What the monitor serves: answers that match the served schema, changes that lead from one document to the next, no addresses
on a public monitor, nothing that a record says becoming markup."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml

from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.monitor.history.store import open_history
from gwtf_p2p.monitor.page.feed import KEPT, TABLES, Feed
from gwtf_p2p.monitor.page.join_line import JoinLine
from gwtf_p2p.monitor.page.server import PageServer
from gwtf_p2p.monitor.page.watched_runs import PageOptions, WatchedRuns
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId, RunId
from tests.monitor.watched import A1, A2, B1, DATA, RUN, ledger, planned, record, swarm

MADDR = "/ip4/203.0.113.7/tcp/31337/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
PEERS = parse_initial_peers([MADDR], {})
MONITORING = Path(__file__).parents[3] / "peers" / "monitoring"


class Served:
    """A page of the watched run, looked at by hand."""

    def __init__(self, options: PageOptions | None = None) -> None:
        self.state = SwarmState(RUN)
        self.runs = WatchedRuns(open_history(None), options or PageOptions(join=JoinLine(PEERS)))
        self.server = PageServer("127.0.0.1", 0, self.runs)
        self.server.start()
        self.now = 100.0

    def look(self, records: list[Any], silent: frozenset[PeerId] = frozenset()) -> None:
        self.now += 2.0
        self.runs.look(self.state, self.state.look(records, self.now, silent))

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.server.url + path, timeout=20) as answer:
            return str(answer.read().decode())

    def json(self, path: str) -> Any:
        return json.loads(self.get(f"api/v1/runs/{RUN.run_id}/{path}"))

    def status(self, path: str) -> int:
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def stop(self) -> None:
        self.server.stop()
        self.runs.history.close()


@contextlib.contextmanager
def serving(options: PageOptions | None = None) -> Iterator[Served]:
    served = Served(options)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as page:
        yield page


FLOWS = {"route_seconds": {f"{A1[-6:]}>{B1[-6:]}": 0.5}, "flows": planned(A1, A1, A2), "flows_iteration": 3}


def checked(served: Served, definition: str, document: Any) -> Any:
    schema = json.loads(served.get("api/v1/schema.json"))
    fastjsonschema.compile({**schema, "$ref": f"#/definitions/{definition}"})(document)
    return document


def test_every_answer_of_the_api_is_as_the_served_schema_says(served: Served) -> None:
    served.look(swarm(3, **FLOWS))
    served.look([r for r in swarm(4, **FLOWS) if r.peer != B1], frozenset({A2}))
    served.state.hear_contributions(ledger(5), {DATA})
    served.look(swarm(5, **FLOWS))
    state = checked(served, "state", served.json("state"))
    assert state["iterations"] == 5 and [row["is_silent"] for row in state["peers"]] == [False] * 4
    assert {change["kind"] for change in state["changes"]} == {"gone", "silent", "came", "answers"}
    by_name = {row["name"]: row["n"] for row in state["peers"]}
    flow = state["flows"][0]
    assert flow["microbatches"] == 2 and flow["measured_s"] == 0.5 and flow["planned_s"] > 0
    assert flow["route"][1:] == [by_name[A1[-6:]], by_name[B1[-6:]]]
    assert {hop["path"] for hop in state["hops"]} == {"public"} and len(state["hops"]) == 5
    points = checked(served, "history", served.json("history"))["points"]
    tokens = RUN.microbatches_per_data_peer * RUN.microbatch_size * RUN.sequence_length
    assert [point[0] for point in points] == [3 * tokens, 4 * tokens, 5 * tokens]
    assert [point[1] for point in points] == [3.7, 3.6, 3.5]
    assert len(served.json("history?first=3&last=3")["points"]) == 1
    board = checked(served, "work", served.json("work"))
    assert (board["version"], board["agree"], board["data_peers"], board["contributors"]) == (5, 1, 1, 4)
    assert [(row["peer"], row["microbatches"]) for row in board["peers"]] == [(DATA, 20), (B1, 20), (A1, 15), (A2, 5)]
    assert [row["tokens"] for row in board["peers"]] == [20 * tokens // 4, 20 * tokens // 4, 15 * tokens // 4, 5 * tokens // 4]
    details = checked(served, "peer_details", served.json(f"peers/{A1}"))
    assert details["contributed"] == {
        "stages": [1], "microbatches": 15, "tokens": 480, "seconds": 0.3, "audits": 2, "share": 0.25
    } and len(details["links"]) == 3  # fmt: skip
    plan = checked(served, "plan", served.json("plan"))
    assert plan["microbatches"] == 3 and "forecast, not a measurement" in plan["reason"]
    computed = [bar for row in plan["rows"] for bar in row["bars"]]
    assert len(computed) == 3 * 7, "an embedding, two forwards, a loss, two backwards and a finish for each microbatch"
    assert all(0 <= begin < end <= plan["seconds"] for _, _, begin, end in computed)
    whole, route = plan["measured"]
    assert whole["measured_s"] == 2.0 and whole["planned_s"] == plan["seconds"]
    assert route["what"].endswith(f"{A1[-6:]} → {B1[-6:]}") and route["measured_s"] == 0.5 and 0 < route["planned_s"] < 0.5
    checked(served, "runs", json.loads(served.get("api/v1/runs")))


def test_routers_without_a_plan_get_no_bars_but_the_reason(served: Served) -> None:
    served.look(swarm())
    plan = served.json("plan")
    assert plan["rows"] == [] and "No plan is published" in plan["reason"]


def merged(document: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """As the page does it."""
    after = {**document, **event.get("set", {}), "seen_at": event["seen_at"]}
    for name, told in event.get("tables", {}).items():
        rows = {row[TABLES[name]]: row for row in after[name] if row[TABLES[name]] not in told.get("gone", [])}
        for row in told.get("rows", []):
            rows[row[TABLES[name]]] = {**rows.get(row[TABLES[name]], {}), **row}
        after[name] = list(rows.values())
    after["changes"] = [*after["changes"], *event.get("changes", [])]
    return after


class Events:
    """A browser that follows."""

    def __init__(self, served: Served, after: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", int(served.server.url.rsplit(":", 1)[1][:-1]), timeout=20)
        self._connection.request("GET", f"/api/v1/runs/{RUN.run_id}/events?after={after}")
        self._answer = self._connection.getresponse()
        assert self._answer.getheader("Content-Type", "").startswith("text/event-stream")

    def next(self) -> tuple[str, dict[str, Any]]:
        kind, data = "", None
        while True:
            line = self._answer.readline().decode()
            assert line, "the server has ended the stream"
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                data = json.loads(value)
            elif not name and data is not None:
                return kind, data

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def without_order(document: dict[str, Any]) -> dict[str, Any]:
    tables = {name: sorted(document[name], key=lambda row: str(row[key])) for name, key in TABLES.items()}
    return {**document, **tables, "id": ""}


def test_events_lead_from_a_document_to_the_next_one(served: Served) -> None:
    served.look(swarm(3, **FLOWS))
    document = served.json("state")
    events = Events(served, document["id"])
    served.look([r for r in swarm(4, **FLOWS) if r.peer != A2], frozenset({A1}))
    served.look([*swarm(5, **{**FLOWS, "flows": planned(A2, A2, A2)}), record(PeerId("QmpeerB2"), 2)])
    seen = []
    for _ in range(2):
        kind, event = events.next()
        assert kind == "change"
        seen.append(checked(served, "change_event", event))
        document = merged(document, event)
    events.close()
    assert without_order(document) == without_order(served.json("state"))
    assert [len(event["samples"]) for event in seen] == [1, 1]
    row = next(row for row in seen[0]["tables"]["peers"]["rows"] if row.get("is_silent"))
    assert "peer" not in row, "only the fields that have changed are sent"


def test_a_browser_that_was_away_too_long_is_told_to_fetch_anew(served: Served) -> None:
    served.look(swarm(3))
    old = served.json("state")["id"]
    for version in range(4, 6 + KEPT):
        served.look(swarm(version))
    for stale in (old, "another-life-7", "nonsense"):
        events = Events(served, stale)
        assert events.next()[0] == "reset"
        events.close()


def test_a_look_that_brings_nothing_new_costs_next_to_nothing() -> None:
    feed = Feed()
    document = {name: [] for name in TABLES} | {"changes": [], "seen_at": 1.0, "loss": 2.0}
    feed.publish(document, [])
    after = feed.newest
    feed.publish({**document, "seen_at": 2.0}, [])
    found = feed.since(after)
    assert found is not None and len(found[0][0]) < 120


def test_nothing_seen_yet_is_503_and_unknown_things_are_404(served: Served) -> None:
    assert served.status("api/v1/state") == 503 and served.status("metrics") == 503
    assert served.status("") == 200, "the list of runs says that there is nothing yet"
    served.look(swarm())
    assert served.status("api/v1/state") == 200
    for path in ("secrets", "runs/other", "api/v1/runs/other/state", "static/../app.py", "static/%2e%2e/app.py"):
        assert served.status(path) == 404, path
    assert served.status(f"api/v1/runs/{RUN.run_id}/peers/nobody") == 404
    for query in ("first=-1", "first=x", "points=1e9", "last=" + "9" * 30):
        assert served.status(f"api/v1/runs/{RUN.run_id}/history?{query}") == 400, query


def test_every_answer_forbids_foreign_and_inline_scripts(served: Served) -> None:
    served.look(swarm())
    for path in ("", "nothing/here", "static/page.css", f"api/v1/runs/{RUN.run_id}/state"):
        try:
            answer = urllib.request.urlopen(served.server.url + path, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        with contextlib.closing(answer):
            policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_page_names_nothing_outside_itself_and_has_no_inline_code(served: Served) -> None:
    served.look(swarm())
    html = served.get(f"runs/{RUN.run_id}")
    assert not re.search(r"""(src|href)=["'](https?:)?//""", html)
    assert not re.search(r"<style|style=|\son[a-z]+=|<script>|javascript:", html)
    for name in re.findall(r'(?:src|href)="\.\./(static/[^"]+)"', html):
        assert served.status(name) == 200, name


def test_what_a_record_says_cannot_become_markup(served: Served) -> None:
    run = replace(RUN, model_config={"model_type": "<img src=x onerror=alert(1)>"}, dataset="<script>x</script>")
    served.state.run = run
    served.look([record(PeerId("<b>x"), 1)])
    html = served.get(f"runs/{RUN.run_id}")
    assert "<img src=x" not in html and "<script>x" not in html and "<b>x" not in html


def test_a_public_monitor_tells_no_address() -> None:
    with serving(PageOptions(public=True)) as served:
        served.look([replace(r, maddrs=("/ip4/198.51.100.9/tcp/31330",)) for r in swarm()])
        everything = [served.get(f"runs/{RUN.run_id}"), served.get("metrics"), json.dumps(served.json("state"))]
        everything += [json.dumps(served.json(f"peers/{peer}")) for peer in (A1, B1)]
        assert not any("198.51.100.9" in text or "203.0.113.7" in text for text in everything)
        assert served.json("state")["join"]["line"] is None and served.status(f"runs/{RUN.run_id}/join.svg") == 404


def test_a_private_monitor_tells_addresses_and_how_to_join(served: Served) -> None:
    served.look([replace(r, maddrs=("/ip4/198.51.100.9/tcp/31330",)) for r in swarm()])
    assert served.json(f"peers/{A1}")["addresses"] == ["/ip4/198.51.100.9/tcp/31330"]
    line = served.json("state")["join"]["line"]
    assert line == f"gwtf peer --initial_peers {MADDR} --run_id watched"
    assert served.get(f"runs/{RUN.run_id}/join.svg").startswith("<svg")
    assert "local network" in JoinLine(parse_initial_peers([MADDR.replace("203.0.113.7", "192.168.1.5")], {})).note


def test_several_runs_have_a_page_each_and_a_list(served: Served) -> None:
    served.look(swarm())
    other = SwarmState(replace(RUN, run_id=RunId("other")))
    served.runs.look(other, other.look([replace(r, run_id=RunId("other")) for r in swarm(9)], 5.0))
    front = served.get("")
    assert 'href="runs/watched"' in front and 'href="runs/other"' in front
    assert [run["iterations"] for run in json.loads(served.get("api/v1/runs"))["runs"]] == [3, 9]
    assert '<option value="other">' in served.get("runs/watched")


def test_a_port_that_is_taken_is_a_mistake_in_one_line(served: Served) -> None:
    port = int(served.server.url.rsplit(":", 1)[1][:-1])
    with pytest.raises(InputError, match="--port"):
        PageServer("127.0.0.1", port, served.runs)


def exposed(text: str) -> dict[str, set[str]]:
    """Metric names and the labels that each has."""
    sample = re.compile(r'^([a-z_]+)\{((?:[a-z]+="[^"]*",?)+)\} -?[0-9.e+-]+$')
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = sample.match(line)
            assert match, line
            found.setdefault(match[1], set()).update(re.findall(r'([a-z]+)="', match[2]))
    return found


def test_metrics_are_in_the_text_format_with_the_run_in_every_sample(served: Served) -> None:
    served.look(swarm())
    text = served.get("metrics")
    assert all("run" in labels for labels in exposed(text).values())
    lines = text.splitlines()
    assert 'gwtf_iterations_total{run="watched"} 3' in lines and 'gwtf_loss{run="watched"} 3.7' in lines
    assert 'gwtf_peers{run="watched",stage="1",state="ONLINE"} 2' in lines


def test_the_alert_rules_and_the_dashboard_ask_for_metrics_that_there_are(served: Served) -> None:
    served.look(swarm(3, progress={"loss": 3.0, "iteration_s": 1.0, "held_out_loss": 3.1}))
    known = exposed(served.get("metrics"))
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((MONITORING / "grafana_dashboard.json").read_text())
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 12
    for expression in asked:
        names = re.findall(r"gwtf_[a-z_]+", expression)
        assert names and set(names) <= known.keys(), expression
        for labels in re.findall(r"by \(([a-z, ]+)\)", expression):
            assert set(labels.split(", ")) <= set.union(*(known[name] for name in names)), expression


def test_a_peer_is_called_what_it_calls_itself_in_one_line_of_printable_characters(served: Served) -> None:
    names = {A1: "Ada  \n\x1b[31m\u202eL.", A2: ""}
    records = [dataclasses.replace(r, public_name=names.get(r.peer, "")) for r in swarm()]
    served.state.hear_contributions(ledger(), {DATA})
    served.look(records)
    shown = {row["peer"]: row["name"] for row in served.json("state")["peers"]}
    assert shown[A1] == "Ada [31m L." and shown[A2] == A2[-6:]
    assert {row["peer"]: row["name"] for row in served.json("work")["peers"]} == shown
