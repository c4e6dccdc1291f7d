"""Who was refused for want of a slot: it takes the next one, hears of it, and waits for nothing else."""

from __future__ import annotations

from statistics import median

import pytest

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.lifecycle import Sending
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.room import Room
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import LATENCY_S, SmallConfig, SmallSwarm, small_swarm
from tests.simulation.recovery.test_stories import HOP_S, everything


def slots_left_empty_s(swarm: SmallSwarm, iterations: int) -> float:
    """The longest that there was a free slot in a stage while a peer of the stage before had a microbatch without a route."""
    before = swarm.world.on_event
    assert before is not None
    since: dict[int, float] = {}
    longest = 0.0

    def watch(peer: PeerId, event: ev.Event, now: float) -> None:
        nonlocal longest
        before(peer, event, now)
        machines = [p.machine for p in swarm.world.peers.values()]
        for stage in range(1, swarm.config.stages + 1):
            stage_peers = [m for m in machines if isinstance(m, StagePeer) and m.ctx.stage == stage]
            waiting = [h for m in machines if m.ctx.stage == stage - 1 for h in m.ctx.held.values()]
            is_left = any(m.occupancy < m.capacity for m in stage_peers) and any(h.sending is Sending.ROUTING for h in waiting)
            if is_left:
                longest = max(longest, now - since.setdefault(stage, now))
            else:
                since.pop(stage, None)

    swarm.world.on_event = watch
    assert swarm.run(iterations) == everything(swarm, iterations)
    return longest


def test_a_free_slot_is_taken_at_once_by_who_was_refused() -> None:
    """It hears of the slot, and offers: two hops of latency, not as long as between two tries."""
    swarm = small_swarm(SmallConfig(capacity=1, microbatches=6))
    assert 0.0 < slots_left_empty_s(swarm, 3) <= 3 * LATENCY_S


def test_nobody_waits_for_ever_when_no_word_of_a_free_slot_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "tell_refused", lambda self: None)
    swarm = small_swarm(SmallConfig(capacity=1, microbatches=6), [Fault("kill", PeerId("relay_2_1"), at_s=2.5)])
    assert swarm.run(iterations=3) == everything(swarm, 3)


def test_after_a_kill_microbatches_wait_for_nothing_but_slots() -> None:
    """One stage peer of two slots is left. The median delay is a few hops, where a blind retry took twice as long."""
    delays_s = []
    for i in range(10):
        swarm = small_swarm(SmallConfig(capacity=2, microbatches=6), [Fault("kill", PeerId("relay_2_1"), at_s=3 + 0.2 * i)])
        assert swarm.run(iterations=4) == everything(swarm, 4)
        delays_s += [at - swarm.faults.fired[0][0] for _, _, at in swarm.reported("recovered")]
    assert median(delays_s) <= 3 * HOP_S
