"""Whatever well-formed message comes from whomever, at whatever moment: nothing ends, and training goes on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.fuzz import fuzz_bytes
from experiments.support.hostile_simulated import flood, simulated
from experiments.support.strange_messages import OUTSIDERS, SENDERS, strange_run


@pytest.mark.parametrize("senders", SENDERS)
@settings(derandomize=True, max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_a_strange_message_ends_nobody_and_training_goes_on(senders: str, seed: int) -> None:
    assert strange_run(seed, senders).sent > 20


@pytest.mark.slow
@pytest.mark.parametrize("senders", SENDERS)
@settings(derandomize=True, max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_hundreds_of_strange_runs_end_nobody(senders: str, seed: int) -> None:
    strange_run(seed, senders)


def test_outsiders_that_break_the_rules_are_barred_and_no_peer_of_the_swarm_is() -> None:
    barred: set[str] = set()
    for seed in range(5):
        reports = strange_run(seed, "outsiders", messages=300).swarm.reported("peer_barred")
        barred |= {str(report.fields["peer"]) for _, report, _ in reports}
    assert barred and barred <= set(OUTSIDERS)


def test_a_flood_of_an_outsiders_questions_leaves_a_swarm_its_pace() -> None:
    line = simulated("flood", flood, seed=0)
    assert line["per_minute"] == line["per_minute_in_peace"] and line["sender_barred"]
    assert (line["ended"], line["lost"], line["double_counted"]) == (False, 0, 0)


def test_damaged_bytes_are_refused_by_every_decoder() -> None:
    assert fuzz_bytes(400, seed=1) == 0
