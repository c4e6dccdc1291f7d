"""Whom this peer has invited to connect to its data port, and what they must show.

A ticket is 16 random bytes, told over a stream that libp2p has authenticated. It is seen by whoever watches the line, and opens
nothing by itself: it names the certificate without whose key no TLS handshake comes off. Whoever has none costs a read of 20
bytes. Without a record that counts nobody is invited, so strangers cannot make this peer hold anything here.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from dataclasses import dataclass

from gwtf_p2p.live.direct.certificate import Certificate, context_for, peer_of
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

TICKET_BYTES = 16

MOST_GUESTS = 1024
"""The one that was invited longest ago goes first; it can ask again."""


@dataclass(slots=True)
class Guest:
    """Who holds a ticket. The context is made when it first comes: most of the invited do not."""

    peer: PeerId
    certificate: bytes
    context: ssl.SSLContext | None = None


class Guests:
    """All that are invited."""

    def __init__(self, own: Certificate) -> None:
        self._own = own
        self._guests: OrderedDict[bytes, Guest] = OrderedDict()
        self._tickets: dict[PeerId, bytes] = {}

    def invite(self, peer: PeerId, certificate: bytes) -> bytes:
        """A new ticket; an older one of this peer's ends, unless it is of the same certificate. Raises RemoteProtocolError."""
        ticket = self._tickets.get(peer)
        if ticket is not None:
            if self._guests[ticket].certificate == certificate:
                self._guests.move_to_end(ticket)
                return ticket
            del self._guests[ticket]
        if (whose := peer_of(certificate)) != peer:
            self._tickets.pop(peer, None)
            raise RemoteProtocolError(f"certificate: it is of {whose}")
        ticket = os.urandom(TICKET_BYTES)
        self._guests[ticket], self._tickets[peer] = Guest(peer, certificate), ticket
        while len(self._guests) > MOST_GUESTS:
            _, oldest = self._guests.popitem(last=False)
            del self._tickets[oldest.peer]
        return ticket

    def guest(self, ticket: bytes) -> Guest | None:
        """Whose ticket it is."""
        return self._guests.get(ticket)

    def context(self, guest: Guest) -> ssl.SSLContext:
        """For its handshake. Raises RemoteProtocolError."""
        if guest.context is None:
            guest.context = context_for(self._own, guest.certificate, is_server=True)
        return guest.context
