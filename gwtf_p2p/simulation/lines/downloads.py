"""State downloads: a joiner gets its stage's weights and optimizer from several donors at once, over the lines that all share.

As live (`live/state/transfer`): the state is cut into pieces, and every donor sends one after the other of those that nobody
has sent; when there are none left, it sends one that another is still at, and the first to come counts. So a slow donor sends
less. What a donor that dies, or falls silent for longer than a request may take, was sending is sent by others; with nobody
left that has the version, the download fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.links import Links, Transfer

PIECE_BYTES = 1 << 20
MOST_PIECES = 128
"""Of one download: those of larger states are larger, as each is an event."""


@dataclass(frozen=True, slots=True)
class Request:
    """`size` in bytes, `can_give` tells whether a donor is there and has the version."""

    peer: PeerId
    size: int
    donors: tuple[PeerId, ...]
    can_give: Callable[[PeerId], bool]


@dataclass(eq=False)
class _Download:
    """`ended` is called once, True when the last piece has arrived; never when something else is wanted before it is told.
    `donors` send, `under_way` is what each of them is at, `left` are the pieces that nobody is at, the next one last."""

    request: Request
    ended: Callable[[bool], None]
    piece_bytes: int
    donors: list[PeerId]
    left: list[int] = field(default_factory=list)
    under_way: dict[PeerId, tuple[int, Transfer]] = field(default_factory=dict)
    here: set[int] = field(default_factory=set)
    over: bool = False

    @property
    def pieces(self) -> int:
        """Of the state; one that is empty is one, too."""
        return max(1, -(-self.request.size // self.piece_bytes))

    def bytes_of(self, piece: int) -> int:
        """The last one may be smaller."""
        return min(self.piece_bytes, self.request.size - piece * self.piece_bytes)

    def next_for(self, donor: PeerId) -> int | None:
        """The next piece that nobody is at, or the first that others are still sending; None: all are on their way."""
        if self.left:
            return self.left.pop()
        return min((piece for other, (piece, _) in self.under_way.items() if other != donor), default=None)


class Downloads:
    """All downloads of a world; a peer has one at a time. `bytes_sent`: of all pieces, those included that came too late."""

    def __init__(self, links: Links, piece_bytes: int = PIECE_BYTES) -> None:
        self._links, self._piece_bytes = links, piece_bytes
        self._running: dict[PeerId, _Download] = {}
        self.bytes_sent = 0

    def start(self, request: Request, ended: Callable[[bool], None]) -> None:
        """Replaces the peer's earlier download."""
        self.stop(request.peer)
        piece_bytes = max(self._piece_bytes, -(-request.size // MOST_PIECES))
        able = [donor for donor in request.donors if request.can_give(donor)]
        download = self._running[request.peer] = _Download(request, ended, piece_bytes, able)
        download.left = list(reversed(range(download.pieces)))
        if not able:
            self._end(download, whole=False)
        for donor in able:
            self._send(download, donor)

    def stop(self, peer: PeerId) -> None:
        """The peer is gone, or wants something else; nobody is told."""
        download = self._running.pop(peer, None)
        if download is not None:
            download.over = True
            for donor in list(download.under_way):
                self._stop_sending(download, donor)

    def donor_gone(self, donor: PeerId) -> None:
        """What it was sending is taken from the others."""
        for download in list(self._running.values()):
            self._goes_without(download, donor)

    def partitioned(self) -> None:
        """Donors on the other side send nothing any more."""
        for download in list(self._running.values()):
            for donor in [d for d in download.donors if self._links.partition.separates(d, download.request.peer)]:
                self._goes_without(download, donor)

    def _goes_without(self, download: _Download, donor: PeerId) -> None:
        if download.over or donor not in download.donors:
            return
        download.donors.remove(donor)
        piece = self._stop_sending(download, donor)
        if piece is not None and piece not in {other for other, _ in download.under_way.values()}:
            download.left.append(piece)
        if not download.donors:
            self._end(download, whole=False)
        for other in [other for other in download.donors if other not in download.under_way]:
            self._send(download, other)

    def _stop_sending(self, download: _Download, donor: PeerId) -> int | None:
        """Returns the piece that it was at."""
        piece, transfer = download.under_way.pop(donor, (None, None))
        if transfer is not None:
            self.bytes_sent -= self._links.stop(transfer)
        return piece

    def _send(self, download: _Download, donor: PeerId) -> None:
        """The next piece, if there is one."""
        piece = None if download.over or donor not in download.donors else download.next_for(donor)
        if piece is None:
            return
        peer, size = download.request.peer, download.bytes_of(piece)
        latency_s = self._links.latency_s(donor, peer)
        self.bytes_sent += size

        def sent() -> None:
            del download.under_way[donor]
            self._links.kernel.after(latency_s, lambda: self._arrived(download, piece))
            self._send(download, donor)

        download.under_way[donor] = piece, self._links.start(donor, peer, size, sent)

    def _arrived(self, download: _Download, piece: int) -> None:
        if download.over or piece in download.here:
            return
        download.here.add(piece)
        if len(download.here) == download.pieces:
            self._end(download, whole=True)
            return
        for donor in [donor for donor, (same, _) in download.under_way.items() if same == piece]:
            self._stop_sending(download, donor)
            self._send(download, donor)

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
