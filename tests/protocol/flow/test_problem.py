"""Problems from files and from views; plans in ids. Every mistake in a file is named: file, field, what was expected."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.errors import InputError, LocalProtocolError
from gwtf_p2p.protocol.flow.min_cost import NO_ARC
from gwtf_p2p.protocol.flow.plan_keeper import Flow, Plan, check_plan, plan_problem, with_fair_demands
from gwtf_p2p.protocol.flow.problem import problem_of_view
from gwtf_p2p.protocol.flow.problem_file import parse_problem
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.hop_cost import hop_cost_us
from tests.exploring import examples
from tests.protocol.flow.problems import Size, random_problem, random_view


def small() -> dict[str, Any]:
    """Two stages: r1, r2 in the first, r3 in the second."""
    return {
        "name": "small",
        "stages": 2,
        "peers": [
            {"id": "d0", "role": "data", "stage": 0, "demand": 3},
            {"id": "r2", "role": "stage", "stage": 1, "capacity": 1},
            {"id": "r1", "role": "stage", "stage": 1, "capacity": 2},
            {"id": "r3", "role": "stage", "stage": 2, "capacity": 3},
        ],
        "links": [
            {"from": "d0", "to": "r1", "cost": 1},
            {"from": "d0", "to": "r2", "cost": 2},
            {"from": "r1", "to": "r3", "cost": 3},
            {"from": "r2", "to": "r3", "cost": 4},
            {"from": "r3", "to": "d0", "cost": 5},
        ],
    }


def parsed(plain: object) -> Any:
    return parse_problem(json.dumps(plain), "p.json")


def test_peers_are_sorted_and_costs_are_used_as_they_are() -> None:
    problem = parsed(small())
    assert problem.layers == (("d0",), ("r1", "r2"), ("r3",), ("d0",))
    assert [c.tolist() for c in problem.capacities] == [[3], [2, 1], [3], [3]]
    assert [c.tolist() for c in problem.costs_us] == [[[1, 2]], [[3], [4]], [[5]]]
    plan, reason = plan_problem(problem)
    assert (len(plan.flows), plan.total_cost_us, plan.max_cost_us, plan.lower_bound_us) == (3, 29, 11, 29)
    assert reason == "3 of 3 flows wanted; cost 29 is the least possible"


def test_the_order_in_the_file_does_not_matter() -> None:
    turned = small()
    turned["peers"].reverse()
    turned["links"].reverse()
    assert plan_problem(parsed(turned)) == plan_problem(parsed(small()))


def test_links_that_are_not_listed_do_not_exist() -> None:
    plain = small()
    del plain["links"][0]
    problem = parsed(plain)
    assert problem.costs_us[0].tolist() == [[NO_ARC, 2]]
    plan, reason = plan_problem(problem)
    assert [f.stage_peers for f in plan.flows] == [("r2", "r3")]
    assert reason.startswith("1 of 3 flows wanted, links between the stages are missing")


def test_a_stage_without_peers_leaves_no_flow_and_says_which_stage() -> None:
    plain = small()
    del plain["peers"][3], plain["links"][2:]
    plan, reason = plan_problem(parsed(plain))
    assert plan.flows == ()
    assert reason == "0 of 3 flows wanted, stage 2 has capacity for 0"


def test_links_with_latency_and_bandwidth_cost_what_the_paper_says() -> None:
    plain = small()
    plain["microbatch_bytes"] = 1_000_000
    plain["peers"][2]["compute_s"] = 0.2  # r1
    plain["links"][2] = {"from": "r1", "to": "r3", "latency_s": 0.1, "bandwidth_bytes_per_s": 1e6}
    assert parsed(plain).costs_us[1].tolist() == [[hop_cost_us((0.2, 0), (0.1, 0.1), (1e6, 1e6), 1_000_000)], [4]]
    plain["links"].append({"from": "r3", "to": "r1", "latency_s": 0.3, "bandwidth_bytes_per_s": 3e6})
    assert parsed(plain).costs_us[1].tolist() == [[hop_cost_us((0.2, 0), (0.1, 0.3), (1e6, 3e6), 1_000_000)], [4]]


def test_with_one_stage_both_links_to_the_data_peer_are_read() -> None:
    plain = {
        "name": "one stage",
        "stages": 1,
        "microbatch_bytes": 0,
        "peers": [
            {"id": "d", "role": "data", "stage": 0, "demand": 1},
            {"id": "r", "role": "stage", "stage": 1, "capacity": 1},
        ],
        "links": [
            {"from": "d", "to": "r", "latency_s": 0.1, "bandwidth_bytes_per_s": 1},
            {"from": "r", "to": "d", "latency_s": 0.3, "bandwidth_bytes_per_s": 1},
        ],
    }
    assert plan_problem(parsed(plain))[0].flows == (Flow(PeerId("d"), (PeerId("r"),), 400_000),)


def changed(**changes: Any) -> dict[str, Any]:
    return {**small(), **changes}


def peer(n: int, **fields: Any) -> dict[str, Any]:
    plain = small()
    plain["peers"][n] = {k: v for k, v in {**plain["peers"][n], **fields}.items() if v is not ...}
    return plain


def link(n: int, **fields: Any) -> dict[str, Any]:
    plain = small()
    plain["links"][n] = {k: v for k, v in {**plain["links"][n], **fields}.items() if v is not ...}
    return plain


TIMED = {"cost": ..., "latency_s": 0.1, "bandwidth_bytes_per_s": 1e6}
MISTAKES = [
    ([], "p.json: expected an object, got a list"),
    ({}, "links: expected this field, it is missing"),
    (changed(stages=0), "stages: expected a whole number from 1 to 1000, got 0"),
    (changed(stages=True), "stages: expected a whole number"),
    (changed(stages=2.0), "stages: expected a whole number"),
    (changed(stages=10**9), "stages: expected a whole number from 1 to 1000"),
    (changed(name=""), "name: expected a text that is not empty"),
    (changed(peers={}), "peers: expected a list, got an object"),
    (changed(peers=[1]), "peers[0]: expected an object, got a number"),
    (changed(peers=small()["peers"][1:], links=[]), 'peers: expected at least one peer with role "data"'),
    (changed(stage=3), "stage: expected only the fields links, microbatch_bytes, name, peers, stages"),
    (changed(microbatch_bytes=-1), "microbatch_bytes: expected a whole number from 0"),
    (peer(1, role="worker"), 'peers[1].role: expected "data" or "stage", got \'worker\''),
    (peer(1, role=...), "peers[1].role: expected this field, it is missing"),
    (peer(1, role=[]), "peers[1].role: expected"),
    (peer(1, stage=3), "peers[1].stage: expected a whole number from 1 to 2, got 3"),
    (peer(1, stage=0), "peers[1].stage: expected a whole number from 1 to 2, got 0"),
    (peer(0, stage=1), "peers[0].stage: expected 0, got 1"),
    (peer(1, capacity=-1), "peers[1].capacity: expected a whole number from 0 to 1073741824, got -1"),
    (peer(1, capacity=1.5), "peers[1].capacity: expected a whole number"),
    (peer(1, capacity=...), "peers[1].capacity: expected this field, it is missing"),
    (peer(1, demand=1), "peers[1].demand: expected only the fields capacity, compute_s, id, role, stage"),
    (peer(0, demand="3"), 'peers[0].demand: expected a whole number from 0 to 1073741824, got "3"'),
    (peer(1, id="r1"), "peers[2].id: expected each peer once, 'r1' is listed again"),
    (peer(1, id=7), "peers[1].id: expected a text that is not empty, got a number"),
    (peer(1, compute_s=-0.1), "peers[1].compute_s: expected a finite number of at least 0, got -0.1"),
    (link(0, to="r9"), "links[0].to: expected the id of a listed peer, got 'r9'"),
    (link(0, to="r3"), "links[0].to: expected a peer of the stage after 0, got 'r3' of stage 2"),
    (link(0, **{"from": "r2"}), "links[0].to: expected a peer of the stage after 1, got 'r1' of stage 1"),
    (link(2, **{"from": "r3", "to": "r1"}), "links[2].to: expected a peer of the stage after 2, got 'r1' of stage 1"),
    (link(0, to="r2"), "links[1]: expected each link once, 'd0' to 'r2' is listed again"),
    (link(0, cost=-1), "links[0].cost: expected a whole number from 0"),
    (link(0, cost=1.5), "links[0].cost: expected a whole number"),
    (link(0, cost=None), "links[0].cost: expected a whole number from 0 to 1099511627776, got null"),
    (link(0, cost=...), "links[0].bandwidth_bytes_per_s: expected this field, it is missing"),
    (link(0, costs=1), "links[0].costs: expected only the fields"),
    (link(0, **TIMED), "microbatch_bytes: expected this field, it is missing"),
    (link(0, **{**TIMED, "bandwidth_bytes_per_s": 0}), "links[0].bandwidth_bytes_per_s: expected a number above 0, got 0"),
    (link(0, **{**TIMED, "latency_s": -1}), "links[0].latency_s: expected a finite number of at least 0, got -1"),
    (link(0, **{**TIMED, "latency_s": "fast"}), 'links[0].latency_s: expected a number of at least 0, got "fast"'),
    (link(0, **{**TIMED, "latency_s": float("nan")}), "links[0].latency_s: expected a finite number of at least 0, got NaN"),
    (
        {**link(0, **{**TIMED, "latency_s": 1e14}), "microbatch_bytes": 1},
        "links[0]: expected a cost of at most 1099511627776 microseconds",
    ),
]


@pytest.mark.parametrize(("plain", "message"), MISTAKES, ids=[message[:60] for _, message in MISTAKES])
def test_a_mistake_is_named(plain: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(plain)
    text = str(caught.value)
    assert text.startswith("p.json: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", "nul"])
def test_what_is_not_json_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InputError, match=r"p\.json: expected JSON, but"):
        parse_problem(text, "p.json")


@examples(200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["stages", "peers", "links", "id", "role", "stage", "cost"]), inner, max_size=4)
        ),
    )
)
def test_any_json_is_a_problem_or_a_named_mistake(plain: object) -> None:
    for text in (json.dumps(plain), json.dumps(changed(peers=[plain])), json.dumps(changed(links=[plain]))):
        try:
            parse_problem(text, "p.json")
        except InputError as error:
            assert str(error).startswith("p.json: ")


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_a_view_are_those_of_its_hops_to_the_microsecond(seed: int) -> None:
    view = random_view(np.random.default_rng(seed), Size(stages=3, stage_peers=5, data_peers=2))
    problem = problem_of_view(view)
    for k, costs in enumerate(problem.costs_us):
        for i, sender in enumerate(problem.layers[k]):
            for j, receiver in enumerate(problem.layers[k + 1]):
                assert costs[i, j] == view.hop_cost_us(sender, receiver)
    assert problem.capacities[0].tolist() == [view.records[p].capacity for p in view.data_peers]


def test_demands_are_cut_in_proportion_to_what_the_stage_peers_carry() -> None:
    plain = small()
    for name, demand in (("d1", 7), ("d2", 1), ("d3", 0)):
        plain["peers"].append({"id": name, "role": "data", "stage": 0, "demand": demand})
    cut = with_fair_demands(parsed(plain))
    assert [(d.peer, d.demand) for d in cut.data_peers] == [("d0", 1), ("d1", 1), ("d2", 1), ("d3", 0)]
    plain["peers"][2]["capacity"] = plain["peers"][3]["capacity"] = 9
    cut = with_fair_demands(parsed(plain))
    assert [d.demand for d in cut.data_peers] == [3, 5, 1, 0], "9 of 11 wanted: one each, then 6 shared as 2 to 6"
    plain["peers"][2]["capacity"] = plain["peers"][3]["capacity"] = 12
    assert with_fair_demands(parsed(plain)).demand == 11


@examples(40)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_fair_demands_use_all_there_is_and_ask_for_nothing_new(seed: int, data_peers: int) -> None:
    problem = random_problem(np.random.default_rng(seed), Size(stages=2, stage_peers=3, data_peers=data_peers, demand=6))
    cut = with_fair_demands(problem)
    room = min(int(c.sum()) for c in problem.capacities[1:-1])
    assert cut.demand == min(problem.demand, room)
    assert all(0 <= c.demand <= d.demand for c, d in zip(cut.data_peers, problem.data_peers, strict=True))
    if room >= data_peers:
        assert all(c.demand >= 1 for c in cut.data_peers)


def test_a_plan_that_breaks_a_rule_is_our_bug() -> None:
    problem = parsed(small())
    good = Flow(PeerId("d0"), (PeerId("r1"), PeerId("r3")), 9)
    check_plan(problem, Plan((good, good)))
    for flows, what in (
        ((good, good, good), "capacity"),
        ((Flow(PeerId("d0"), (PeerId("r1"), PeerId("r3")), 8),), "wrong costs"),
        ((Flow(PeerId("d0"), (PeerId("r3"), PeerId("r1")), 9),), "unknown peers"),
        ((Flow(PeerId("d0"), (PeerId("r1"),), 9),), "unknown peers"),
    ):
        with pytest.raises(LocalProtocolError, match=what):
            check_plan(problem, Plan(flows))
