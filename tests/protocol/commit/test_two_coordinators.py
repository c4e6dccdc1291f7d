"""No two attempts of one iteration are ever committed, whoever thinks whom lost and whatever arrives when."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from tests.exploring import examples
from tests.protocol.commit.soup import Soup
from tests.protocol.peers import A2, D2, A, D

PEERS = st.sampled_from([D, D2, A, A2])
CHOICES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["deliver", "deliver", "deliver", "finish_average", "fire", "fail"]), st.integers(0, 40)),
        st.tuples(st.just("think_lost"), PEERS, PEERS),
        st.tuples(st.just("crash"), st.sampled_from([D, D2])),
        st.tuples(st.just("isolate"), st.sampled_from([D, D2, A])),
        st.tuples(st.just("rejoin")),
        st.tuples(st.just("play"), st.integers(1, 60)),
    ),
    max_size=60,
)


def one_average_each(soup: Soup) -> None:
    for position, steps in soup.steps.items():
        assert len(set(steps.values())) == 1, f"epoch and iteration {position}: {steps}"


@examples(60)
@given(st.integers(0, 40), CHOICES)
@example(17, [("isolate", D), ("play", 60), ("rejoin",), ("play", 60)])
def test_no_two_attempts_of_one_iteration_are_ever_committed(begun: int, choices: list[tuple[object, ...]]) -> None:
    """`begun`: so many steps of the iteration's end have gone well before."""
    soup = Soup()
    soup.play(begun)
    for what, *arguments in choices:
        if what == "crash" and soup.dead:
            continue  # of two data peers one is left, else there is nobody to go on
        getattr(soup, str(what))(*arguments)
        one_average_each(soup)


def test_where_everything_arrives_in_order_everybody_applies_the_one_average() -> None:
    soup = Soup()
    soup.calmly(lambda: len(soup.steps.get((0, 2), {})) == 4)
    assert [set(soup.steps[0, i].values()) for i in range(3)] == [{Ballot(2, D)}, {Ballot(1, D)}, {Ballot(1, D)}]


def prepared_by_all() -> Soup:
    """Everybody has prepared the first attempt of D, and D has not heard it yet."""
    soup = Soup()
    soup.calmly(lambda: sum(isinstance(m, msg.Prepared) for _, _, m in soup.bag) == 4)
    return soup


def test_a_coordinator_that_follows_a_dead_one_commits_what_all_have_prepared() -> None:
    soup = prepared_by_all()
    soup.crash(D)
    soup.calmly(lambda: len(soup.steps.get((0, 0), {})) == 3)
    assert set(soup.steps[0, 0].values()) == {Ballot(2, D)}


def test_a_coordinator_that_was_only_thought_dead_and_its_follower_commit_the_same_attempt() -> None:
    soup = prepared_by_all()
    for peer in (D2, A, A2):
        soup.think_lost(peer, D)
    late = [parcel for parcel in soup.bag if parcel[1] == D]
    soup.bag = [parcel for parcel in soup.bag if parcel[1] != D]
    soup.calmly(lambda: len(soup.steps.get((0, 0), {})) >= 2)
    soup.bag += late
    soup.calmly(lambda: len(soup.steps[0, 0]) == 4)
    one_average_each(soup)
    assert set(soup.steps[0, 0].values()) == {Ballot(2, D)}


def test_an_attempt_that_somebody_has_not_prepared_is_replaced_when_its_coordinator_dies() -> None:
    soup = Soup()
    soup.calmly(lambda: sum(isinstance(m, msg.Prepare) for _, _, m in soup.bag) == 4)
    for index in [n for n, (_, _, m) in enumerate(soup.bag) if isinstance(m, msg.Prepare)][::-1]:
        soup.deliver(index)
    soup.averages = [(peer, prepare) for peer, prepare in soup.averages if peer != A2]
    assert len(soup.averages) == 3
    soup.crash(D)
    soup.calmly(lambda: len(soup.steps.get((0, 0), {})) == 3)
    [ballot] = set(soup.steps[0, 0].values())
    assert ballot.coordinator == D2 and ballot.attempt > 2
