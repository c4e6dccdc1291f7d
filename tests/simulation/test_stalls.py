"""What every peer says of a stall that it is in: the last peer of a stage dies and comes back, work is redone."""

from __future__ import annotations

from collections.abc import Iterator

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.stall.watch import News, StallWatch, Wanted, told, waits_for
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

LOOK_S, ALERT_AFTER_S = 5.0, 20.0


class Watched:
    """A swarm in which every peer looks every few seconds, as the live one does."""

    def __init__(self, config: SmallConfig) -> None:
        self.swarm: SmallSwarm = small_swarm(config)
        wanted = Wanted(config.data_peers, config.stage_peers)
        self.watches = {peer: StallWatch(wanted, ALERT_AFTER_S) for peer in self.swarm.world.peers}
        self.said: dict[PeerId, list[News]] = {peer: [] for peer in self.watches}
        self.swarm.world.kernel.after(LOOK_S, self._look)

    def _look(self) -> None:
        for peer, watch in self.watches.items():
            simulated = self.swarm.world.peers[peer]
            if simulated.alive and (news := watch.look(simulated.machine, self.swarm.world.kernel.now)) is not None:
                self.said[peer].append(news)
        self.swarm.world.kernel.after(LOOK_S, self._look)

    def run_for(self, seconds: float) -> None:
        self.swarm.world.kernel.run(lambda: False, self.swarm.world.kernel.now + seconds)

    def codes(self, peer: PeerId) -> Iterator[str]:
        return (news.stall.code if news.stall is not None else "" for news in self.said[peer])


def test_everybody_says_which_stage_is_empty_and_that_it_goes_on() -> None:
    watched = Watched(SmallConfig(stages=2, stage_peers=1, data_peers=1))
    swarm, alone = watched.swarm, PeerId("relay_2_0")
    swarm.run(3)
    swarm.world.kill(alone)
    watched.run_for(60.0)
    for peer in (PeerId("data_0"), PeerId("relay_1_0")):
        assert list(watched.codes(peer))[-2:] == ["empty_stage"] * 2, "told once, and once more as an alert"
        first, alert = watched.said[peer][-2:]
        assert "stage 2" in told(first) and not first.alert
        assert alert.alert and alert.lasted_s >= ALERT_AFTER_S
    swarm.faults.restart(alone, fresh=False)
    watched.run_for(60.0)
    for peer in (PeerId("data_0"), PeerId("relay_1_0")):
        assert list(watched.codes(peer))[-1] == "", watched.said[peer]
        assert told(watched.said[peer][-1]).startswith("Training goes on after")


def test_nothing_is_said_while_training_goes_on() -> None:
    watched = Watched(SmallConfig(stages=2, stage_peers=2, data_peers=2))
    watched.swarm.run(60)
    assert not any(code for peer in watched.said for code in watched.codes(peer))


def test_a_data_peer_says_what_its_iteration_waits_for() -> None:
    """A peer of stage 1 dies while the first iteration is averaged: what it has done has to be done again."""
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2))
    machine = swarm.world.peers[PeerId("data_0")].machine
    said: list[str] = []

    def note(peer: PeerId) -> None:
        if not said or said[-1] != waits_for(machine):
            said.append(waits_for(machine))
        if said[-1].startswith("is averaged by") and swarm.world.peers[PeerId("relay_1_0")].alive:
            swarm.world.kernel.after(0.0, lambda: swarm.world.kill(PeerId("relay_1_0")))

    swarm.world.on_effect = note
    swarm.run(2)
    kinds = ("microbatches to come back", "is averaged by", "the redo of", "is averaged by")
    order = iter(said)
    assert all(any(kind in text for text in order) for kind in kinds), said
