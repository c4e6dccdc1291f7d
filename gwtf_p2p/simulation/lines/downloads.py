"""State downloads: a joiner gets its stage's weights and optimizer from several donors at once, over the lines that all share.

Every donor sends an equal part. A donor that dies, or falls silent for longer than a request may take, hands what is left of
its part to another one (downloads are chunked and resumable); with nobody left that has the version, the download fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.links import Links, Transfer


@dataclass(frozen=True, slots=True)
class Request:
    """`size` in bytes, `can_give` tells whether a donor is there and has the version."""

    peer: PeerId
    size: int
    donors: tuple[PeerId, ...]
    can_give: Callable[[PeerId], bool]


@dataclass(eq=False)
class _Download:
    """`ended` is called once, True when the last part has arrived; never when something else is wanted before it is told."""

    request: Request
    ended: Callable[[bool], None]
    parts: dict[PeerId, list[Transfer]] = field(default_factory=dict)
    missing: int = 0
    over: bool = False


class Downloads:
    """All downloads of a world; a peer has one at a time. `bytes_sent`: of all parts that were begun."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._running: dict[PeerId, _Download] = {}
        self.bytes_sent = 0

    def start(self, request: Request, ended: Callable[[bool], None]) -> None:
        """Replaces the peer's earlier download."""
        self.stop(request.peer)
        download = self._running[request.peer] = _Download(request, ended)
        able = self._able(download)
        if not able:
            self._end(download, whole=False)
        for i, donor in enumerate(able):
            self._part(download, donor, request.size * (i + 1) // len(able) - request.size * i // len(able))

    def stop(self, peer: PeerId) -> None:
        """The peer is gone, or wants something else; nobody is told."""
        download = self._running.pop(peer, None)
        if download is not None:
            download.over = True
            for parts in download.parts.values():
                for part in parts:
                    self._links.stop(part)

    def donor_gone(self, donor: PeerId) -> None:
        """What was left of its parts is taken from the others."""
        for download in list(self._running.values()):
            left = 0
            for part in download.parts.pop(donor, []):
                if part.active:
                    left += self._links.stop(part)
                    download.missing -= 1
            if left:
                able = self._able(download)
                if able:
                    self._part(download, able[0], left)
                else:
                    self._end(download, whole=False)

    def _able(self, download: _Download) -> list[PeerId]:
        return [donor for donor in download.request.donors if download.request.can_give(donor)]

    def _part(self, download: _Download, donor: PeerId, size: int) -> None:
        peer = download.request.peer
        latency_s = self._links.latency_s(donor, peer)
        download.missing += 1
        self.bytes_sent += size

        def arrived() -> None:
            download.missing -= 1
            if not download.missing:
                self._end(download, whole=True)

        def sent() -> None:
            self._links.kernel.after(latency_s, arrived)

        download.parts.setdefault(donor, []).append(self._links.start(donor, peer, size, sent))

    def _end(self, download: _Download, *, whole: bool) -> None:
        if download.over:
            return
        peer = download.request.peer
        self.stop(peer)
        self._running[peer] = download

        def told() -> None:
            if self._running.get(peer) is download:
                del self._running[peer]
                download.ended(whole)

        self._links.kernel.after(0.0, told)
