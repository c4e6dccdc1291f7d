"""The command by which a reader of the page joins the run, and the QR code that carries it to another machine."""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address

from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.protocol.ids import RunId

JOIN_PEERS = 2
"""Initial peers in the line: one may be down, and a QR code of more can hardly be read off a screen."""


@dataclass(frozen=True, slots=True)
class JoinLine:
    """`peers` are the addresses that the line names; a public monitor names none but those it was told to."""

    peers: tuple[InitialPeer, ...] = ()

    def of(self, run_id: RunId) -> str | None:
        """What to type; None when no address may be named."""
        if not self.peers:
            return None
        words = ["gwtf", "peer", "--initial_peers", *(peer.text for peer in self.peers[:JOIN_PEERS]), "--run_id", run_id]
        return shlex.join(words)

    @property
    def note(self) -> str:
        """Who can use the line, where that is not everybody."""
        if not self.peers:
            return "This public page names no addresses. Ask the owner of the run for an initial peer."
        if all(_is_local(peer.host) for peer in self.peers[:JOIN_PEERS]):
            return "These are addresses of a local network: the line works there only."
        return ""


@lru_cache(maxsize=16)
def qr_code(line: str) -> bytes:
    """The line as an SVG image, dark on light in any colour scheme, as scanners want it."""
    import segno

    out = io.BytesIO()
    segno.make(line, error="l", micro=False).save(out, kind="svg", scale=4, border=4, dark="#000", light="#fff", xmldecl=False)
    return out.getvalue()


def _is_local(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".local")
