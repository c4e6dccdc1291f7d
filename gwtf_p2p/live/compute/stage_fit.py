"""Which stages fit into the memory that this peer may take, and how it holds the one that it takes. Nothing is allocated.

While a peer runs, its memory is looked at: where the kernel counts more than it may take, it ends with what it needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from gwtf_p2p.live.compute.memory_errors import OutOfMemory
from gwtf_p2p.live.compute.tensor_store import resident_bytes
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.view.memory_plan import MemoryPlan, StageMemory, memory_plan
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.model.memory import stage_memory

LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Fitting:
    """A stage that fits, and how it is held."""

    memory: StageMemory
    plan: MemoryPlan


def fitting_stages(run: RunRecord, stages: Iterable[Stage], held: tuple[int, int], allowed: int) -> dict[Stage, Fitting]:
    """Those of `stages` that fit. `held`: the capacity, and the limit on what is kept of microbatches (0: none).

    Raises OutOfMemory if none does.
    """
    capacity, most_kept = held
    found, least = {}, []
    for stage in stages:
        memory = stage_memory(run, stage)
        plan = memory_plan(memory, capacity, allowed, most_kept)
        least.append(memory.least)
        if plan is not None:
            found[stage] = Fitting(memory, plan)
    if not found:
        what = f"no stage of run {run.run_id} fits" if len(least) > 1 else f"run {run.run_id} does not fit"
        raise OutOfMemory(f"{what}: needed {min(least) / 1e9:.3g} GB at least, --memory_gb allows {allowed / 1e9:.3g}")
    return found


async def watch_memory(allowed: int) -> None:
    """Return never; raises OutOfMemory when this process takes more than `allowed` bytes (0: no limit)."""
    while True:
        await asyncio.sleep(LOOK_S)
        taken = resident_bytes()
        if 0 < allowed < taken:
            raise OutOfMemory(f"this peer takes {taken / 1e9:.3g} GB of memory, --memory_gb allows {allowed / 1e9:.3g}")
