"""Which links that carry no traffic are measured next, so that planners need not guess, and how large the probe is.

A peer's neighbours are the online peers of the stages before and after its own (stage 0 follows stage S). Of the links to them:
- One that was never measured gets `FIRST_BYTES`.
- One that has not been used for `ROUND_TRIP_AGAIN_S` has its round trip measured anew, with `ROUND_TRIP_BYTES`.
- One whose bandwidth was not seen for `BANDWIDTH_AGAIN_S` has that measured anew, with `BANDWIDTH_BYTES`: the one that was
  seen longest ago, and none within `BANDWIDTH_PAUSE_S` after another, so that a peer spends at most 2.2 kB/s on it. None goes
  while the peer sends something else, and none that would take more than a small part of what is left of its owner's quota.
Otherwise a link that was slow for once, as while its other end started, would be slow for good, as nobody uses it.
Who does not answer costs little: nobody is probed twice within `ROUND_TRIP_AGAIN_S`, but for its bandwidth, and nobody for that
twice within `BANDWIDTH_AGAIN_S`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.replica_choice import neighbouring_stages

FIRST_BYTES = 64 << 10
ROUND_TRIP_BYTES = 256
BANDWIDTH_BYTES = 256 << 10
ROUND_TRIP_AGAIN_S = 60.0
BANDWIDTH_AGAIN_S = 300.0
BANDWIDTH_PAUSE_S = 120.0
QUOTA_PART = 1e-3
"""Of the bytes that are left, what a probe of bandwidth may take."""

PROBES_PER_LOOK = 8


@dataclass(frozen=True, slots=True)
class LinkAge:
    """Seconds since a link was used or probed, and since its bandwidth was seen."""

    used_s: float
    bandwidth_s: float


@dataclass(frozen=True, slots=True)
class Spare:
    """What may be spent now: `is_busy`: this peer sends something; `quota_bytes`: what is left of its owner's quota."""

    is_busy: bool = False
    quota_bytes: float = inf


@dataclass(frozen=True, slots=True)
class Probe:
    """What to send to whom."""

    to: PeerId
    size: int


class IdleLinks:
    """Of one peer. Whoever asks what is `due` sends it; times in seconds, of one clock."""

    def __init__(self, me: PeerId, stage: Stage) -> None:
        self._me, self._stage = me, stage
        self._probed_at: dict[PeerId, float] = {}
        self._bandwidth_at: dict[PeerId, float] = {}

    def due(self, view: NetworkView, ages: Mapping[PeerId, LinkAge], now: float, spare: Spare) -> tuple[Probe, ...]:
        """The probes to send at this look, in the order of stages and ids, one of bandwidth last. `ages`: of the links
        that have been measured."""
        neighbours = self._neighbours(view)
        there = set(neighbours)
        self._probed_at = {peer: at for peer, at in self._probed_at.items() if peer in there}
        anew = self._bandwidth_due(neighbours, ages, now, spare)
        rested = [peer for peer in neighbours if now - self._probed_at.get(peer, -inf) >= ROUND_TRIP_AGAIN_S and peer != anew]
        probes = [Probe(peer, size) for peer in rested if (size := _size(ages.get(peer)))]
        return (*probes[:PROBES_PER_LOOK], *([Probe(anew, BANDWIDTH_BYTES)] if anew is not None else []))

    def sent(self, probe: Probe, now: float) -> None:
        """It goes out now, whatever becomes of it."""
        self._probed_at[probe.to] = now
        if probe.size == BANDWIDTH_BYTES:
            self._bandwidth_at = {peer: at for peer, at in self._bandwidth_at.items() if now - at < BANDWIDTH_AGAIN_S}
            self._bandwidth_at[probe.to] = now

    def _neighbours(self, view: NetworkView) -> list[PeerId]:
        near = neighbouring_stages(self._stage, view.stages)
        return [peer for stage in near for peer in view.peers_of_stage(stage) if peer != self._me]

    def _bandwidth_due(
        self, neighbours: Sequence[PeerId], ages: Mapping[PeerId, LinkAge], now: float, spare: Spare
    ) -> PeerId | None:
        """Whose bandwidth is measured anew at this look, if anybody's."""
        affordable = not spare.is_busy and spare.quota_bytes * QUOTA_PART >= BANDWIDTH_BYTES
        if not affordable or now - max(self._bandwidth_at.values(), default=-inf) < BANDWIDTH_PAUSE_S:
            return None
        tried = {peer for peer, at in self._bandwidth_at.items() if now - at < BANDWIDTH_AGAIN_S}
        rested = [peer for peer in neighbours if peer in ages and peer not in tried]
        old = [peer for peer in rested if ages[peer].bandwidth_s >= BANDWIDTH_AGAIN_S]
        return max(old, key=lambda peer: (ages[peer].bandwidth_s, peer), default=None)


def _size(age: LinkAge | None) -> int:
    """Of a probe without a new bandwidth; 0: none."""
    if age is None:
        return FIRST_BYTES
    return ROUND_TRIP_BYTES if age.used_s >= ROUND_TRIP_AGAIN_S else 0
