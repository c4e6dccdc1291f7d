"""`gwtf monitor` and `gwtf routes`: what an observer makes of the records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.verbs.looks.ledger import table as ledger_table
from gwtf_p2p.cli.verbs.looks.routes import table
from gwtf_p2p.live.measure.run_progress import HELD_OUT, Progress, route_name
from gwtf_p2p.monitor.health import Level, findings
from gwtf_p2p.monitor.ledger import plain as plain_ledger
from gwtf_p2p.monitor.routes import RoutePlans
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.monitor.terminal.swarm_view import plain_line, swarm_view
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.stall.rules import duration
from gwtf_p2p.protocol.view.contributions import Contribution, Contributions
from gwtf_p2p.protocol.view.contributions_told import pages_of
from gwtf_p2p.protocol.wire.records import Completion, EvaluationSpec, PeerState
from tests.monitor.watched import A1, A2, B1, DATA, RUN, planned, record, swarm


def test_what_changes_between_two_looks_is_told() -> None:
    state = SwarmState(RUN)
    assert state.look(swarm(), 1.0) == [], "the first look compares with nothing"
    later = [r for r in swarm(4) if r.peer != A2]
    later[1] = replace(later[1], state=PeerState.DRAINING, sequence_number=2)
    later.append(record(PeerId("QmnewB2"), 2, state=PeerState.SYNCING))
    told = [change.text for change in state.look(later, 3.0)]
    assert len(told) == 3
    assert f"peer of stage 1 {A1[-6:]} is finishing, then leaving, was online" in told
    assert any("is gone" in text for text in told) and any("has come" in text for text in told)
    assert state.totals == {"gone": 1, "came": 1}
    assert state.losses == {2: pytest.approx(3.7), 3: pytest.approx(3.6)}
    assert state.tokens_per_second == pytest.approx(4 * 2 * 16 / 2.0)


def test_of_two_records_of_a_peer_the_newest_counts() -> None:
    state = SwarmState(RUN)
    state.look([record(A1, 1, sequence_number=7, occupancy=3), record(A1, 1, sequence_number=6, occupancy=1)], 1.0)
    assert state.records[A1].occupancy == 3


def test_the_terminal_view_names_peers_and_empty_stages() -> None:
    state = SwarmState(RUN)
    state.look(swarm()[:3], 1.0)
    shown = "\n".join(line.plain for line in swarm_view(state, (120, 40)))
    assert A1[-6:] in shown and "no peer is online in stage 2" in shown
    assert plain_line(state).startswith("iteration 3  loss 3.7000")


def test_a_peer_that_falls_silent_is_told_and_not_counted_as_online() -> None:
    state = SwarmState(RUN)
    state.look(swarm(), 1.0)
    (change,) = state.look(swarm(), 3.0, frozenset({A1}))
    assert (change.kind, change.peer) == ("silent", A1) and "does not answer" in change.text
    assert state.online()[1] == 1
    assert state.look(swarm(), 5.0)[0].kind == "answers"


def test_one_peer_that_lies_about_its_version_does_not_move_the_run() -> None:
    state = SwarmState(RUN)
    liar = record(PeerId("Qmliar00"), 0, weights_version=1_000_000, progress={"loss": -9.0, "iteration_s": 0.001})
    state.look([*swarm(), liar], 1.0)
    assert state.version == 3 and state.losses == {2: pytest.approx(3.7)}


def test_a_record_that_says_what_cannot_be_is_refused_and_counted() -> None:
    state = SwarmState(RUN)
    state.look([*swarm(), record(PeerId("Qmliar00"), 1, weights_version=1 << 62)], 1.0)
    assert state.refused == 1 and PeerId("Qmliar00") not in state.records


def test_held_out_loss_is_taken_where_records_carry_it() -> None:
    state = SwarmState(RUN)
    state.look(swarm(progress={"loss": 3.0, "iteration_s": 1.0, HELD_OUT: 3.5}), 1.0)
    assert state.held_out == {2: 3.5} and state.samples[0].held_out_loss == 3.5


def test_iterations_that_are_done_again_are_forgotten() -> None:
    state = SwarmState(RUN)
    for version in (3, 4, 5):
        state.look(swarm(version), float(version))
    state.look([replace(r, epoch=1) for r in swarm(4)], 6.0)
    assert sorted(state.losses) == [2, 3]


def test_throughput_is_what_a_peer_was_credited_with_between_its_records() -> None:
    state = SwarmState(RUN)
    state.look(swarm(3), 10.0)
    assert state.microbatches_per_s(A1) is None
    state.look(swarm(5), 14.0)
    assert state.microbatches_per_s(A1) == pytest.approx(1.0)


def codes(state: SwarmState, now: float) -> dict[str, Level]:
    return {finding.code: finding.level for finding in findings(state, now)}


def test_the_state_of_a_run_is_said_in_words() -> None:
    state = SwarmState(RUN)
    state.look(swarm(), 100.0)
    assert codes(state, 101.0) == {"thin_stage": Level.NOTICE, "going": Level.OK}
    assert codes(state, 200.0)["stalled"] is Level.ALERT
    assert findings(state, 200.0)[0].level is Level.ALERT, "the worst first"
    state.look(swarm()[:3], 102.0)
    assert codes(state, 103.0)["empty_stage"] is Level.ALERT
    state.look([], 104.0)
    assert codes(state, 105.0) == {"unseen": Level.ALERT}
    state.look(swarm(100), 106.0)
    assert codes(state, 10_000.0) == {"done": Level.OK}, "a run that has ended is no stall"


def test_that_copies_differ_is_told_and_since_when() -> None:
    state = SwarmState(replace(RUN, replica_sync=4))
    state.look(swarm(9), 100.0)
    [finding] = [finding for finding in findings(state, 101.0) if finding.code == "copies_differ"]
    assert "averaged every 4 iterations and differ in between" in finding.text
    assert "of up to 3 iterations" in finding.text and "(1 iteration since the last average)" in finding.text
    state.look(swarm(12), 102.0)
    assert any("(equal now)" in finding.text for finding in findings(state, 103.0))


def test_a_stage_that_was_rebuilt_is_told_for_good() -> None:
    """By the monitor in all its forms, and by the ledger."""
    state = SwarmState(RUN)
    state.look(swarm(), 100.0)
    sums = Contributions({(Stage(1), A1): Contribution(3, 20, 0)}).with_rebuilt([Stage(2)], 7)
    state.hear_contributions(pages_of(DATA, RUN.run_id, (1, 9), sums, 1), {DATA})
    assert codes(state, 101.0)["rebuilt_stage"] is Level.NOTICE
    words = "tage 2 was rebuilt from its neighbours' weights after 7 iterations"
    assert any(words in finding.text for finding in findings(state, 101.0))
    assert any(words in line for line in ledger_table(state))
    assert plain_ledger(state.told, RUN, state.records)["rebuilt"] == [{"stage": 2, "version": 7}]


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.24, "3.2 s"), (59.7, "60 s"), (250, "4 min 10 s"), (7500, "2 h 5 min"), (86400, "1 d")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


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
    progress.hear("stepped", {"iteration": 0, "microbatches": 2, "skipped": False}, 15.0)
    assert progress.figures() == {"microbatches": 2.0, "loss": 5.5, "iteration_s": 5.0}
    assert progress.route_seconds() == {route_name((A1, B1)): 3.0}


def told(version: int, loss: float, best: int, waited: int) -> dict[str, float]:
    """What a data peer's record says when a commit has told it of an evaluation."""
    progress = Progress()
    progress.hear("stepped", {"iteration": version, "microbatches": 2, "skipped": False}, 1.0)
    progress.hear("evaluated", {"iteration": version, "loss": loss}, 1.0)
    fields = {"iteration": version, "loss": loss, "best_version": best, "best_loss": 2.5, "waited": waited, "patience": 3}
    progress.hear("evaluations", fields, 1.0)
    return {**progress.figures(), "loss": 3.0, "iteration_s": 1.0}


def test_what_evaluations_have_come_to_is_shown_and_ends_the_run_for_observers_too() -> None:
    state = SwarmState(replace(RUN, evaluation=EvaluationSpec(every=10, held_out=0.1, patience=3)))
    state.look(swarm(31, progress=told(30, 2.75, 10, 2)), 1.0)
    assert state.held_out == {30: 2.75}
    texts = [finding.text for finding in findings(state, 1.0)]
    assert "The lowest evaluation loss is 2.5000, after 10 iterations; 1 more without a lower one ends the run." in texts
    state.look(swarm(41, progress=told(40, 2.75, 10, 3), completion=Completion.HERE), 2.0)
    [finding] = findings(state, 2.0)
    why = "3 evaluations in a row were not better than the one after 10 iterations (loss 2.5000)"
    assert (finding.code, finding.text) == ("ended_early", f"The run has ended after 41 iterations: {why}.")


def test_a_loss_that_is_not_of_these_weights_is_not_told_of_them() -> None:
    progress = Progress()
    progress.hear("evaluated", {"iteration": 0, "loss": 4.0}, 1.0)
    assert progress.figures()[HELD_OUT] == 4.0
    for iteration in (0, 1):
        progress.hear("stepped", {"iteration": iteration, "microbatches": 2, "skipped": False}, 1.0)
    progress.hear("evaluated", {"iteration": 3, "loss": float("nan")}, 1.0)
    assert HELD_OUT not in progress.figures()


@pytest.mark.parametrize("verb", ["monitor", "routes"])
@pytest.mark.parametrize(("flags", "says"), [([], "--run_id"), (["--run_id", "r"], "--initial_peers")])
def test_a_mistake_is_one_line(verb: str, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, *flags]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
