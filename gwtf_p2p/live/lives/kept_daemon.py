"""A p2pd that outlives the peer it serves, for the next life of a supervised peer.

p2pd ends when its last connection that was made for good ends, so the supervisor is given one of its own; and it ends at its
next word when nobody reads what it says, so it says nothing (`P2POptions.outlives`). The connections to other peers, the place
in their routing tables, mapped ports and the slots at circuit relays are then those of before. Whoever opens a stream to the
peer meanwhile is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError

from gwtf_p2p.live.libp2p.daemon import Daemon, replicated
from gwtf_p2p.live.libp2p.daemon_lifetime import KeptProcess
from gwtf_p2p.live.libp2p.dialling import remove_handler
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.lives.handover import Handover
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

ANSWER_S = 2.0
"""A p2pd that answers later than that is not worth waiting for."""


@dataclass(frozen=True, slots=True)
class KeptDaemon:
    """`listen_path`: where the life that has left it took streams of these `protocols`, in vain by now."""

    pid: int
    control_path: str
    listen_path: str
    protocols: tuple[str, ...]
    options: P2POptions


async def leave_daemon(handover: Handover, daemon: Daemon, protocols: Sequence[str]) -> None:
    """The next life has this p2pd, whatever becomes of this one. `protocols`: those of which this life takes streams."""
    kept = KeptDaemon(daemon.pid, daemon.control_path, daemon.listen_path, tuple(protocols), daemon.options)
    try:
        process, holding = os.pidfd_open(daemon.pid), await daemon.hold()
    except OSError as error:
        logger.info("p2pd is not left to the next life: %s", error)
        return
    with holding:
        handover.leave(kept, (holding.fileno(), process))
    os.close(process)


async def take_over(handover: Handover, me: PeerId) -> Daemon | None:
    """The p2pd of the life before; None where there is none, or it serves no more: then it has been ended."""
    kept = handover.left(KeptDaemon)
    if kept is None:
        return None
    _, descriptor = handover.files(KeptDaemon)
    process = KeptProcess(kept.pid, descriptor)
    try:
        async with asyncio.timeout(ANSWER_S):
            daemon = await replicated(kept.control_path, kept.options, process)
            for protocol in kept.protocols:
                await remove_handler(kept.control_path, kept.listen_path, protocol)
            if daemon.peer_id == me:
                return daemon
    except (TimeoutError, OSError, asyncio.IncompleteReadError, ControlFailure, P2PDaemonError) as error:
        logger.info("the p2pd of before serves no more: %r", error)
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            await process.wait()  # its ports are free then
    return None
