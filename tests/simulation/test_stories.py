"""Seeded stories: the protocol's machines train, counted not computed, in virtual time."""

from __future__ import annotations

import pytest

from tests.simulation.swarm import Swarm, build


def assert_exactly_once(swarm: Swarm, iterations: int, stages: int, microbatches: int, data_peers: int = 1) -> None:
    """Every microbatch entered exactly one committed gradient in every stage."""
    credited = swarm.credited()
    expected = {
        (i, k, f"data_{d}/{i}/{m}")
        for i in range(iterations)
        for k in range(stages + 1)
        for d in range(data_peers)
        for m in range(microbatches)
    }
    done = {c for c in credited if c[0] < iterations}
    assert done == expected, f"missing {sorted(expected - done)[:5]}, extra {sorted(done - expected)[:5]}"
    assert max(credited.values()) == 1, [c for c, n in credited.items() if n > 1][:5]


@pytest.mark.parametrize("data_peers", [1, 2, 3])
def test_trains_without_faults(data_peers: int) -> None:
    swarm = build(data_peers=data_peers)
    swarm.run(iterations=4)
    assert_exactly_once(swarm, 4, 3, 4, data_peers)
    assert not swarm.count("recovery") and not swarm.count("peer_lost")


def test_a_full_relay_answers_busy_and_nothing_is_lost() -> None:
    swarm = build(relays=1, microbatches=8, capacity=2)
    swarm.run(iterations=2)
    assert_exactly_once(swarm, 2, 3, 8)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("at_s", [1.6, 1.8, 2.0, 2.2, 2.4])
def test_one_relay_is_lost_at_any_time(fault: str, stage: int, at_s: float) -> None:
    swarm = build()
    kernel = swarm.world.kernel
    kernel.at(at_s, lambda: getattr(swarm.world, fault)(f"relay_{stage}_1"))
    swarm.run(iterations=4)
    assert_exactly_once(swarm, 4, 3, 4)
    assert swarm.count("peer_lost"), "the fault must have been noticed"
