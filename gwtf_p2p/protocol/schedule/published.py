"""What the data peers have published of their plans, read from a view: which stage peers each microbatch is to pass.

Stage peers hand on by it, repairs go by it, and the next plan goes on from it. All of it is read once for each view, since many
ask for one after the other; a share alone is read from its data peer's record.
"""

from __future__ import annotations

from collections.abc import Iterator

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import TAG_DIGITS, Flow


class _Newest:
    """The flows of the view that was read last."""

    def __init__(self) -> None:
        self._view: NetworkView | None = None
        self._flows: tuple[Flow, ...] = ()

    def of(self, view: NetworkView) -> tuple[Flow, ...]:
        if view is not self._view:
            found = sorted(placed for peer in view.data_peers for placed in _read(view, peer))
            self._view, self._flows = view, tuple((peer, path) for _, peer, path in found)
        return self._flows


_NEWEST = _Newest()


def published_flows(view: NetworkView) -> tuple[Flow, ...]:
    """What the data peers have published, in the order of the plan that it is from. Texts that are none are left out."""
    return _NEWEST.of(view)


def published_flow(view: NetworkView, microbatch: MicrobatchId) -> tuple[PeerId, ...]:
    """The stage peers of a microbatch by its data peer's record; empty when that is of another iteration, or a stage peer
    unknown."""
    record = view.records.get(microbatch.data_peer)
    if record is None or record.flows_iteration != microbatch.iteration or microbatch.data_peer not in view.data_peers:
        return ()
    share = [stage_peers for _, _, stage_peers in sorted(_read(view, microbatch.data_peer))]
    stage_peers = share[microbatch.index % len(share)] if share else ()
    return stage_peers if all(stage_peers) else ()


def _read(view: NetworkView, data_peer: PeerId) -> Iterator[tuple[int, PeerId, tuple[PeerId, ...]]]:
    """Place in the plan, data peer, and stage peers ('' where unknown) of each text of a record."""
    tagged = view.tagged
    for text in view.records[data_peer].flows:
        place, _, tags = text.partition(":")
        if place.isdecimal() and len(tags) == view.stages * TAG_DIGITS:
            parts = enumerate((tags[i : i + TAG_DIGITS] for i in range(0, len(tags), TAG_DIGITS)), start=1)
            yield int(place), data_peer, tuple(tagged.get(part, PeerId("")) for part in parts)
