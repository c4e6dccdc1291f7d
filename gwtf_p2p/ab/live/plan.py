"""From a scenario, an arm and a seed to the peers of a live run: what each is told, and what the wire imposes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from pathlib import Path

from gwtf_p2p.ab.trials.scaling import scaled
from gwtf_p2p.ab.trials.task import RunTask
from gwtf_p2p.live.emulation.emulation import AVERAGE, MICROBATCH, STATE, Emulation
from gwtf_p2p.live.libp2p.identity import load_or_create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.simulation.bounds.bound import Bound, bound_of
from gwtf_p2p.simulation.lines.links import LinkSpec
from gwtf_p2p.simulation.scenario.scenario import TimedChurnSpec
from gwtf_p2p.simulation.swarm.build import Memory, Swarm, build, sizes_of
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.data.local_files import local_names
from gwtf_p2p.training.model.split import PartSpec, parameter_shapes

FLOAT_BYTES = 4
STATE_COPIES = 3
"""Weights and two moments."""

FIGURES_S = 0.5
"""How often peers tell the bytes that they have sent."""

DRAIN_S = 60.0


@dataclass(frozen=True)
class LivePlan:
    """`ids`: libp2p ids by the peers' names in the scenario; the same in all arms, as the keys are kept."""

    task: RunTask
    swarm: Swarm
    record: RunRecord
    bound: Bound
    ids: dict[str, PeerId]
    folder: Path

    @staticmethod
    def of(task: RunTask, folder: Path) -> LivePlan:
        """Raises InputError."""
        if task.arm.config.restarts_whole:
            raise InputError("--arms", task.arm_text, "expected a simulated comparison: no live peer forgets so")
        if task.arm.thin or task.arm.elastic or task.arm.delayed:
            raise InputError("--arms", task.arm_text, "expected a simulated comparison: a live arm would need a run of its own")
        if task.scenario.timed_churn != TimedChurnSpec():
            raise InputError(
                "scenario", task.scenario.name, "expected a simulated comparison: churn_by_time is not acted out live"
            )
        scenario = scaled(task.scenario, task.time_scale)
        swarm = build(scenario, task.arm, task.seed, lambda peer, report, now: None)
        stage_peers = [g for g in scenario.groups if not g.is_data]
        record = replace(
            task.record,
            run_id=RunId(f"ab-{task.seed}-{sha256(task.arm_text.encode()).hexdigest()[:8]}"),  # peers remember runs by name
            seed=task.seed,
            router=task.arm.router,
            recovery="exact" if task.arm.recovery == "exact" else "fast",
            wire=task.arm.wire,
            replica_sync=task.arm.replica_sync,
            data_peers=scenario.data_peers,
            peers_per_stage=sum(g.count for g in stage_peers),
            microbatches_per_data_peer=scenario.model.microbatches_per_data_peer,
            total_iterations=scenario.iterations,
        )
        keys = task.out / "keys"
        ids = {str(name): load_or_create_identity(keys / f"{name}.key").peer_id for name in swarm.drawn}
        return LivePlan(task, swarm, record, bound_of(swarm), ids, folder)

    @property
    def names(self) -> dict[PeerId, str]:
        return {peer: name for name, peer in self.ids.items()}

    def link(self, sender: PeerId, receiver: PeerId) -> LinkSpec:
        """Between two libp2p ids."""
        names = self.names
        return self.swarm.links.spec(PeerId(names[sender]), PeerId(names[receiver]))

    @property
    def lines(self) -> dict[PeerId, float]:
        """Bytes/s of each peer's line, by libp2p id."""
        return {self.ids[str(peer)]: line for peer, line in self.swarm.links.line_bytes_per_s.items()}

    def config(self, name: str, stage: Stage, socket: Path, maddr: str) -> PeerConfig:
        """What the peer with this name is told, in that stage (a stage peer may have moved)."""
        drawn = self.swarm.drawn[PeerId(name)]
        is_data = stage == DATA_STAGE
        shard = int(name.rpartition("_")[2]) if is_data else None
        return PeerConfig(
            role="data" if is_data else "peer",
            options=P2POptions.on_this_machine(maddr),
            identity_path=self.task.out / "keys" / f"{name}.key",
            run_id=self.record.run_id,
            new_run=self.record if shard == 0 else None,
            stage=None if is_data else stage,
            shard=shard,
            local_files=local_names(self.record),
            capacity=max(1, drawn.capacity),
            threads=1,
            drain_s=DRAIN_S if self.task.arm.config.rebalance_period_s else 0.0,
            router_config=self.task.arm.config,
            queues=self.task.arm.queues,
            recomputes=self.task.arm.memory is Memory.ADAPTIVE,
            executor=ExecutorConfig(recompute=self.task.arm.memory is Memory.RECOMPUTED),
            emulation=self._emulation(drawn.work_seconds(), stage, socket),
            figures_every_s=FIGURES_S,
        )

    def bootstrap(self) -> PeerConfig:
        identity_path = self.task.out / "keys" / "bootstrap.key"
        return PeerConfig(role="bootstrap", options=P2POptions.on_this_machine(), identity_path=identity_path)

    def _emulation(self, work_s: dict[Work, float], stage: Stage, socket: Path) -> Emulation:
        links, model, ids = self.swarm.links, self.swarm.scenario.model, self.ids
        return Emulation(
            socket=socket,
            links=self.task.emulate_links,
            latency_s={(ids[str(a)], ids[str(b)]): links.latency_s(a, b) for a in self.swarm.drawn for b in self.swarm.drawn},
            bytes_factor=self._factors(stage, model.stage_gradient_bytes, model.stage_state_bytes, model.microbatch_bytes),
            work_s=work_s,
            star=self.task.arm.kind.star,
        )

    def _factors(self, stage: Stage, gradient: int, state: int, microbatch: int) -> dict[str, float]:
        """Bytes of the scenario's model, which are float32's, for each byte of the real one. With a subspace the real one is
        as it is without, and its boundaries are charged as those of a model that has it."""
        scenario, arm = self.swarm.scenario, self.task.arm
        fewer = sizes_of(scenario, arm).both_bytes / sizes_of(scenario, replace(arm, subspace=0)).both_bytes
        real = FLOAT_BYTES * sum(prod(shape) for shape in parameter_shapes(PartSpec.of(self.record, stage)).values())
        return {
            MICROBATCH: fewer * microbatch / (FLOAT_BYTES * self.record.boundary_values),
            AVERAGE: gradient / real,
            STATE: state / (STATE_COPIES * real),
        }
