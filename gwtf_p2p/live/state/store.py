"""What one peer can give of the states of the run: its own weights as they are now, and every checkpoint on its disk."""

from __future__ import annotations

import asyncio

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import Stage


class StateStore:
    """Read by `StateDonor` for others, and by the peer itself."""

    def __init__(self, compute: Compute, checkpoints: Checkpoints) -> None:
        self._compute, self._checkpoints = compute, checkpoints

    async def state_of(self, stage: Stage, version: int) -> Reading | None:
        """The state of this stage and version, None when it is not here; to be read and ended soon."""
        if stage == self._checkpoints.stage and await self._compute.in_thread(lambda: self._compute.optimizer.steps) == version:
            reading = await self._compute.read()
            if reading.version == version:
                return reading
            reading.end()
        try:
            return Reading(version, await asyncio.to_thread(self._checkpoints.read, stage, version))
        except InputError:
            return None

    async def kept_of(self, stage: Stage) -> tuple[int, tuple[int, ...]]:
        """(epoch, versions on the disk) of a stage."""
        versions = await asyncio.to_thread(self._checkpoints.kept_of, stage)
        return self._checkpoints.epoch, versions
