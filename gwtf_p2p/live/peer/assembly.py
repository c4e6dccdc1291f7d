"""From a run record and a config to the parts of a peer: its place, its model part, the settings of its state machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.memory_errors import memory_errors
from gwtf_p2p.live.compute.stage_fit import Fitting, fitting_stages
from gwtf_p2p.live.emulation.cheats import CheatingExecutor
from gwtf_p2p.live.peer.config import OnReport, PeerConfig, RunMismatch
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.protocol.core.life import RunLife
from gwtf_p2p.protocol.core.lifecycle import done_bytes
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.membership.rebalancing import choose_stage
from gwtf_p2p.protocol.peer.data_peer import DataPeerConfig
from gwtf_p2p.protocol.peer.factory import PeerSettings, RouterChoice
from gwtf_p2p.protocol.peer.stage_peer import StagePeerConfig
from gwtf_p2p.protocol.routers.factory import KINDS, default_config, router_kind
from gwtf_p2p.protocol.view.memory_plan import StageMemory
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.run_parts import AuditTerms
from gwtf_p2p.protocol.wire.signed import terms_of
from gwtf_p2p.protocol.wire.tensor_formats import AVERAGES
from gwtf_p2p.training.codecs.table import CODECS
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.thin_executor import data_executor
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.data.held_out import evaluation_batches
from gwtf_p2p.training.data.local_files import OF_DATA_PEERS, OF_STAGE_PEERS, refuse_unasked
from gwtf_p2p.training.model.memory import stage_memory
from gwtf_p2p.training.model.preflight import mismatch, versions
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part
from gwtf_p2p.training.turns import take_turns

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer stands in the run: its stage, and a data peer's shard (-1 for stage peers)."""

    stage: Stage
    shard: int = -1


@dataclass(frozen=True, slots=True)
class Prepared:
    """A peer at its place, before it is connected. `config`: with what fits there; `memory`: what the place takes;
    `checkpoints`: those of its stage, which have been looked at."""

    config: PeerConfig
    place: Place
    memory: StageMemory
    compute: Compute
    checkpoints: Checkpoints


@dataclass(frozen=True, slots=True)
class KeptWork:
    """What a life of a supervised peer leaves to the next: where it was, and the seconds of one microbatch there."""

    run_id: RunId
    model_hash: str
    place: Place
    memory: StageMemory
    measured: Mapping[Work, float]


def kept_work(config: PeerConfig, run: RunRecord) -> KeptWork | None:
    """What an earlier life has left of this very run, at a place that its user still wants."""
    left = config.handover.left(KeptWork) if config.handover is not None else None
    if left is None or (left.run_id, left.model_hash) != (run.run_id, run.model_hash):
        return None
    return left if config.stage in (None, left.place.stage) else None


def prepare(
    config: PeerConfig,
    run: RunRecord,
    place_of: Callable[[PeerConfig], Place],
    on_report: OnReport,
    memory: StageMemory | None = None,
) -> Prepared:
    """Take a place and make what computes there, of a model that has been checked; what it will take is told before it is
    taken. `memory`: what that is, if it is known. Raises InputError (also for checkpoints of another model), OutOfMemory."""
    config, fitting = fitted(config, run)
    place = place_of(config)
    fits = fitting.get(place.stage)
    config = held_as(config, fits)
    memory = fits.memory if fits is not None else memory or stage_memory(run, place.stage)
    on_report(memory_report(config, memory, place))
    compute = make_compute(config, run, place)
    checkpoints = Checkpoints(config.checkpoints, run, place.stage, compute)
    checkpoints.look()
    return Prepared(config, place, memory, compute, checkpoints)


def check_config(config: PeerConfig, run: RunRecord) -> None:
    """Raises RunMismatch that names the field."""
    for name, known in (("activations", CODECS), ("gradients", CODECS), ("averages", AVERAGES)):
        codec = getattr(run.wire, name)
        if codec not in known:
            knows = ", ".join(known)
            raise RunMismatch(f"run {run.run_id}: wire.{name}: this peer does not know the codec {codec!r:.40}, only {knows}")
    try:
        run.check_together(f"run {run.run_id}")
    except InputError as error:
        raise RunMismatch(str(error)) from error
    if run.router not in KINDS:
        routers = f"this version knows {', '.join(KINDS)}"
        raise RunMismatch(f"run {run.run_id}: router: {routers}, the run asks for {run.router!r:.80}")
    if config.stage is not None and not 1 <= config.stage <= run.stages:
        raise RunMismatch(f"run {run.run_id}: stage: this run has stages 1 to {run.stages}, not {config.stage}")
    if config.shard is not None and not 0 <= config.shard < run.data_peers:
        raise RunMismatch(f"run {run.run_id}: shard: this run has shards 0 to {run.data_peers - 1}, not {config.shard}")


def choose_place(config: PeerConfig, run: RunRecord, view: NetworkView, me: PeerId) -> Place:
    """What the config says, else what the swarm needs most. Raises RunMismatch when every shard is held."""
    if config.role == "data":
        taken = {record.shard for peer, record in view.records.items() if peer != me}
        free = [shard for shard in range(run.data_peers) if shard not in taken]
        if config.shard is None and not free:
            raise RunMismatch(f"run {run.run_id}: data_peers: all {run.data_peers} shards are held already")
        return Place(DATA_STAGE, free[0] if config.shard is None else config.shard)
    if config.stage is not None:
        return Place(Stage(config.stage))
    choice = choose_stage(view, me, config.fits)
    logger.info("stage %d: %s", choice.stage, choice.reason)
    return Place(choice.stage)


def fitted(config: PeerConfig, run: RunRecord) -> tuple[PeerConfig, dict[Stage, Fitting]]:
    """The config with the stages that fit into `memory_bytes`, and how each is held; none is named where there is no limit.

    Raises OutOfMemory if none does.
    """
    if not config.memory_bytes:
        return config, {}
    stages = [Stage(config.stage)] if config.stage is not None else [Stage(k) for k in range(1, run.stages + 1)]
    if config.role == "data":
        stages = [DATA_STAGE]
    elif config.moves:
        stages = [Stage(k) for k in range(1, run.stages + 1)]
    held = (config.capacity if config.role != "data" else 1, config.memory.limit_bytes)
    found = fitting_stages(run, stages, held, config.memory_bytes)
    return replace(config, fits=tuple(found)), found


def held_as(config: PeerConfig, fitting: Fitting | None) -> PeerConfig:
    """The config with the capacity, and the limit on what is kept, with which the stage fits."""
    if fitting is None:
        return config
    kept = replace(config.memory, limit_bytes=fitting.plan.kept_bytes)
    return replace(config, capacity=fitting.plan.capacity, memory=kept)


def memory_report(config: PeerConfig, memory: StageMemory, place: Place) -> dict[str, Any]:
    """What the place will take, before it is taken."""
    capacity = config.capacity if place.stage != DATA_STAGE else 1
    figures = {"needed_bytes": memory.needed(capacity), "least_bytes": memory.least, "state_bytes": memory.state}
    return {"name": "memory", "stage": place.stage, "capacity": capacity, "allowed_bytes": config.memory_bytes, **figures}


def check_model(run: RunRecord) -> None:
    """Raises RunMismatch, naming field and versions, where this installation does not compute what the run's publisher did.

    A record without a fingerprint, or made by the same releases, that this peer cannot build is the record's fault: InputError.
    """
    try:
        check_run(run)
        reason = mismatch(run.built_config, run.fingerprint)
    except InputError as error:
        own, there = versions(), run.fingerprint.versions
        if not there or there == own:
            raise
        both = ", ".join(f"{name} {there.get(name, '?')} there and {version} here" for name, version in own.items())
        raise RunMismatch(f"run {run.run_id}: {error} ({both})") from error
    if reason:
        raise RunMismatch(f"run {run.run_id}: {reason}")


def make_compute(config: PeerConfig, run: RunRecord, place: Place) -> Compute:
    """The model part from the run's seed, its executor and optimizer, and a data peer's dataset; of a model that has been
    checked (`check_model`). Raises InputError, OutOfMemory."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.new_run is None:
        refuse_unasked(run, config.local_files, OF_DATA_PEERS if place.stage == DATA_STAGE else OF_STAGE_PEERS)
    with memory_errors(f"hold stage {place.stage} of {run.stages}"):
        return _make_part(config, run, place)


def _make_part(config: PeerConfig, run: RunRecord, place: Place) -> Compute:
    spec = PartSpec.of(run, place.stage)
    config = replace(config, executor=replace(config.executor, recompute=config.executor.recompute or run.recompute))
    delayed = run.delay_optimizer_step
    if place.stage != DATA_STAGE:

        def stage() -> StageExecutor:
            settings = (build_stage_part(spec), config.executor, run.loss)
            return CheatingExecutor(*settings, config.cheat) if config.cheat else StageExecutor(*settings)

        return Compute(run, take_turns(stage(), run.optimizer, stage() if delayed else None), limit=config.memory)

    def data() -> DataExecutor:
        return data_executor(build_data_part(spec), config.executor, run.loss)

    source, tokenizer = open_data(run)
    turns = take_turns(data(), run.optimizer, data() if delayed else None)
    compute = Compute(run, turns, (source, place.shard), config.memory)
    if place.shard == 0:
        compute.evaluated_on = evaluation_batches(run, source, tokenizer), tokenizer
    return compute


def run_life(config: PeerConfig, run: RunRecord) -> RunLife:
    """How long the run lasts, and which checkpoints this peer writes."""
    every = run.checkpoint_every if config.checkpoints.folder is not None else 0
    own = config.checkpoints.every, config.stays
    best_of = run.evaluation.every if run.evaluation.keep_best and every else 0
    most, patience, thin = run.max_skipped_steps, run.evaluation.patience, run.thin_data_peers
    ahead, sync = int(run.delay_optimizer_step), run.replica_sync
    return RunLife(run.total_iterations, every, *own, most, config.rebuilds, patience, best_of, thin, ahead, sync)


def peer_settings(config: PeerConfig, run: RunRecord, place: Place, me: PeerId) -> PeerSettings:
    """All that the state machine depends on. Raises InputError for an unknown router, or for less memory than is of any use."""
    limit_bytes = 0 if config.memory.folder else config.memory.limit_bytes
    least = done_bytes(run.activation_bytes, run.gradient_bytes)
    if place.stage != DATA_STAGE and 0 < limit_bytes < least:
        raise InputError("--max_kept_gb", "", f"expected at least {least / 1e9:.2g}, for one microbatch, or --spill_dir")
    kind, settings = router_kind(run.router), config.router_config or default_config(run.router)
    data_peer = stage_peer = None
    if place.stage == DATA_STAGE:
        data_peer = DataPeerConfig(run.share_of(place.shard), run.data_peers, run.peers_per_stage)
    else:
        queues = config.queues
        if queues is None:
            queues = kind.unbounded_queues or settings.queues_inputs
        moves = config.moves or settings.moves
        stage_peer = StagePeerConfig(config.capacity, queues, queues and config.recomputes, moves, config.fits)
    return PeerSettings(
        me=me,
        stage=place.stage,
        stages=run.stages,
        router=RouterChoice(run.router, settings, run.seed),
        exact=run.recovery == "exact",
        done_bytes=least,
        memory_limit_bytes=limit_bytes,
        data_peer=data_peer,
        stage_peer=stage_peer,
        life=run_life(config, run),
        terms=terms_of(run),
        audit=AuditTerms(run.audit, run.audit_tolerance, config.executor.torch_dtype),
        microbatches=run.largest_share,
    )
