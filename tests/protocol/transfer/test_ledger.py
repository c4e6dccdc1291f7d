"""The ledger: who did which stage of a data peer's microbatches, and what has to be done again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.transfer.ledger import NOBODY, Gap, Ledger
from gwtf_p2p.protocol.wire.messages import Credit
from tests.exploring import examples
from tests.protocol.peers import A2, B2, C2, A, B, C, D

LINE = (A, B, C)


def ledger(*lines: tuple[PeerId, ...], lost: set[PeerId] | None = None) -> Ledger:
    gone = lost if lost is not None else set()
    made = Ledger(D, gone.__contains__)
    for index, line in enumerate(lines):
        made.back(index, line)
    return made


def test_a_microbatch_that_is_back_credits_who_did_each_stage() -> None:
    made = ledger(LINE, (A2, B, C))
    assert made.credits() == (Credit(0, LINE), Credit(1, (A2, B, C)))
    assert (
        made.credits_with(1, Stage(1), A2) and not made.credits_with(1, Stage(1), A) and not made.credits_with(2, Stage(1), A)
    )
    assert not made.has_gaps


def test_what_is_credited_to_a_lost_peer_is_a_gap_between_its_neighbours() -> None:
    made = ledger(LINE, (A2, B2, C))
    assert made.void(B)
    assert made.gaps() == [Gap(0, Stage(2), B, A, (C,))]
    assert not made.void(B), "it is credited with nothing any more"


def test_a_peer_that_is_lost_when_its_microbatch_comes_back_leaves_a_gap_at_once() -> None:
    assert ledger(LINE, lost={A}).gaps() == [Gap(0, Stage(1), A, D, (B, C))]


def test_the_lowest_gap_of_a_microbatch_is_closed_first_and_its_path_ends_at_the_next_gap() -> None:
    made = ledger(LINE)
    made.void(C)
    made.void(A)
    assert made.gaps() == [Gap(0, Stage(1), A, D, (B,))]


def test_only_the_stage_and_the_microbatches_that_are_missing_become_void() -> None:
    made = ledger((A, A, A), (A, A, A))
    assert made.void(A, Stage(2), [1])
    assert made.credits() == (Credit(0, (A, A, A)), Credit(1, (A, NOBODY, A)))


def test_a_stand_in_takes_a_void_place_at_once_or_when_it_becomes_void() -> None:
    made = ledger(LINE)
    assert not made.stands_in(0, Stage(2), B2), "the place is not void"
    made.void(B)
    assert made.credits() == (Credit(0, (A, B2, C)),) and not made.has_gaps
    made.void(C)
    assert made.stands_in(0, Stage(3), C2)
    assert made.credits() == (Credit(0, (A, B2, C2)),)


def test_a_lost_stand_in_takes_no_place() -> None:
    lost: set[PeerId] = set()
    made = ledger(LINE, lost=lost)
    made.stands_in(0, Stage(2), B2)
    lost |= {B, B2}
    made.void(B)
    assert made.gaps() == [Gap(0, Stage(2), B, A, (C,))]


def test_a_stand_in_that_says_that_it_does_not_have_it_stands_in_no_more() -> None:
    made = ledger(LINE)
    made.stands_in(0, Stage(2), B2)
    assert not made.void(B2, Stage(2), [0]), "no credit has changed"
    made.void(B)
    assert made.gaps() == [Gap(0, Stage(2), B, A, (C,))]
    assert not made.void(B2, Stage(2), [0])
    assert made.gaps() == [Gap(0, Stage(2), B2, A, (C,))], "who was to redo it does not have it either"


def test_a_peer_that_is_back_is_asked_once_for_each_gap_and_again_after_it_stood_in() -> None:
    made = ledger(LINE)
    made.void(B)
    [gap] = made.gaps()
    assert made.ask_back(gap) and not made.ask_back(gap)
    made.stands_in(0, Stage(2), B)
    assert made.ask_back(gap)


def test_redos_of_one_place_are_counted() -> None:
    made = ledger(LINE, LINE)
    assert made.most_tries() == 0
    made.void(B)
    first, second = made.gaps()
    assert (made.tries(first), made.tries(first), made.tries(second)) == (1, 2, 1)
    assert made.most_tries() == 2


def test_fast_recovery_leaves_gaps_as_long_as_every_stage_has_something() -> None:
    made = ledger(LINE, (A2, B2, C2))
    made.void(B)
    assert made.drop_gaps() == [(0, Stage(2), B)]
    assert not made.has_gaps and made.credits()[0] == Credit(0, (A, NOBODY, C))


def test_fast_recovery_makes_a_line_whole_that_a_stage_needs() -> None:
    made = ledger(LINE)
    made.void(C)
    assert made.drop_gaps() == [], "nobody else did stage 3"
    made = ledger(LINE, LINE)
    made.void(A, Stage(1), [0])
    assert made.drop_gaps() == [(0, Stage(1), A)]
    made.void(B)
    assert made.drop_gaps() == []
    assert made.gaps()[0] == Gap(0, Stage(1), NOBODY, D, ()), "the dropped place of a needed line is a gap again"


def test_another_iteration_begins_with_an_empty_ledger() -> None:
    made = ledger(LINE)
    made.stands_in(0, Stage(2), B2)
    made.void(A)
    made.tries(made.gaps()[0])
    made.clear()
    assert made.credits() == () and not made.has_gaps and made.most_tries() == 0
    made.back(0, LINE)
    made.void(B)
    assert made.has_gaps, "the stand-in was of the iteration before"


PEERS = [A, A2, B, B2, C]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("back"), st.integers(0, 2), st.tuples(*[st.sampled_from(PEERS)] * 3)),
        st.tuples(st.just("stands_in"), st.integers(0, 2), st.integers(1, 3), st.sampled_from(PEERS)),
        st.tuples(st.just("void"), st.sampled_from(PEERS), st.none() | st.integers(1, 3), st.none() | st.integers(0, 2)),
        st.tuples(st.just("lost"), st.sampled_from(PEERS)),
        st.tuples(st.just("drop")),
    ),
    max_size=30,
)


@examples(200)
@given(STEPS, st.booleans())
def test_each_stage_of_each_microbatch_is_credited_at_most_once_and_never_to_who_does_not_have_it(
    steps: list[tuple[object, ...]], fast: bool
) -> None:
    """A place is credited to one peer that did it, or void, or (fast recovery) dropped; nobody lost keeps a credit."""
    lost: set[PeerId] = set()
    made = ledger(lost=lost)
    did: dict[tuple[int, int], set[PeerId]] = {}
    for step in steps:
        match step:
            case "back", int(index), tuple(line) if index not in {c.index for c in made.credits()}:
                made.back(index, line)
                for k, peer in enumerate(line, 1):
                    did.setdefault((index, k), set()).add(peer)
            case "stands_in", int(index), int(stage), peer if index in {c.index for c in made.credits()}:
                made.stands_in(index, Stage(stage), PeerId(str(peer)))
                did.setdefault((index, stage), set()).add(PeerId(str(peer)))
            case "void", peer, stage, index if stage is not None or index is None:
                made.void(
                    PeerId(str(peer)),
                    Stage(stage) if isinstance(stage, int) else None,
                    [index] if isinstance(index, int) else None,
                )
            case "lost", peer:
                lost.add(PeerId(str(peer)))
                made.void(PeerId(str(peer)))
            case ("drop",) if fast:
                made.drop_gaps()
            case _:
                continue
        gaps = made.gaps()
        assert made.has_gaps == bool(gaps)
        assert len({credit.index for credit in made.credits()}) == len(made.credits())
        for credit in made.credits():
            assert len(credit.peers) == 3
            for k, peer in enumerate(credit.peers, 1):
                assert peer == NOBODY or (peer in did[credit.index, k] and peer not in lost)
        if not fast:
            empty = {c.index for c in made.credits() if NOBODY in c.peers}
            assert {gap.index for gap in gaps} == empty, "every void place is asked for, the lowest of each microbatch first"
        for gap in gaps:
            line = next(c.peers for c in made.credits() if c.index == gap.index)
            assert line[gap.stage - 1] == NOBODY
            assert gap.before == (line[gap.stage - 2] if gap.stage > 1 else D)
