"""Small models of any family, each trained by a swarm of real peers on this machine: two stages, one data peer, text as bytes.

All of them are forked from one parent that has imported what computes, and join at one bootstrap peer, so that a family costs
seconds.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from gwtf_p2p.cli.shared.local_run import BOOTSTRAP, LocalRun, LocalRunConfig, RunFailed
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.model.config import CONFIG_ERRORS
from gwtf_p2p.training.model.split import PartSpec, boundary_of, default_layer_split

VOCABULARY = 320
"""Room for bytes and the end of a document."""

POLL_S = 0.05
BEGIN_S = 180.0
"""The fork server imports all families first."""

PREFIX = "live: "
"""Of every reason that comes from here."""


def live_record(family: str, run: RunRecord, steps: int) -> RunRecord:
    """The run of `families.small_run` with a vocabulary for bytes, in two stages, and a name of its own. Raises InputError."""
    layers = run.layer_split[-1][1]
    live = replace(
        run,
        run_id=RunId(f"families-{family}"),
        model_config=_for_bytes(run.model_config),
        layer_split=default_layer_split(layers, min(2, layers)),
        dataset=f"text:{__file__}",
        microbatches_per_data_peer=4,
        total_iterations=steps,
        checkpoint_every=steps,
    )
    return replace(live, boundary=boundary_of(PartSpec.of(live, 0)))


@dataclass(frozen=True, slots=True)
class LiveTraining:
    """What a swarm has done: committed steps, the mean losses of the first and of the last three, microbatches lost or counted
    twice, and what is wrong: empty when it did all steps, lost nothing, and its loss ends lower."""

    steps: int = 0
    losses: tuple[float, float] | None = None
    lost: int = 0
    wrong: str = ""


class LiveFamilies:
    """One bootstrap peer, and what trains one family after the other there. Made, it has started nothing; `begin`, `stop`."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        self.folder, self.limit_s = folder, limit_s
        self.maddr = ""
        self._swarm = LocalSwarm(folder)

    def begin(self, families: Sequence[str]) -> None:
        """Import what these families compute with, once for all peers, and start the bootstrap peer. Raises RunFailed."""
        modules = [module for family in families if (module := _module_of(family))]
        forkserver.set_forkserver_preload(["gwtf_p2p.live.peer.process", "gwtf_p2p.live.peer.running_peer", *modules])
        forkserver.ensure_running()
        options = P2POptions.on_this_machine()
        self._swarm.start(BOOTSTRAP, PeerConfig("bootstrap", options, self.folder / "bootstrap.key"))
        started = self._swarm.wait_for(BOOTSTRAP, "started", BEGIN_S)
        if started is None:
            raise RunFailed("the bootstrap peer did not start")
        self.maddr = str(started["maddrs"][0])

    def stop(self) -> None:
        self._swarm.stop()

    def trained(self, family: str, run: RunRecord, steps: int) -> LiveTraining:
        """A swarm of two stages and a data peer, from its start to the end of the run, or of the time that it has."""
        try:
            record = live_record(family, run, steps)
        except InputError as error:
            return LiveTraining(wrong=f"{PREFIX}{error}")
        with tempfile.TemporaryDirectory(prefix="gwtf-family-") as folder:
            local = LocalRun(LocalRunConfig(1, 1, initial_peer=self.maddr), record, Path(folder))
            end = time.monotonic() + self.limit_s
            try:
                local.begin()
                while not local.finished(steps):
                    local.poll(POLL_S)
                    if time.monotonic() > end:
                        done = local.state.iterations
                        return LiveTraining(done, wrong=f"{PREFIX}{done} of {steps} steps in {self.limit_s:.0f} s")
            except RunFailed as error:
                return LiveTraining(local.state.iterations, wrong=f"{PREFIX}{str(error).partition(chr(10))[0]}")
            finally:
                local.stop()
            return _told(local, steps)


def _told(local: LocalRun, steps: int) -> LiveTraining:
    state, ends = local.state, min(3, steps)
    first, last = (sum(map(state.loss, each)) / ends for each in (range(ends), range(steps - ends, steps)))
    accounting = state.accounting()
    lost = accounting["lost"] + accounting["double_counted"]
    wrong = "" if math.isfinite(last) and last < first else f"{PREFIX}its loss went from {first:.4f} to {last:.4f}"
    return LiveTraining(state.iterations, (first, last), lost, f"{PREFIX}{accounting}" if lost else wrong)


def _module_of(family: str) -> str:
    """The module that a family's model is written in; empty where there is none, which the fork server would stumble on."""
    try:
        module = type(AutoConfig.for_model(family)).__module__.replace("configuration_", "modeling_")
        return module if find_spec(module) else ""
    except (*CONFIG_ERRORS, ImportError):
        return ""


def _for_bytes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every vocabulary in a config, and those of the configs in it, as large as it takes."""
    return {name: _large_enough(name, value) for name, value in config.items()}


def _large_enough(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _for_bytes(value)
    is_vocabulary = re.fullmatch(r"(?:.*_)?vocab_size.*", name) is not None and isinstance(value, int)
    return max(value, VOCABULARY) if is_vocabulary else value
