"""What `gwtf doctor` finds out about the machine: limits, memory, disk, and how fast its device computes a stage."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.memory_plan import StageMemory
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.memory import stage_memory
from gwtf_p2p.training.model.split import PartSpec, build_stage_part

REPEATS = 3
ENOUGH_S = 2.0
"""A slow device is measured less often."""

REFERENCE_MODEL: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}
"""Two decoder layers of 6 million weights: a stage of a small model, measured when no run is named."""
REFERENCE_BATCH, REFERENCE_LENGTH = 2, 128

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """Median seconds of one microbatch's forward and backward of one stage. `state_bytes`: weights, gradient, two moments."""

    what: str
    tokens: int
    forward_s: float
    backward_s: float
    state_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (self.forward_s + self.backward_s)


@dataclass(frozen=True, slots=True)
class MachineFindings:
    """`memory_bytes`: available now, within the container's limit; 0 where the system does not tell. `allowed_bytes`: what the
    peer may take of it (0: all). `port_why`: why the port
    cannot be listened on, empty when it can. `cuda`: names of the CUDA devices."""

    soft_files: int
    hard_files: int
    memory_bytes: int
    disk_bytes: int
    disk_at: Path
    port: int
    port_why: str
    device: str
    cuda: tuple[str, ...]
    allowed_bytes: int = 0


def examine_machine(folder: Path, port: int, device: str) -> MachineFindings:
    """`folder`: where state will be kept; its nearest existing parent is judged."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    at = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return MachineFindings(
        soft_files=_count(soft),
        hard_files=_count(hard),
        memory_bytes=available_memory(),
        disk_bytes=shutil.disk_usage(at).free,
        disk_at=at,
        port=port,
        port_why=why_port_taken(port),
        device=device,
        cuda=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
    )


def available_memory() -> int:
    """Bytes that can still be taken without swapping; 0 where the system does not tell."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return 0
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no limit reads "max"
        return free
    return min(free, max(0, limit - used))


def why_port_taken(port: int) -> str:
    """Why this TCP port cannot be listened on; empty when it can. Port 0 always can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("0.0.0.0", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def stages_of(run: RunRecord) -> tuple[StageMemory, ...]:
    """What each stage for stage peers takes; nothing is allocated. Raises InputError where the record describes no model."""
    return tuple(stage_memory(run, stage) for stage in range(1, run.stages + 1))


def measure_stage(executor: ExecutorConfig, run: RunRecord | None = None) -> StageSpeed:
    """Forward and backward of a real stage on the device: stage 1 of the run, or the reference stage.

    Raises InputError for a device that this machine lacks, and what torch raises when its memory does not suffice.
    """
    if run is not None:
        spec, batch, length = PartSpec.of(run, Stage(1)), run.microbatch_size, run.sequence_length
        what = f"stage 1 of run {run.run_id}"
    else:
        layers = int(REFERENCE_MODEL["num_hidden_layers"])
        batch, length = REFERENCE_BATCH, REFERENCE_LENGTH
        spec = PartSpec(REFERENCE_MODEL, ((0, layers),), 1, 0, (batch, length))
        what = "a LLaMA stage of two layers, hidden size 512"
    stage = StageExecutor(build_stage_part(spec), executor, run.loss if run is not None else None)
    generator = torch.Generator().manual_seed(0)
    payload: tuple[torch.Tensor, ...] = tuple(
        torch.zeros(tensor.shape) if tensor.is_integer else torch.randn(tensor.shape, generator=generator)
        for tensor in stage.part.boundaries.input
    )
    gradient = stage.evaluate(payload)
    forwards: list[float] = []
    backwards: list[float] = []
    for index in range(REPEATS + 1):
        if sum(forwards[1:] + backwards[1:]) > ENOUGH_S:
            break
        microbatch = MicrobatchId(PeerId("doctor"), 0, index)
        forwards.append(_seconds(stage.device, lambda m=microbatch: stage.forward(m, payload)))
        backwards.append(_seconds(stage.device, lambda m=microbatch: stage.backward(m, gradient)))
    weights = sum(parameter.numel() for parameter in stage.part.parameters.values())
    return StageSpeed(what, batch * length, median(forwards[1:]), median(backwards[1:]), 16 * weights)


def _seconds(device: torch.device, work: Any) -> float:
    """Of one call, to its end on the device. The first one, which also warms up, is not counted by the caller."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _count(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit
