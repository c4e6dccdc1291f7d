"""Both halves of the direct streams of one peer: its own data port, and the doors of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gwtf_p2p.live.direct.certificate import make_certificate
from gwtf_p2p.live.direct.doors import Ask, Doors, Header, Streams
from gwtf_p2p.live.direct.invitations import Guests
from gwtf_p2p.live.direct.listener import Accept, Listener
from gwtf_p2p.live.libp2p.dialling import connections, is_circuit
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

_FAMILIES = ("/ip4/", "/ip6/")


@dataclass(frozen=True, slots=True)
class DirectOptions:
    """`hosts`: IP addresses where the data port is, none to connect only. `port`: 0 for any."""

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 0


def hosts_of(maddrs: Sequence[str]) -> tuple[str, ...]:
    """The IP addresses in the multiaddrs on which p2pd listens, each once."""
    return tuple(dict.fromkeys(_host(maddr) for maddr in maddrs if maddr.startswith(_FAMILIES)))


def _host(maddr: str) -> str:
    """The address in a multiaddr of one of these families."""
    return maddr.split("/")[2]


class DirectStreams:
    """Made before the data plane that uses it, which hands over in `start` how to ask and whom to take. It is also the service
    that answers where the data port is."""

    def __init__(self, identity: Identity, control_path: str, options: DirectOptions) -> None:
        self._own, self._control_path, self._options = make_certificate(identity), control_path, options
        self._guests = Guests(self._own)
        self._knows: Callable[[PeerId], bool] = lambda peer: True
        self._listener: Listener | None = None
        self._doors: Doors | None = None

    @property
    def port(self) -> int:
        """Where this peer listens; 0 while it does not."""
        return self._listener.port if self._listener is not None else 0

    def start(self, ask: Ask, accept: Accept, may_come: Callable[[PeerId], bool], knows: Callable[[PeerId], bool]) -> None:
        """`may_come`: of a guest, before its handshake. `knows`: only who has a record that counts is invited."""
        self._knows = knows
        self._doors = Doors(self._own, ask, self._hosts)
        if not self._options.hosts:
            return
        self._listener = Listener(self._options.hosts, self._options.port, self._guests, may_come)
        try:
            self._listener.start(accept)
        except OSError as error:
            where = f"port {self._options.port}" if self._options.port else "a port of its own"
            logger.warning("no data port, p2pd carries everything that others send: %s: %s", where, error.strerror or error)

    async def stop(self) -> None:
        """May be called twice. Streams that are open are their holders' to end."""
        if self._doors is not None:
            await self._doors.close()
        if self._listener is not None:
            await self._listener.stop()

    def is_open(self, peer: PeerId) -> bool:
        """Whether a direct stream to the peer can be had, as far as is known; it is found out where it is not."""
        return self._doors is not None and self._doors.is_open(peer)

    async def connect(self, peer: PeerId) -> Streams | None:
        """None when there is none to be had."""
        return await self._doors.connect(peer) if self._doors is not None else None

    def failed(self, peer: PeerId, why: str) -> None:
        """A direct stream has broken."""
        if self._doors is not None:
            self._doors.shut(peer, why)

    async def _hosts(self, peer: PeerId) -> list[str]:
        found = (await connections(self._control_path)).get(peer, [])
        direct = [maddr for maddr in found if not is_circuit(maddr) and maddr.startswith(_FAMILIES)]
        return list(dict.fromkeys(map(_host, direct)))

    # ---- as `rpc/api.RpcService`

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """Where this peer listens, and what opens it there. Raises RemoteProtocolError."""
        certificate = header.get("certificate")
        if not isinstance(certificate, bytes):
            raise RemoteProtocolError("certificate: expected bytes")
        if not self.port:
            raise RemoteProtocolError("this peer has no data port")
        if not self._knows(sender):
            raise RemoteProtocolError("no record of this peer is known yet")
        return {"port": self.port, "ticket": self._guests.invite(sender, certificate), "certificate": self._own.der}

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        """No payload belongs to the question."""
        raise RemoteProtocolError("expected a call")

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """No payload was accepted."""

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """No payload was accepted."""
