"""What a run makes of its evaluations: a table, and what the commits carry of it."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.view.evaluations import ends, up_to, why, with_newest, with_reported
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Evaluated, Evaluations
from gwtf_p2p.protocol.wire.recipe import EvaluationSpec
from tests.protocol.commit.coordinating import LINE, M, average
from tests.protocol.peers import all_answer, goes_round, leading


def after(*losses: float | None, every: int = 10) -> Evaluations | None:
    known: Evaluations | None = None
    for number, loss in enumerate(losses):
        known = with_newest(known, Evaluated(number * every, loss))
    return known


@pytest.mark.parametrize(
    ("losses", "best", "waited"),
    [
        ((3.0,), 0, 0),
        ((3.0, 2.0, 1.0), 20, 0),
        ((3.0, 2.0, 2.0), 10, 1),
        ((3.0, 4.0, 2.9, 3.0, 5.0), 20, 2),
        ((3.0, None, None), 0, 2),
        ((None, None, 7.0), 20, 0),
        ((None, None), -1, 2),
        ((-1.0, -2.0), 10, 0),
    ],
)
def test_the_best_is_the_lowest_loss_and_what_came_since_is_waited_for(
    losses: tuple[float | None, ...], best: int, waited: int
) -> None:
    known = after(*losses)
    assert known is not None and (known.best_version, known.waited) == (best, waited)
    assert [ends(known, patience) for patience in (0, 1, 2, 3)] == [False, waited >= 1, waited >= 2, waited >= 3]


def test_a_version_counts_once() -> None:
    known = after(3.0, 4.0)
    assert with_newest(known, Evaluated(10, 1.0)) == known == with_newest(known, Evaluated(0, 1.0))


def test_what_the_swarm_has_gone_back_from_is_forgotten() -> None:
    known = after(3.0, 2.0, 4.0, 5.0)
    assert up_to(known, 31) == known and up_to(known, 40) == known
    assert up_to(known, 30) == Evaluations(Evaluated(10, 2.0), 10, 2.0, 0), "waiting begins anew"
    assert up_to(known, 10) is None is up_to(None, 5), "the best was of weights that are gone"


def test_of_what_is_reported_only_this_iterations_weights_count() -> None:
    known = after(3.0)
    assert with_reported(known, 10, [None, Evaluated(0, 1.0), Evaluated(20, 1.0)]) == known
    assert with_reported(known, 10, [Evaluated(10, 2.0), Evaluated(10, 1.0)]) == after(3.0, 2.0)


def test_the_reason_names_the_best_version() -> None:
    known, hopeless = after(3.0, 2.0, 4.0, 5.0), after(None, None)
    assert known is not None and hopeless is not None
    assert why(known) == "2 evaluations in a row were not better than the one after 10 iterations (loss 2.0000)"
    assert why(hopeless) == "2 evaluations in a row had no finite loss"


def test_a_commit_carries_what_the_evaluations_have_come_to() -> None:
    """The data peer that has evaluated leads here: what it found is in what all prepare, who sign for the same terms."""
    driven, plain = leading(microbatches=1), leading(microbatches=1)
    driven.handle(ev.Evaluated(0, 2.5))
    for each in (driven, plain):
        goes_round(each, M, LINE)
        all_answer(each)
    asked, without = driven.sent(msg.Prepare), plain.sent(msg.Prepare)
    assert {each.evaluations for each in asked} == {Evaluations(Evaluated(0, 2.5), 0, 2.5)}
    assert {each.evaluations for each in without} == {None}
    assert len({each.terms for each in asked}) == 1 and {each.terms for each in asked} != {each.terms for each in without}
    progress = driven.machine.participant.progress
    assert progress.evaluating.known is None, "nothing is known before the commit"
    average(driven)
    driven.handle(ev.Stepped(0))
    assert progress.version == 1 and progress.evaluating.known == Evaluations(Evaluated(0, 2.5), 0, 2.5)


@pytest.mark.parametrize("field", ["patience", "keep_best"])
def test_a_run_that_evaluates_nothing_cannot_wait_for_it(field: str) -> None:
    with pytest.raises(InputError, match=r"here: evaluation\.every: expected a whole number above 0"):
        EvaluationSpec(**{field: 1}).validate("here")
