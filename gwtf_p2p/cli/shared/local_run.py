"""A run of real peers on this machine: who they are, what they report, and what is done to them.

Used by `gwtf demo` and by the experiments that need a live swarm. Names are `bootstrap`, `data0`..., `stage1.0`... (stage and
number). A peer that ends without having been killed by us ends the run (`RunFailed`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.monitor.terminal.local_view import PeerLine
from gwtf_p2p.protocol.replica_sync import what_holds
from gwtf_p2p.protocol.wire.records import RunRecord

if TYPE_CHECKING:
    from gwtf_p2p.live.emulation.faults import Fault

START_DEADLINE_S = 60.0
FIGURES_S = 0.2
"""How often peers tell their memory, the seconds that they have computed, and the bytes that they have sent."""

TOLD_EVERY_S = 10.0
"""How often it is told how many of a large swarm are online before all are."""

LAST_FIGURES_S = 5.0
"""The longest wait for these figures at the end."""

BOOTSTRAP = "bootstrap"
GONE = ("killed", "frozen", "left")
"""States in which a peer is not expected to say anything."""


class RunFailed(Exception):
    """The run cannot go on; the message says why, with the end of the log of the peer that failed."""


@dataclass(frozen=True)
class LocalRunConfig:
    """How the peers of a local run are set up. `own_folders`: a checkpoint folder for each peer, as on machines of
    their own. Peers stay when the run is complete: whoever has started them stops them.

    `initial_peer`: a multiaddr of a swarm that is there, whose bootstrap peer is somebody else's; empty: one is started.
    `max_kept_bytes` 0: no limit; with `spill` what is above it goes to the disk. `drain_s`,
    `upload_bytes_per_s`, `download_bytes_per_s` and `moves` as in `PeerConfig`; `cheats` by name, as its `cheat`. `start_s`:
    how long a peer tries to get in.
    """

    data_peers: int
    peers_per_stage: int
    capacity: int = 4
    device: str = "cpu"
    torch_dtype: str = "float32"
    checkpoint_dir: Path | None = None
    own_folders: bool = False
    max_kept_bytes: int = 0
    spill: bool = False
    drain_s: float = 0.0
    upload_bytes_per_s: float = 0.0
    download_bytes_per_s: float = 0.0
    moves: bool = False
    event_logs: bool = False
    cheats: Mapping[str, str] = field(default_factory=dict)
    initial_peer: str = ""
    start_s: float = START_DEADLINE_S


def start_progress(online: int, peers: int, elapsed_s: float) -> str:
    """How far a start in turn is, and how long it takes if it goes on like this, the bootstrap peer's start left out."""
    left_s = f", the rest in about {elapsed_s * (peers - online) / (online - 1):.0f} s" if online > 1 else ""
    return f"{online} of {peers} peers online after {elapsed_s:.0f} s{left_s}"


class LocalRun:
    """`begin` starts everybody, `poll` hears them, `stop` leaves nothing behind."""

    def __init__(
        self, config: LocalRunConfig, record: RunRecord, folder: Path, faults: Mapping[str, tuple[Fault, ...]] | None = None
    ) -> None:
        from gwtf_p2p.live.peer.local_swarm import LocalSwarm

        self.config, self.record, self.folder = config, record, folder
        self.swarm = LocalSwarm(folder)
        self.state = RunState(
            stages=record.stages,
            expected=record.data_peers * record.microbatches_per_data_peer,
            tokens_per_microbatch=record.microbatch_size * record.sequence_length,
            data_peers=record.data_peers,
            note=what_holds(record.replica_sync) if record.replica_sync else "",
        )
        self.lines: dict[str, PeerLine] = {}
        self.maddrs: dict[str, str] = {}
        self.p2pd: dict[str, int] = {}
        self.complete: set[str] = set()
        self.ended_early: set[str] = set()
        self.faults = dict(faults or {})
        self.online_s = 0.0
        self.began = time.monotonic()
        self._told_at = self._turns_began = self.began
        self._shards: dict[str, int] = {}

    # ---- peers

    def begin(self) -> None:
        """Start the bootstrap peer, then everybody else in turn while `poll` is called: first whoever publishes the run.
        Raises RunFailed."""
        if not self.config.initial_peer:
            self._begin_swarm()
        self._told_at = self._turns_began = time.monotonic()
        for shard in range(self.config.data_peers):
            self.add_data_peer(shard)
        for stage in range(1, self.record.stages + 1):
            for _ in range(self.config.peers_per_stage):
                self.add_stage_peer(stage)

    def _begin_swarm(self) -> None:
        self.lines[BOOTSTRAP] = PeerLine("bootstrap", -1)
        self.swarm.start(BOOTSTRAP, self._config(BOOTSTRAP))
        started = self.swarm.wait_for(BOOTSTRAP, "started", START_DEADLINE_S)
        if started is None:
            raise RunFailed(f"the bootstrap peer did not start\n{self.tail(BOOTSTRAP)}")
        self._hear(BOOTSTRAP, started)
        self.lines[BOOTSTRAP].state = "online"

    def add_data_peer(self, shard: int) -> str:
        name = f"data{shard}"
        self._shards[name] = shard
        self.lines[name] = PeerLine("data", 0)
        self.swarm.start(name, self._config(name))
        return name

    def add_stage_peer(self, stage: int) -> str:
        """The next stage peer of this stage; returns its name."""
        name = f"stage{stage}.{sum(line.stage == stage for line in self.lines.values())}"
        self.lines[name] = PeerLine("stage", stage)
        self.swarm.start(name, self._config(name))
        return name

    def start_again(self, name: str) -> None:
        """A peer that was killed comes back with its identity and its files."""
        self.swarm.forget(name)
        line = self.lines[name]
        self.lines[name] = PeerLine(line.role, line.stage)
        self.complete.discard(name)
        self.swarm.start(name, self._config(name))

    def kill(self, name: str, action: str = "kill") -> None:
        """SIGKILL (or with `freeze` SIGSTOP) from outside, now."""
        fault = {"name": "fault", "action": action, "moment": "any", "at": time.monotonic()}
        self.lines[name].state = "killed" if action == "kill" else "frozen"
        (self.swarm.kill if action == "kill" else self.swarm.freeze)(name)
        self._hear(name, fault)

    def kill_all(self) -> None:
        """Everybody at once, as when the power goes."""
        for name, line in self.lines.items():
            if line.state not in ("killed", "left"):
                self.kill(name)
        for name in self.lines:
            self.swarm.forget(name)

    def thaw(self, name: str) -> None:
        self.swarm.thaw(name)
        self.lines[name].state = "online"

    def stop(self) -> None:
        self.swarm.stop()

    def initial_peer(self) -> str:
        """A multiaddr to join at: the bootstrap peer's while it lives, else that of any peer; empty when nobody is there."""
        if self.config.initial_peer:
            return self.config.initial_peer
        living = [name for name, line in self.lines.items() if line.state == "online" and name in self.maddrs]
        return self.maddrs[living[0]] if living else ""

    def _config(self, name: str) -> Any:
        from gwtf_p2p.live.compute.tensor_store import MemoryLimit
        from gwtf_p2p.live.libp2p.options import P2POptions
        from gwtf_p2p.live.peer.config import PeerConfig
        from gwtf_p2p.live.state.options import CheckpointOptions
        from gwtf_p2p.training.compute.config import ExecutorConfig
        from gwtf_p2p.training.data.local_files import local_names

        config, line, shard = self.config, self.lines[name], self._shards.get(name)
        folder = config.checkpoint_dir
        return PeerConfig(
            role={"bootstrap": "bootstrap", "data": "data", "stage": "peer"}[line.role],
            options=P2POptions.on_this_machine(self.initial_peer()),
            identity_path=self.folder / f"{name}.key",
            run_id=self.record.run_id,
            new_run=self.record if shard == 0 else None,
            stage=line.stage if line.role == "stage" else None,
            shard=shard,
            local_files=local_names(self.record),
            capacity=config.capacity,
            executor=ExecutorConfig(config.device, config.torch_dtype),
            threads=1,
            checkpoints=CheckpointOptions(folder / name if folder is not None and config.own_folders else folder),
            stays=True,
            join_timeout_s=config.start_s,
            public_name=name,
            memory=MemoryLimit(config.max_kept_bytes, self.folder / f"{name}.kept" if config.spill else None),
            drain_s=config.drain_s,
            moves=config.moves,
            upload_bytes_per_s=config.upload_bytes_per_s,
            download_bytes_per_s=config.download_bytes_per_s,
            figures_every_s=FIGURES_S,
            faults=self.faults.pop(name, ()),
            cheat=config.cheats.get(name, ""),
            event_log=self.folder / f"{name}.events.jsonl" if config.event_logs else None,
        )

    # ---- what they say

    def poll(self, timeout_s: float) -> list[tuple[str, Mapping[str, Any]]]:
        """Hear what has come; returns it. Raises RunFailed when a peer has ended that should not have."""
        heard = self.swarm.poll(timeout_s)
        for name, report in heard:
            if report["name"] in ("failed", "exited"):
                if self.lines[name].state not in GONE:
                    raise RunFailed(f"{name} ended: {report.get('error', report.get('code'))}\n{self.tail(name)}")
                continue
            self._hear(name, report)
        return heard

    def start_news(self) -> str:
        """Now and then, while a large swarm starts: how far that is; else nothing."""
        now = time.monotonic()
        if self.online_s or not self.swarm.queued or now - self._told_at < TOLD_EVERY_S:
            return ""
        self._told_at = now
        online = sum(line.state == "online" for line in self.lines.values())
        return start_progress(online, len(self.lines), now - self._turns_began)

    def hear_last_figures(self) -> None:
        """Wait until everybody that is there has told its figures once more: what was sent at the end is then in them."""
        waited_for = {name for name, line in self.lines.items() if line.state == "online" and line.role != "bootstrap"}
        end = time.monotonic() + LAST_FIGURES_S
        while waited_for and time.monotonic() < end:
            waited_for -= {name for name, report in self.poll(FIGURES_S) if report["name"] in ("figures", "exited")}

    def _hear(self, name: str, report: Mapping[str, Any]) -> None:
        line, now = self.lines[name], time.monotonic()
        match report["name"]:
            case "started":
                self.p2pd[name] = int(report["p2pd"])
                if report["maddrs"]:
                    self.maddrs[name] = str(report["maddrs"][0])
            case "step":
                line.done = str(report["done"])
            case "online":
                line.state, line.stage = "online", int(report["stage"])
                line.iteration = max(line.iteration, int(report["version"]))
                if not self.online_s and all(other.state == "online" for other in self.lines.values()):
                    self.online_s = now - self.began
            case "stepped":
                line.iteration = int(report["iteration"]) + 1
                line.microbatches += int(report["microbatches"])
            case "run_complete":  # perhaps by weights that it has been given, without a step of its own
                line.iteration = max(line.iteration, int(report["iterations"]))
                self.complete.add(name)
                if report.get("early"):
                    self.ended_early.add(name)
            case "run_over" if not report["took_part"]:  # it has missed the end of the run, so nothing is left to it
                line.state = "left"
            case "fault":
                line.state = "killed" if report["action"] == "kill" else "frozen"
            case _:
                pass
        self.state.hear(name, max(line.stage, 0), report, now)

    # ---- how far it is

    def names(self, role: str, *states: str) -> list[str]:
        """Peers of this role, in these states (any state when none is given)."""
        return [name for name, line in self.lines.items() if line.role == role and (not states or line.state in states)]

    def finished(self, steps: int) -> bool:
        """Has everybody that is there done its steps, and written what is to be kept of them?"""
        there = (*self.names("data", "online"), *self.names("stage", "online"))
        done = all(self.lines[name].iteration >= steps or name in self.ended_early for name in there)
        return bool(self.names("data", "online")) and done and set(there) <= self.complete

    def tail(self, name: str, lines: int = 5) -> str:
        """The end of a peer's log, for a failure message."""
        try:
            log = (self.folder / f"{name}.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(f"  {line}" for line in log.splitlines()[-lines:])
