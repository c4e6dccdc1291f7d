"""A public peer that circuit relays for others, and grants them circuits that last.

p2pd registers two circuit relay services, a stingy one (128 KiB and 2 minutes per circuit) and one with the limits of its
flags, and which of them answers is decided by a race at its start. Forced public and on one thread the generous one wins 20 to
24 times of 24 (measured). So the answer is asked for, by a reservation from a second p2pd that lives for a moment, and p2pd is
started again when it is the wrong one.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from gwtf_p2p.live.libp2p.control import Reservation, ReservationRefused, StreamFailed, reserve
from gwtf_p2p.live.libp2p.daemon import Daemon, asking_daemon, start_daemon
from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.libp2p.options import P2POptions

logger = logging.getLogger(__name__)

STARTS = 6
STARTS_LENDING_NOTHING = 24
"""No flag of p2pd takes the stingy service away, and where no slot is lent it wins about every second start (measured; each
takes 0.7 s)."""

STINGY_BYTES = 1 << 17
"""What the stingy service grants to a circuit."""

_ANSWER_S = 5.0


async def start_public_relay(options: P2POptions, identity: Identity | None = None) -> Daemon:
    """`start_daemon`, as often as it takes. After `STARTS` (`STARTS_LENDING_NOTHING`) the peer serves as it is, and says so.

    Raises what `start_daemon` raises.
    """
    attempt, lends = 1, options.lending is None or options.lending.slots > 0
    starts = STARTS if lends else STARTS_LENDING_NOTHING
    while True:
        daemon = await start_daemon(options, identity)
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(daemon.stop)
            budget = await granted(daemon)
            on_failure.pop_all()
        if budget is None or (lends and is_generous(budget)):
            return daemon
        if attempt == starts:
            logger.warning("this circuit relay ends circuits after %d bytes and %d s", budget.circuit_bytes, budget.circuit_s)
            return daemon
        logger.info("start %d: a circuit gets %d bytes of this circuit relay; p2pd starts again", attempt, budget.circuit_bytes)
        await daemon.stop()
        attempt += 1


def is_generous(budget: Reservation) -> bool:
    return budget.circuit_bytes == 0 or budget.circuit_bytes > STINGY_BYTES


async def granted(daemon: Daemon) -> Reservation | None:
    """What this peer grants to those that reserve a slot; None when it does not circuit relay at all."""
    async with asking_daemon() as asking:
        why = await connect(asking.control_path, daemon.peer_id, await near_maddrs(daemon), _ANSWER_S)
        if why:
            logger.warning("this machine's own p2pd cannot be dialled: %s", why)
            return None
        try:
            return await reserve(asking.control_path, daemon.peer_id, _ANSWER_S)
        except (StreamFailed, ReservationRefused) as error:
            logger.warning("this peer does not relay: %s", error)
            return None


async def near_maddrs(daemon: Daemon) -> list[str]:
    """Where a process of this machine dials the daemon."""
    listens = [maddr.replace("/0.0.0.0/", "/127.0.0.1/").replace("/::/", "/::1/") for maddr in daemon.options.host_maddrs]
    fixed = [maddr for maddr in listens if "/tcp/" in maddr and not maddr.endswith("/tcp/0")]
    return fixed or [maddr for maddr in await daemon.maddrs() if "/tcp/" in maddr]
