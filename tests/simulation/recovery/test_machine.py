"""Hypothesis drives a small swarm with whatever faults it likes, in whatever order; healed, the swarm must always finish.

The invariants of `simulation.invariants` hold at every event of every run. The examples are the same in every run of the
tests; to look for new ones, take `derandomize` out and raise `max_examples`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm
from tests.exploring import PROFILE, examples

STAGE_PEERS = st.sampled_from([PeerId(f"relay_{k}_{r}") for k in (1, 2) for r in (0, 1)])
PEERS = st.one_of(STAGE_PEERS, st.sampled_from([PeerId("data_0"), PeerId("data_1")]))
MORE_ITERATIONS = 3


class RecoveryMachine(RuleBasedStateMachine):
    """Rules are faults and the passing of time. At the end everybody is brought back, and training must go on."""

    swarm: SmallSwarm

    def __init__(self) -> None:
        super().__init__()
        self.slow: set[PeerId] = set()

    @initialize(exact=st.booleans(), microbatches=st.integers(1, 4), capacity=st.integers(1, 4))
    def begin(self, exact: bool, microbatches: int, capacity: int) -> None:
        config = SmallConfig(stages=2, stage_peers=2, data_peers=2, microbatches=microbatches, capacity=capacity, exact=exact)
        self.swarm = small_swarm(config)
        self._pass(1.5)

    @rule(seconds=st.sampled_from([0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    @rule(peer=PEERS)
    def killed(self, peer: PeerId) -> None:
        self.swarm.faults.fire(Fault("kill", peer, at_s=0.0))

    @rule(peer=PEERS)
    def frozen(self, peer: PeerId) -> None:
        self.swarm.faults.fire(Fault("freeze", peer, at_s=0.0))

    @rule(peer=PEERS)
    def thawed(self, peer: PeerId) -> None:
        simulated = self.swarm.world.peers[peer]
        if simulated.alive and simulated.frozen:
            self.swarm.world.thaw(peer)

    @rule(peer=PEERS, fresh=st.booleans())
    def started_again(self, peer: PeerId, fresh: bool) -> None:
        self.swarm.faults.restart(peer, fresh and peer.startswith("relay") and self._others_have_it(peer))

    @rule(peer=STAGE_PEERS)
    def drains(self, peer: PeerId) -> None:
        self.swarm.faults.fire(Fault("drain", peer, at_s=0.0))

    @rule(peer=STAGE_PEERS)
    def becomes_slow(self, peer: PeerId) -> None:
        if peer not in self.slow:
            self.slow.add(peer)
            self.swarm.faults.fire(Fault("slow", peer, at_s=0.0, factor=5.0))

    def teardown(self) -> None:
        if not hasattr(self, "swarm"):
            return
        for peer, simulated in list(self.swarm.world.peers.items()):
            self.thawed(peer)
            if simulated.alive and simulated.machine.state is PeerState.DRAINING:
                self.swarm.world.kill(peer)
            self.swarm.faults.restart(peer, fresh=False)
        newest = max(peer.machine.participant.version for peer in self.swarm.world.peers.values())
        kernel = self.swarm.world.kernel
        tally = self.swarm.run(newest + MORE_ITERATIONS, kernel.now + 2000.0, kernel.steps + 200_000)
        assert tally.double == 0 and (tally.lost == 0 or not self.swarm.config.exact)

    def _pass(self, seconds: float) -> None:
        kernel = self.swarm.world.kernel
        kernel.run(lambda: False, kernel.now + seconds)

    def _others_have_it(self, peer: PeerId) -> bool:
        """Only then may its disk be lost too: the last copy of a stage cannot be brought back by anybody."""
        peers = self.swarm.world.peers
        stage = peers[peer].machine.ctx.stage
        others = [p for p in peers.values() if p.id != peer and p.machine.ctx.stage == stage]
        return any(set(peers[peer].kept) <= set(other.kept) for other in others)


RecoveryMachine.TestCase.settings = settings(
    max_examples=examples(60).max_examples,
    stateful_step_count=30,
    derandomize=PROFILE == "ci",
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
test_recovery = RecoveryMachine.TestCase
