"""Runs one arm of one scenario with one seed, and says what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.simulation.bounds.bound import bound_of, clairvoyant_s
from gwtf_p2p.simulation.measure.metrics import Metrics, Outcome
from gwtf_p2p.simulation.measure.presence import Presence
from gwtf_p2p.simulation.measure.recovery_metrics import RecoveryMetrics
from gwtf_p2p.simulation.measure.trace import Trace
from gwtf_p2p.simulation.scenario.scenario import Scenario
from gwtf_p2p.simulation.swarm.build import Arm, Swarm, build
from gwtf_p2p.simulation.swarm.churn import Churn, SimulatedStagePeers
from gwtf_p2p.simulation.swarm.idle_probes import IdleProbes
from gwtf_p2p.simulation.swarm.swarm_rebalancing import Rebalancing
from gwtf_p2p.simulation.swarm.timed_churn import TimedChurn
from gwtf_p2p.simulation.swarm.whole_restarts import WholeRestarts

STUCK_S = 3600.0
"""Virtual seconds per iteration after which a run counts as stuck."""


class StuckError(RuntimeError):
    """No progress: every peer's story is in the message. It is our bug, never the user's."""


class Simulation:
    """One run. `trace` hears everything, `listeners` hear the reports."""

    def __init__(self, scenario: Scenario, arm: Arm, seed: int, trace: Trace | None = None) -> None:
        self.scenario, self.arm, self.seed = scenario, arm, seed
        self.trace = trace or Trace()
        expected = scenario.data_peers * scenario.model.microbatches_per_data_peer
        self.metrics = Metrics(expected, scenario.model.stages)
        self.recovery = RecoveryMetrics()
        self.swarm: Swarm = build(scenario, arm, seed, self._report)
        self.world = self.swarm.world
        self.world.on_event = self._event
        self.world.on_fault = self._fault
        self.presence = Presence(lambda: [peer.id for peer in self.world.peers.values() if peer.alive])
        self.world.spans.listener = self.trace.span
        bound = bound_of(self.swarm)
        self.churn = Churn(scenario.churn, seed, bound.iteration_s, SimulatedStagePeers(self.swarm))
        # Without a barrier iterations overlap: what remains is what any resource takes for one.
        self.bound = replace(bound, iteration_s=expected / bound.microbatches_per_second) if arm.delayed else bound
        self.whole_restarts = WholeRestarts(self.world)
        self.timed_churn = TimedChurn(scenario.timed_churn, self.swarm)
        self.idle_probes = IdleProbes(self.swarm)
        self.rebalancing = Rebalancing(self.swarm, arm.config.rebalance_period_s)
        self.world.on_move = self.rebalancing.move
        self.listeners: list[Callable[[PeerId, ef.Report, float], None]] = []
        self._complete: set[PeerId] = set()
        self._last_reports: deque[tuple[float, PeerId, ef.Report]] = deque(maxlen=40)

    def run(self) -> Outcome:
        """Until every data peer has done all iterations. Raises StuckError."""
        for peer in list(self.world.peers.values()):
            self.world.start(peer)
        self.rebalancing.start()
        self.timed_churn.start()
        self.idle_probes.start()
        self.presence.begin()
        deadline_s = STUCK_S * self.scenario.iterations
        if not self.world.kernel.run(self._all_stepped, deadline_s):
            raise StuckError(self.story())
        return self._outcome()

    def _all_stepped(self) -> bool:
        """Every data peer is through, and so is every stage peer that is up and in step."""
        if len(self._complete) < self.scenario.data_peers:
            return False
        up = [peer.machine for peer in self.world.peers.values() if peer.alive and not peer.frozen]
        return all(
            m.participant.version >= self.scenario.iterations for m in up if m.membership.published_state is PeerState.ONLINE
        )

    def story(self) -> str:
        """What every peer holds, for the one who has to find out why nothing moves."""
        name, metrics, kernel = self.scenario.name, self.metrics, self.world.kernel
        lines = [f"{name}, {self.arm.router}, seed {self.seed}: stuck in iteration {len(metrics.ends)} at {kernel.now:.2f} s"]
        for peer in self.world.peers.values():
            participant = peer.machine.participant
            lines.append(f"{peer.id} alive={peer.alive} version={participant.version} out_of_step={participant.out_of_step}")
            for held in peer.machine.ctx.in_order():
                if held.phase is not Phase.DONE:
                    at = f"{held.phase.name} {held.sending.name} {held.returning.name} -> {held.successor}"
                    lines += [f"   {held.id} {at}", *(f"        {line}" for line in held.story[-6:])]
        lines += [f"{at:.3f} {peer} {report.name} {dict(report.fields)}" for at, peer, report in self._last_reports]
        return "\n".join(lines)

    # ---- listening

    def _event(self, peer: PeerId, event: ev.Event, now: float) -> None:
        self.trace.event(peer, event, now)
        self.idle_probes.heard(event, peer, now)
        if isinstance(event, ev.Stepped):
            machine, ended = self.world.peers[peer].machine, len(self.metrics.ends)
            self.metrics.stepping(machine.participant, machine.ctx.stage, event.iteration, now)
            if len(self.metrics.ends) > ended:
                self.presence.iteration_ended()
        elif isinstance(event, ev.Started):
            self.presence.came_back(peer)

    def _fault(self, peer: PeerId, uncommitted_s: float, now: float) -> None:
        self.recovery.fault(peer, uncommitted_s, now)
        self.idle_probes.gone(peer)
        if not self.world.peers[peer].alive:
            self.presence.crashed(peer)
            if self.arm.config.restarts_whole:
                self.world.kernel.after(0.0, lambda: self.whole_restarts.killed(peer))

    def clairvoyant_s(self) -> tuple[float | None, ...]:
        """Of each measured iteration, once it has run: the least that it could have taken (`bounds`)."""
        measured = self.presence.of[self.scenario.warmup_iterations :]
        if self.arm.delayed:
            return (None,) * len(measured)  # iterations overlap: there is none of one alone
        known: dict[frozenset[PeerId], float | None] = {frozenset(self.swarm.drawn): self.bound.iteration_s}
        for present in measured:
            if present not in known:
                known[present] = clairvoyant_s(self.swarm, present)
        return tuple(known[present] for present in measured)

    def _report(self, peer: PeerId, report: ef.Report, now: float) -> None:
        self.trace.report(peer, report, now)
        for listener in self.listeners:
            listener(peer, report, now)
        self._last_reports.append((now, peer, report))
        self.metrics.report(peer, report, now)
        self.recovery.report(peer, report, now)
        if report.name == "run_complete" and report.fields["stage"] == DATA_STAGE:
            self._complete.add(peer)
        elif report.name == "drained":
            self.rebalancing.drained(peer)
        elif report.name == "iteration_begins":
            iteration = report.fields["iteration"]
            assert isinstance(iteration, int)
            for moment in self.churn.iteration_begins(iteration, now):
                self.world.kernel.at(moment, lambda: self.churn.act(self.world.kernel.now))

    def _planning(self) -> dict[str, float]:
        """What the first data peer's plans did, when its router plans: flows that came or went per change of the records."""
        machine = self.world.peers[min(p for p, drawn in self.swarm.drawn.items() if drawn.stage == DATA_STAGE)].machine
        router = machine.ctx.planner
        if router is None:
            return {}
        counts = router.counts
        return {**counts, "flows_changed_per_update": counts["flows_changed"] / max(1, counts["record_updates"])}

    def _outcome(self) -> Outcome:
        metrics, world = self.metrics, self.world
        device_s = sum(peer.device_s for peer in world.peers.values())
        return Outcome(
            scenario=self.scenario.name,
            router=self.arm.router,
            recovery=self.arm.recovery,
            seed=self.seed,
            warmup_iterations=self.scenario.warmup_iterations,
            microbatches_per_iteration=metrics.expected,
            iteration_seconds=tuple(metrics.iteration_seconds),
            microbatches_lost=metrics.lost(),
            double_counted=metrics.double_counted(),
            wasted_compute_fraction=max(0.0, round(1 - metrics.useful_s / device_s, 9)),
            recoveries=dict(metrics.recoveries),
            bound_microbatches_per_second=self.bound.microbatches_per_second,
            bound_iteration_seconds=self.bound.iteration_s,
            trace_sha256=self.trace.sha256(),
            extra={
                "memory": self.arm.memory.value,
                **({"bound_by": "stages"} if self.bound.by_stages else {}),
                "wire": self.arm.wire.activations,
                "subspace": self.arm.subspace,
                "thin": self.arm.thin,
                "elastic": self.arm.elastic,
                "delayed": self.arm.delayed,
                "replica_sync": self.arm.replica_sync,
                "crashes": self.churn.crashes + self.timed_churn.crashes,
                "returns": self.churn.returns + self.timed_churn.returns,
                "spared": self.churn.spared + self.timed_churn.spared,
                "moves": self.rebalancing.moves,
                "restarted_whole": self.whole_restarts.count,
                "messages": world.messages.count,
                "bytes_sent": world.links.bytes_sent,
                "bytes_resent": world.pushes.bytes_resent,
                "probe_bytes": self.idle_probes.bytes_sent,
                **self.recovery.figures(device_s),
                "virtual_seconds": world.kernel.now,
                "kernel_steps": world.kernel.steps,
                **self._negotiation(),
                **self._planning(),
            },
        )

    def _negotiation(self) -> dict[str, float | str]:
        """What only a router that negotiates has: its part of the messages, and how soon it had its flows."""
        if next(iter(self.world.peers.values())).machine.ctx.talker is None:
            return {}
        said = sum(peer.machine.negotiating.messages for peer in self.world.peers.values())
        metrics = self.metrics
        return {
            "negotiation_messages": said,
            "flow_count": metrics.most_flows,
            "virtual_seconds_to_full_flow": metrics.full_flow_s,
        }


def simulate(scenario: Scenario, arm: Arm, seed: int, trace: Trace | None = None) -> Outcome:
    """One run of one seed. Raises StuckError when it does not come to an end."""
    return Simulation(scenario, arm, seed, trace).run()
