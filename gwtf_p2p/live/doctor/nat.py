"""How `gwtf doctor` finds out about the NAT: initial peers are asked to dial this machine, in an order that proves something.

Each trial has an identity of its own, thrown away afterwards, and two p2pd with it: *home* listens on the port in question,
*asker* leaves by ports of its own and has a public peer dial home (AutoNAT). So home can be dialled before it has called
anybody (see `nat_kind`, which says why and in which order). The identities differ because a peer that has dialled in vain does
not try that address of that identity again for some seconds. None of these p2pd runs libp2p's DHT, which would call peers
unasked and so open doors that the dials are to find closed. A peer that runs on this machine is not disturbed; its port is
taken then, and another one is examined.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gwtf_p2p.live.libp2p.control import DIAL_REFUSED, Identified, StreamFailed, dial_back, identify
from gwtf_p2p.live.libp2p.daemon import Daemon, running_daemon
from gwtf_p2p.live.libp2p.dialling import connect, connections
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.nat.port_mapping import FIND_S, Mapped, PortMapper
from gwtf_p2p.live.nat.reachability_rules import host_of, port_of
from gwtf_p2p.protocol.ids import PeerId

ANSWER_S = 5.0
_START_S = 40.0
"""p2pd starts in 0.2 s; a doctor also visits machines that have too much to do."""

YES_S = 4.0
"""How long a dial-back may take: a yes takes a few round trips, a no 15 s, so silence counts as no."""


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """An initial peer that answers. `host`: the address at which this machine reaches it."""

    initial: InitialPeer
    host: str
    says: Identified


@dataclass(frozen=True, slots=True)
class MappingTrial:
    """`mapped` None: no router maps, and `why`. `dialled`: whether a public peer got in there; None when nobody could try."""

    mapped: Mapped | None = None
    why: str = ""
    outside_ip: str = ""
    dialled: bool | None = None


@dataclass(frozen=True, slots=True)
class WarmTrial:
    """What came of dials to a port that has called the first peer, and then the second: see `nat_kind.Evidence`."""

    observed: tuple[str, ...]
    stranger: bool | None
    known: bool | None


async def meet(initial: Sequence[InitialPeer]) -> tuple[list[KnownPeer], dict[str, str]]:
    """Connect to all; those that answer, one address each, and the addresses that do not, with the reason."""
    known: dict[PeerId, KnownPeer] = {}
    failed: dict[str, str] = {}
    async with quiet_daemon(None, ()) as daemon:
        for peer in initial:
            if peer.peer in known:
                continue
            why = await connect(daemon.control_path, peer.peer, [peer.text], ANSWER_S)
            try:
                says = await identify(daemon.control_path, peer.peer, ANSWER_S) if not why else None
            except StreamFailed as error:
                says, why = None, str(error)
            if says is None:
                failed[peer.text] = why
                continue
            at = (await connections(daemon.control_path)).get(peer.peer) or [peer.text]
            known[peer.peer] = KnownPeer(peer, host_of(at[0]), says)
    return list(known.values()), failed


async def cold_dial(first: KnownPeer, port: int, folder: Path) -> bool | None:
    """Does a dial get in to a port that has sent nothing yet? None when this peer does not dial."""
    if not first.says.dials_back:
        return None
    identity = create_identity(folder / "cold.key")
    async with quiet_daemon(identity, listen_on(port)), quiet_daemon(identity, ()) as asker:
        return await _dials(asker, first, f"/ip4/{host_of(first.says.observed)}/tcp/{port}")


async def warm_dials(home: Daemon, identity: Identity, first: KnownPeer, second: KnownPeer | None) -> WarmTrial:
    """Home calls the first peer, both dial home, then home calls the second. `second` is on another address, or None."""
    observed = await _observed_by(home, first)
    async with quiet_daemon(identity, ()) as asker:
        stranger, known = await asyncio.gather(_dials(asker, second, observed), _dials(home, first, observed))
    seen = (observed, await _observed_by(home, second) if second else "")
    return WarmTrial(tuple(filter(None, seen)), stranger, known)


async def try_mapping(known: Sequence[KnownPeer], folder: Path) -> MappingTrial:
    """Have the router map some port that nobody has used, and a public peer dial it; the mapping is taken back."""
    mapper, port = PortMapper(), free_port()
    try:
        maddr = await mapper.map_port(port, FIND_S)
        dialling = next((peer for peer in reversed(known) if peer.says.dials_back), None)
        if maddr is None or dialling is None:
            return MappingTrial(mapper.mapped, mapper.reason, mapper.outside_ip)
        identity = create_identity(folder / "mapping.key")
        async with quiet_daemon(identity, listen_on(port)), quiet_daemon(identity, ()) as asker:
            return MappingTrial(mapper.mapped, "", mapper.outside_ip, await _dials(asker, dialling, maddr))
    finally:
        await mapper.close()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.bind(("0.0.0.0", 0))
        return int(trial.getsockname()[1])


def listen_on(port: int) -> tuple[str, ...]:
    return (f"/ip4/0.0.0.0/tcp/{port}",)


async def _observed_by(home: Daemon, peer: KnownPeer) -> str:
    """Home's public address as this peer sees it; empty when it does not tell."""
    if await connect(home.control_path, peer.initial.peer, [peer.initial.text], ANSWER_S):
        return ""
    try:
        return (await identify(home.control_path, peer.initial.peer, ANSWER_S)).observed
    except StreamFailed:
        return ""


async def _dials(asking: Daemon, peer: KnownPeer | None, at: str) -> bool | None:
    """Whether the peer, asked by this p2pd, has dialled its identity at that port in time; None when it would not try."""
    if peer is None or not at or not peer.says.dials_back:
        return None
    whom = peer.initial
    if await connect(asking.control_path, whom.peer, [whom.text], ANSWER_S):
        return None
    try:
        answer = await dial_back(asking.control_path, asking.peer_id, whom.peer, (at,), YES_S)
    except StreamFailed:
        return False
    if answer.reason == DIAL_REFUSED:
        return None
    return bool(answer.address) and port_of(answer.address) == port_of(at)


@asynccontextmanager
async def quiet_daemon(identity: Identity | None, host_maddrs: tuple[str, ...]) -> AsyncIterator[Daemon]:
    """A p2pd that does nothing unasked (see `P2POptions.is_quiet`). Raises DaemonFailed."""
    options = P2POptions(
        host_maddrs=host_maddrs,
        check_identity=False,
        auto_nat=False,
        nat_port_map=False,
        is_quiet=True,
        start_timeout_s=_START_S,
    )
    async with running_daemon(options, identity) as daemon:
        yield daemon
