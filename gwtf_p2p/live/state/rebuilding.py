"""A stage that nobody has any more, rebuilt from the states of the stages below and above it (`training/state/rebuilt`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from torch import Tensor

from gwtf_p2p.live.state.transfer import StateDownload
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.wire.messages import Rebuild
from gwtf_p2p.training.state.rebuilt import rebuilt_state

logger = logging.getLogger(__name__)


async def rebuilt(
    like: Mapping[str, Tensor], place: tuple[Stage, int], rebuild: Rebuild, download: StateDownload
) -> dict[str, Tensor]:
    """The state of a stage at a version (`place`) with the names and shapes of `like`.

    Raises StateUnavailable where a neighbour's cannot be had, RemoteProtocolError where its layers are no counterparts.
    """
    stage, version = place
    beside = ((Stage(stage - 1), rebuild.below), (Stage(stage + 1), rebuild.above))
    states = await asyncio.gather(*(download.fetch(version, donors, other) for other, donors in beside if donors))
    made = await asyncio.to_thread(rebuilt_state, like, states)
    others = " and ".join(str(other) for other, donors in beside if donors)
    logger.warning("stage %d after %d iterations is rebuilt from stage %s", stage, version, others)
    return made
