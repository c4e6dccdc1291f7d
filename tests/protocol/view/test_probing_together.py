"""What peers find out about their links and lines when a whole swarm comes together and probes: the rules of
`protocol/view/idle_links` over the lines of the acceptance scenario, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gwtf_p2p.ab.trials.arms import parse_arm
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId
from gwtf_p2p.protocol.view.idle_links import IdleLinks, LinkAge, Probe, Spare, takes
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links
from gwtf_p2p.simulation.scenario.scenario import load_scenario
from gwtf_p2p.simulation.swarm.build import Swarm, build

SCENARIO = Path(__file__).parents[3] / "experiments" / "scenarios" / "acceptance_churn_0.toml"
LOOK_S, PUT_OFF_LOOK_S, JOINS_S = 2.0, 0.5, 0.1
BYTES = 64
"""Of the scenario's model for each byte of a probe, as in a live comparison."""


class Probing:
    """All peers of a drawn swarm. `told`: what each link is found to carry; `lines`: what a line probe has carried."""

    def __init__(self, swarm: Swarm) -> None:
        self.kernel, self.swarm = Kernel(), swarm
        self.links = Links(self.kernel, swarm.links.spec, swarm.links.line_bytes_per_s)
        self.told: dict[PeerId, dict[PeerId, float]] = {peer: {} for peer in swarm.drawn}
        self.lines: dict[PeerId, float] = dict.fromkeys(swarm.drawn, 0.0)
        self.sending: Counter[PeerId] = Counter()
        self.receiving: Counter[PeerId] = Counter()
        records = [StageRecord(p.id, RunId("r"), p.stage, PeerState.ONLINE, 2, sequence_number=1) for p in swarm.drawn.values()]
        self.view = NetworkView.of(records, swarm.scenario.model.stages, 1000)
        for number, peer in enumerate(swarm.drawn.values()):
            decides = IdleLinks(peer.id, peer.stage)
            self.kernel.at(number * JOINS_S, lambda me=peer.id, decides=decides: self.look(me, decides))

    def look(self, me: PeerId, decides: IdleLinks) -> None:
        now, told = self.kernel.now, self.told[me]
        due = list(decides.due(self.view, dict.fromkeys(told, LinkAge(0.0, 0.0)), now, Spare(self.sending[me] > 0)))
        if due:
            self.send(me, decides, due)
            return
        known = max([self.lines[me], *told.values()], default=0.0)
        carries = {peer: rate / BYTES for peer, rate in told.items()}
        together = decides.line_due(self.view, carries, known / BYTES, now, Spare(self.sending[me] > 0))
        if together:
            self.fill(me, decides, together)
        self.kernel.after(PUT_OFF_LOOK_S if decides.has_put_off else LOOK_S, lambda: self.look(me, decides))

    def send(self, me: PeerId, decides: IdleLinks, due: list[Probe]) -> None:
        """One after the other, then look again."""
        if not due:
            self.kernel.after(PUT_OFF_LOOK_S if decides.has_put_off else LOOK_S, lambda: self.look(me, decides))
            return
        probe, began = due[0], self.kernel.now
        decides.sent(probe, began)

        def through() -> None:
            decides.ended(probe)
            self.told[me][probe.to] = probe.size * BYTES / (self.kernel.now - began)
            self.send(me, decides, due[1:])

        if not self.push(me, probe, through):
            decides.put_off(probe)
            self.kernel.after(2 * self.links.latency_s(me, probe.to), lambda: self.send(me, decides, due[1:]))

    def fill(self, me: PeerId, decides: IdleLinks, together: tuple[Probe, ...]) -> None:
        began, passed = self.kernel.now, [0]

        def through(size: int) -> None:
            passed[0] += size * BYTES
            self.lines[me] = max(self.lines[me], passed[0] / (self.kernel.now - began))

        taken = [self.push(me, probe, lambda size=probe.size: through(size)) for probe in together]
        decides.line_sent(sum(taken) > 1, self.told[me], began)

    def push(self, me: PeerId, probe: Probe, through: Callable[[], None]) -> bool:
        """Whether it is taken."""
        if not takes(probe.size, probe.insists, self.receiving[probe.to] > 0):
            return False
        self.sending[me] += 1
        self.receiving[probe.to] += 1

        def done() -> None:
            self.sending[me] -= 1
            self.receiving[probe.to] -= 1
            through()

        self.links.start(me, probe.to, probe.size * BYTES, done)
        return True


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_swarm_that_comes_together_finds_its_links_and_lines_as_they_are(seed: int) -> None:
    swarm = build(load_scenario(SCENARIO), parse_arm("gwtf", "exact"), seed, lambda peer, report, now: None)
    probing = Probing(swarm)
    probing.kernel.run(lambda: False, 60.0)
    found = {(a, b): rate / swarm.links.idle_bandwidth(a, b) for a, told in probing.told.items() for b, rate in told.items()}
    assert len(found) == sum(
        2 * 3 if drawn.stage == DATA_STAGE else 5 + (1 < drawn.stage < 4) for drawn in swarm.drawn.values()
    )
    assert min(found.values()) > 0.99
    for peer, told in probing.told.items():
        line = swarm.links.line_bytes_per_s[peer]
        known = max(probing.lines[peer], *told.values())
        assert 0.65 * min(line, sum(sorted(told.values())[-2:])) <= known <= 1.01 * line
