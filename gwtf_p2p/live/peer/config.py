"""What one peer is told on the command line, and the ways in which it can find that it cannot take part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gwtf_p2p.live.compute.tensor_store import NO_LIMIT, MemoryLimit
from gwtf_p2p.live.emulation.emulation import Emulation
from gwtf_p2p.live.emulation.faults import Fault
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.lives.handover import Handover
from gwtf_p2p.live.measure.metrics import MetricsOptions
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.protocol.exchange.pace import RECORD_PERIOD_S as RECORD_PERIOD_S
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.membership.permission import Wishes
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig

OnReport = Callable[[dict[str, Any]], None]
"""Hears what a peer reports: a `name` and its fields."""


@dataclass(frozen=True)
class PeerConfig:
    """`role`: bootstrap, data or peer. `stage` None: the newcomer chooses. `shard` None: the lowest that no live data peer
    holds.

    `run_owner`: take part in the run of this owner only; None: of the one that this peer joined before, or of the only one.
    `token`: of a secret run.
    `upload_bytes_per_s`, `download_bytes_per_s`: what may pass to and from other peers, 0 for no limit. `drain_s`: how long a
    peer that is told to stop may finish what it holds. `join_timeout_s`: how long to try on while no initial peer answers, or
    the run is not there. `memory`: how much what is kept of microbatches may take. `moves`: a stage peer may go to another
    stage that needs it more.
    `memory_bytes`: what the peer may take in all, 0 for no limit; `fits` are the stages that do, empty for all.
    `wishes`: when it may work. `nice`: how far it gives way to other programs, as nice(1).
    `on_alert`: a shell command for when training has stood still for `alert_after_s`.
    `public_name`: what others are shown instead of the end of its id.
    `stays`: it goes on serving what it has when the run is complete, instead of ending. `rebuilds`: a data peer has a stage
    rebuilt whose weights nobody has.
    `figures_every_s` 0: the peer's figures (memory, seconds computed) are not reported. `faults`: break down on purpose (tests
    and churn scripts).
    `local_files`: what of this machine the run may read, spelt as in its record; what an own `new_run` names it always may.
    `router_config`: settings of the run's router, None for its default. `queues`: a stage peer queues what is over its
    capacity instead of refusing it; None as the router's kind has it. `recomputes`: one that queues computes forwards
    again whose activations it has no room for, and lets nothing wait for that room. `emulation`: links and devices of a
    comparison (`gwtf ab`).
    `cheat`: what a stage peer does wrong on purpose, in experiments (`emulation/cheats`).
    `handover`: of a supervised peer, what its last life has left, and what it leaves to the next (`live/lives`).
    `metrics`: where a data peer writes the figures of every step. Everything else about the training
    comes from the run record.
    """

    role: str
    options: P2POptions = field(default_factory=P2POptions)
    identity_path: Path | None = None
    run_id: RunId | None = None
    new_run: RunRecord | None = None
    run_owner: PeerId | None = None
    token: str = field(default="", repr=False)
    stage: int | None = None
    shard: int | None = None
    capacity: int = 4
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    threads: int = 0
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    stays: bool = False
    rebuilds: bool = False
    public_name: str = ""
    upload_bytes_per_s: float = 0.0
    download_bytes_per_s: float = 0.0
    drain_s: float = 0.0
    join_timeout_s: float = 20.0
    memory: MemoryLimit = NO_LIMIT
    memory_bytes: int = 0
    wishes: Wishes = field(default_factory=Wishes)
    nice: int = 0
    fits: tuple[Stage, ...] = ()
    moves: bool = False
    figures_every_s: float = 0.0
    on_alert: str = ""
    alert_after_s: float = 300.0
    faults: tuple[Fault, ...] = ()
    local_files: tuple[str, ...] = ()
    event_log: Path | None = None
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    router_config: RouterSettings | None = None
    queues: bool | None = None
    recomputes: bool = True
    emulation: Emulation | None = None
    cheat: str = ""
    handover: Handover | None = field(default=None, repr=False, compare=False)


class StartInterrupted(Exception):
    """This peer was told to stop before its p2pd was up. Exit code 130 when a user did it."""

    exit_code = 130


class ClockWrong(Exception):
    """This machine's clock is so far off that its records would be born expired. Exit code 6."""

    exit_code = 6


class RunNotThere(Exception):
    """Nobody publishes the run, and its record is not on this disk either. It may come: try again. Exit code 3."""

    exit_code = 3

    def __init__(self, run_id: RunId, waited_s: float, there: Sequence[RunId]) -> None:
        runs = f"runs that are there: {', '.join(there[:10])}" if there else "no run is there"
        super().__init__(f"run {run_id}: nobody publishes it (waited {waited_s:.0f} s); {runs}")


class NotServed(Exception):
    """The swarm does not compute what is asked of it. It may later: try again. Exit code 3."""

    exit_code = 3


class NotKept(Exception):
    """The run is complete, and its last weights could not be written where they were to be kept. Exit code 6."""

    exit_code = 6


class RunMismatch(Exception):
    """This peer cannot take part in the run. Exit code 5."""

    exit_code = 5
