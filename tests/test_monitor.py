"""What a run's reports add up to, and what the terminal shows of it."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from gwtf_p2p.cli.churn import parse_churn
from gwtf_p2p.live.faults import MOMENTS
from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.monitor.terminal import PeerLine, progress_line, render, sparkline
from gwtf_p2p.protocol.errors import InputError


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


def run_of(*relay_groups: tuple[int, int]) -> RunState:
    """One iteration of two microbatches, with what the relay stage's group averaged in each of several iterations."""
    state = RunState(stages=1, expected=2, tokens_per_microbatch=10, names={"Qm1": "relay1.0"})
    for iteration, (of, different) in enumerate(relay_groups):
        state.hear("data0", 0, {"name": "iteration_begins", "iteration": iteration}, 10.0 * iteration)
        for index in range(2):
            done = {"name": "microbatch_done", "microbatch": f"x/{iteration}/{index}", "loss": 4.0 - index, "route": ["Qm1"]}
            state.hear("data0", 0, done, 10.0 * iteration + 1)
        state.hear("relay1.0", 1, stepped(iteration, of, different), 10.0 * iteration + 2)
        state.hear("data0", 0, stepped(iteration, 2, 2), 10.0 * iteration + 4)
    return state


def test_a_clean_run_adds_up() -> None:
    state = run_of((2, 2), (2, 2))
    assert state.accounting() == {"done": 4, "retried": 0, "lost": 0, "double_counted": 0}
    assert state.loss(0) == 3.5
    assert state.iteration_seconds() == [4.0, 4.0]
    assert state.tokens_per_second() == pytest.approx(2 * 2 * 10 / 8.0)
    assert state.routes == {("relay1.0",): 4}


@pytest.mark.parametrize(
    ("groups", "lost", "double"), [(((1, 1), (2, 2)), 1, 0), (((3, 2), (2, 2)), 0, 1), (((2, 1), (2, 2)), 1, 1)]
)
def test_a_ledger_that_does_not_add_up_is_told(groups: tuple[tuple[int, int], ...], lost: int, double: int) -> None:
    accounting = run_of(*groups).accounting()
    assert (accounting["lost"], accounting["double_counted"]) == (lost, double)


def test_the_view_names_peers_losses_and_events() -> None:
    state = run_of((2, 2))
    recovery = {"name": "recovery", "kind": "backward", "microbatch": "x/0/0", "lost": "Qm1", "reason": "gone"}
    state.hear("data0", 0, recovery, 5.0)
    out = StringIO()
    lines = {"bootstrap": PeerLine("bootstrap", -1, "online"), "relay1.0": PeerLine("relay", 1, "online", 2, 1)}
    Console(file=out, width=100).print(render(state, lines, "demo", 5))
    text = out.getvalue()
    for expected in ("step 1/5", "relay1.0", "3.5000", "backward recovery", "routes used most"):
        assert expected in text
    assert "loss 3.5000" in progress_line(state, 0)


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([]) == ""


def test_a_churn_script_is_data() -> None:
    kill, join = parse_churn("kill relay stage=2 index=1 at=averaging iter=3; join stage=1 iter=4", MOMENTS)
    assert (kill.target, kill.moment, kill.iteration) == ("relay2.1", "averaging", 2)
    assert (join.verb, join.stage, join.iteration) == ("join", 1, 3)
    assert parse_churn(" ; ", MOMENTS) == []


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("explode", "explode"),
        ("kill boat", "boat"),
        ("kill at=noon", "noon"),
        ("kill stage=x", "stage"),
        ("join iter=0", "iter"),
    ],
)
def test_a_wrong_churn_script_is_refused_by_word(script: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_churn(script, MOMENTS)
