"""What a run's reports add up to, and what the terminal shows of it."""

from __future__ import annotations

import pytest

from gwtf_p2p.cli.shared.churn import ChurnScript, parse_churn
from gwtf_p2p.live.emulation.faults import MOMENTS
from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.monitor.terminal.fit import sparkline
from gwtf_p2p.monitor.terminal.local_view import PeerLine, local_view, progress_line
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec


def stepped(iteration: int, of: int, different: int) -> dict[str, object]:
    return {
        "name": "stepped",
        "iteration": iteration,
        "microbatches": of,
        "of": of,
        "different": different,
        "useful_s": 1.0,
        "wasted_s": 0.0,
        "computed_s": 1.0,
    }


def run_of(*stage_peer_groups: tuple[int, int]) -> RunState:
    """One iteration of two microbatches, with what the stage peer stage's group averaged in each of several iterations."""
    state = RunState(stages=1, expected=2, tokens_per_microbatch=10, names={"Qm1": "stage1.0"})
    for iteration, (of, different) in enumerate(stage_peer_groups):
        state.hear("data0", 0, {"name": "iteration_begins", "iteration": iteration}, 10.0 * iteration)
        for index in range(2):
            done = {"name": "microbatch_done", "microbatch": f"x/{iteration}/{index}", "loss": 4.0 - index, "route": ["Qm1"]}
            state.hear("data0", 0, done, 10.0 * iteration + 1)
        state.hear("stage1.0", 1, stepped(iteration, of, different), 10.0 * iteration + 2)
        state.hear("data0", 0, stepped(iteration, 2, 2), 10.0 * iteration + 4)
    return state


def test_a_clean_run_adds_up() -> None:
    state = run_of((2, 2), (2, 2))
    assert state.accounting() == {"done": 4, "retried": 0, "lost": 0, "double_counted": 0}
    assert state.loss(0) == 3.5
    assert state.iteration_seconds() == [4.0, 4.0]
    assert state.tokens_per_second() == pytest.approx(2 * 2 * 10 / 8.0)
    assert state.routes == {("stage1.0",): 4}


@pytest.mark.parametrize(
    ("groups", "lost", "double"), [(((1, 1), (2, 2)), 1, 0), (((3, 2), (2, 2)), 0, 1), (((2, 1), (2, 2)), 1, 1)]
)
def test_a_ledger_that_does_not_add_up_is_told(groups: tuple[tuple[int, int], ...], lost: int, double: int) -> None:
    accounting = run_of(*groups).accounting()
    assert (accounting["lost"], accounting["double_counted"]) == (lost, double)


def test_a_step_that_a_stage_has_not_told_of_yet_is_no_loss_of_a_run_that_is_broken_off() -> None:
    """The data peer's word comes first; what was told of, and is not whole, stays a loss."""
    state = run_of((2, 2), (1, 1))
    state.hear("data0", 0, stepped(2, 2, 2), 24.0)
    assert state.untold() == [2]
    assert state.accounting()["lost"] == 3
    assert state.accounting(state.untold()) == {"done": 3, "retried": 0, "lost": 1, "double_counted": 0}
    state.hear("stage1.0", 1, stepped(2, 2, 2), 24.1)
    assert not state.untold() and state.accounting()["lost"] == 1


def test_the_view_names_peers_losses_and_events() -> None:
    state = run_of((2, 2))
    recovery = {"name": "recovery", "kind": "backward", "microbatch": "x/0/0", "lost": "Qm1", "reason": "gone"}
    state.hear("data0", 0, recovery, 5.0)
    lines = {"bootstrap": PeerLine("bootstrap", -1, "online"), "stage1.0": PeerLine("stage", 1, "online", 2, 1)}
    text = "\n".join(line.plain for line in local_view(state, lines, 5, (100, 30)))
    for expected in ("step 1/5", "stage1.0", "3.5000", "backward recovery", "routes used most"):
        assert expected in text
    assert "loss 3.5000" in progress_line(state, 0)


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([]) == ""


def test_what_a_crash_cost_is_told() -> None:
    """From the moment of the kill to the moment at which the next peer has the microbatch; the killed peer's work is waste."""
    state = run_of((2, 2))
    state.hear("stage1.0", 1, {"name": "fault", "action": "kill", "moment": "averaging", "at": 7.0, "computed_s": 1.5}, 7.0)
    recovery = {"name": "recovery", "kind": "forward", "microbatch": "x/1/0", "lost": "Qm1", "reason": "gone"}
    state.hear("data0", 0, recovery, 7.1)
    state.hear("data0", 0, {"name": "recovered", "microbatch": "x/1/0", "seconds": 0.1, "at": 7.25}, 7.3)
    state.hear("data0", 0, {**stepped(1, 2, 2), "hop_s": 0.125}, 8.0)
    figures = {"computed_s": 2.0, "resent_bytes": 64, "kept_bytes": 10, "most_kept_bytes": 20, "resident_bytes": 30}
    state.hear("data0", 0, {"name": "figures", **figures}, 8.1)
    told = state.recovery.plain()
    assert (told["delay_ms"], told["delay_count"], told["hop_ms"], told["delay_hops"]) == (250.0, 1, 125.0, 2.0)
    assert (told["computed_s"], told["wasted_s"], told["resent_bytes"], told["most_kept_bytes"]) == (3.5, 0.5, 64, 20)
    assert "2.0 hops" in " ".join(state.recovery.lines())


def test_a_peer_that_starts_again_counts_with_all_its_lives() -> None:
    state = run_of()
    for life in (1.0, 2.0):
        state.hear("stage1.0", 1, {"name": "started", "peer": "Qm1", "maddrs": []}, 0.0)
        figures = {"resent_bytes": 8, "kept_bytes": 0, "most_kept_bytes": 0, "resident_bytes": 0}
        state.hear("stage1.0", 1, {"name": "figures", "computed_s": life, **figures}, 1.0)
    assert (state.recovery.computed_s, state.recovery.resent_bytes) == (3.0, 16)


def test_iterations_that_the_swarm_goes_back_over_are_forgotten() -> None:
    state = run_of((2, 2), (2, 2), (2, 2))
    state.hear("data0", 0, {"name": "going_back", "version": 1, "reason": "stage 1 is lost"}, 50.0)
    assert sorted(state.ended_at) == [0]
    assert state.accounting()["done"] == 2
    assert state.recovery.useful_s == 2.0


def test_a_stage_without_peers_pauses_the_training_and_the_view_says_so() -> None:
    state = run_of((2, 2))
    state.hear("data0", 0, {"name": "stage_empty", "stage": 1, "iteration": 1}, 5.0)
    assert "paused: stage 1 has no peer" in [line.plain for line in local_view(state, {}, 5, (100, 30))]
    state.hear("data0", 0, {"name": "stage_staffed", "stage": 1, "iteration": 1}, 6.0)
    assert not state.pause


def test_a_churn_script_is_data() -> None:
    script = "kill peer stage=2 index=1 at=averaging iter=3; join stage=1 iter=4; kill bootstrap iter=2; restart data iter=5"
    kill, join, bootstrap, restart = parse_churn(script, MOMENTS).steps
    assert (kill.target, kill.moment, kill.iteration) == ("stage2.1", "averaging", 2)
    assert (join.verb, join.stage, join.iteration) == ("join", 1, 3)
    assert (bootstrap.target, bootstrap.moment) == ("bootstrap", "")
    assert (restart.verb, restart.target) == ("restart", "data0")
    (somebody,) = parse_churn("freeze data index=any at=averaging", MOMENTS).steps
    assert somebody.is_about("data1")
    assert not somebody.is_about("stage1.1")
    assert parse_churn(" ; ", MOMENTS) == ChurnScript()
    assert parse_churn("rate crash=0.1 rejoin=0.5", MOMENTS).rates == ChurnSpec(0.1, 0.5)


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("explode", "explode"),
        ("kill boat", "boat"),
        ("kill at=noon", "noon"),
        ("kill stage=x", "stage"),
        ("join iter=0", "iter"),
        ("restart at=averaging", "at:"),
        ("join data", "expected peer"),
        ("rate crash=2", "crash: expected 0 to 1"),
        ("rate speed=1", "speed"),
        ("rate crash=0.1; rate crash=0.2", "once"),
    ],
)
def test_a_wrong_churn_script_is_refused_by_word(script: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_churn(script, MOMENTS)
