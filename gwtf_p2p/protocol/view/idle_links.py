"""Which links that carry no traffic are measured next, so that planners need not guess, and how large the probe is.

A peer's neighbours are the online peers of the stages before and after its own (stage 0 follows stage S). Of the links to them:
- One that was never measured gets `FIRST_BYTES`.
- One that has not been used for `ROUND_TRIP_AGAIN_S` has its round trip measured anew, with `ROUND_TRIP_BYTES`; each time
  that it was found as it was told, it rests twice as long, up to `MOST_ROUND_TRIP_AGAIN_S`, until it is used again.
- One whose bandwidth was not seen for `BANDWIDTH_AGAIN_S` has that measured anew, with `BANDWIDTH_BYTES`: the one that was
  seen longest ago, and none within `BANDWIDTH_PAUSE_S` after another, so that a peer spends at most 2.2 kB/s on it. None goes
  while the peer sends something else, and none that would take more than a small part of what is left of its owner's quota.
Otherwise a link that was slow for once, as while its other end started, would be slow for good, as nobody uses it.
Who does not answer costs little: nobody is probed twice within `ROUND_TRIP_AGAIN_S`, but for its bandwidth, and nobody for that
twice within `BANDWIDTH_AGAIN_S`.

A probe that shares a line with others says what is left of the line, and when a swarm comes together everybody probes at once:
then a quarter of all links seemed to carry half of what they do, or less (`experiments/README.md`). So a probe of bandwidth is
sent while its sender sends nothing else, and taken while its receiver receives nothing else (`takes`). What was not is *put
off* to the next look, and after `MOST_PUT_OFF` of them it goes all the same, and says so.

One link does not fill a line that is wider. So when nobody is left to be measured, up to `LINE_LINKS` links are filled at the
same time, the widest, each for about `LINE_S`: what they carry together the line carries at least. Payloads that do not begin
together say less, so the best of `LINE_TRIES` counts. Again when somebody has come whose link was not known then, or after
`LINE_AGAIN_S` (at most 1.3 kB/s), and not where they cannot carry more together than is known of the line already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.replica_choice import neighbouring_stages

LOOK_S = 2.0
"""Between two looks of a peer at its links, while there is something to probe."""

FIRST_BYTES = 64 << 10
ROUND_TRIP_BYTES = 256
BANDWIDTH_BYTES = 256 << 10
ROUND_TRIP_AGAIN_S, MOST_ROUND_TRIP_AGAIN_S = 60.0, 960.0
PROBED_S = 20.0
"""So soon after a probe was sent its link is in use by that probe."""

BANDWIDTH_AGAIN_S = 300.0
BANDWIDTH_PAUSE_S = 120.0
QUOTA_PART = 1e-3
"""Of the bytes that are left, what a probe of bandwidth may take."""

PROBES_PER_LOOK = 8

MOST_PUT_OFF = 40
"""Looks. Until then planners assume what a link carries, which is better than a figure that shares a line."""

LINE_LINKS = 3
LINE_TRIES = 3
LINE_AGAIN_S = 1800.0
LINE_PAUSE_S = 20.0
"""Between two tries, and between two line probes, however many come meanwhile."""

LINE_S = 0.3
LEAST_LINE_BYTES = 16 << 10
WIDER = 1.1
"""The links of a line probe carry so many times what is known of the line, or there is nothing to find out."""


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
    """What to send to whom. `insists`: it was put off often enough, and is to be taken whatever else is on the lines."""

    to: PeerId
    size: int
    insists: bool = False

    @property
    def needs_quiet(self) -> bool:
        """Whether it says nothing of use when it shares a line."""
        return self.size > ROUND_TRIP_BYTES and not self.insists


def takes(size: int, insists: bool, is_receiving: bool) -> bool:
    """Whether a peer takes a probe of so many bytes now. `is_receiving`: something else is on its way to it."""
    return size <= BANDWIDTH_BYTES and not (Probe(PeerId(""), size, insists).needs_quiet and is_receiving)


class IdleLinks:
    """Of one peer. Whoever asks what is `due` sends it; times in seconds, of one clock."""

    def __init__(self, me: PeerId, stage: Stage) -> None:
        self._me, self._stage = me, stage
        self._probed_at: dict[PeerId, float] = {}
        self._rests_s: dict[PeerId, float] = {}
        self._bandwidth_at: dict[PeerId, float] = {}
        self._puts_off: dict[PeerId, int] = {}
        self._line_at, self._line_puts_off, self._line_tries = -inf, 0, 0
        self._line_knew: frozenset[PeerId] = frozenset()

    @property
    def has_put_off(self) -> bool:
        """Whether there is something to be sent soon."""
        return bool(self._puts_off or self._line_puts_off)

    def due(self, view: NetworkView, ages: Mapping[PeerId, LinkAge], now: float, spare: Spare) -> tuple[Probe, ...]:
        """The probes to send at this look, in the order of stages and ids, one of bandwidth last. `ages`: of the links
        that have been measured."""
        neighbours = self._neighbours(view)
        there = set(neighbours)
        self._probed_at = {peer: at for peer, at in self._probed_at.items() if peer in there}
        self._rests_s = {peer: rest_s for peer, rest_s in self._rests_s.items() if self._is_at_rest(peer, ages, now)}
        anew = self._bandwidth_due(neighbours, ages, now, spare)
        rested = [p for p in neighbours if p != anew and now - self._probed_at.get(p, -inf) >= self._rest_s(p)]
        probes = [self._probe(peer, size) for peer in rested if (size := _size(ages.get(peer), self._rest_s(peer)))]
        wanted = {anew, *(probe.to for probe in probes)}  # traffic may have measured what was put off
        self._puts_off = {peer: looks for peer, looks in self._puts_off.items() if peer in wanted}
        return (*probes[:PROBES_PER_LOOK], *([self._probe(anew, BANDWIDTH_BYTES)] if anew is not None else []))

    def _rest_s(self, peer: PeerId) -> float:
        return self._rests_s.get(peer, ROUND_TRIP_AGAIN_S)

    def _is_at_rest(self, peer: PeerId, ages: Mapping[PeerId, LinkAge], now: float) -> bool:
        """Still there, and not used since its last probe."""
        at, age = self._probed_at.get(peer), ages.get(peer)
        return at is not None and age is not None and now - age.used_s < at + PROBED_S

    def _probe(self, peer: PeerId, size: int) -> Probe:
        return Probe(peer, size, self._puts_off.get(peer, 0) >= MOST_PUT_OFF)

    def line_due(
        self, view: NetworkView, carries: Mapping[PeerId, float], line: float, now: float, spare: Spare
    ) -> tuple[Probe, ...]:
        """The probes to send at the same moment, if any, to see more of this peer's line. `carries`: bytes/s of the links that
        have been measured; `line`: bytes/s that are known of the line. To be asked when nothing else is due."""
        is_done = self._line_tries >= LINE_TRIES and carries.keys() <= self._line_knew
        rest_s = LINE_AGAIN_S if is_done else LINE_PAUSE_S
        if now - self._line_at < rest_s or spare.is_busy:
            return ()
        known = [peer for peer in self._neighbours(view) if carries.get(peer, 0.0) > 0]
        widest = sorted(known, key=lambda peer: (-carries[peer], peer))[:LINE_LINKS]
        probes = tuple(Probe(p, round(min(max(carries[p] * LINE_S, LEAST_LINE_BYTES), BANDWIDTH_BYTES))) for p in widest)
        is_wider = len(widest) > 1 and sum(carries[peer] for peer in widest) >= WIDER * line
        if not is_wider or spare.quota_bytes * QUOTA_PART < sum(probe.size for probe in probes):
            self._line_puts_off = 0
            return ()
        return probes

    def line_sent(self, is_taken: bool, measured: Iterable[PeerId], now: float) -> None:
        """A line probe has gone out, when these links had been measured. Not `is_taken`: less than two links were filled, and
        it is put off."""
        self._line_puts_off = 0 if is_taken or self._line_puts_off >= MOST_PUT_OFF else self._line_puts_off + 1
        if not self._line_puts_off:
            known = frozenset(measured)
            self._line_tries = self._line_tries + 1 if known <= self._line_knew and self._line_tries < LINE_TRIES else 1
            self._line_at, self._line_knew = now, known

    def sent(self, probe: Probe, now: float) -> None:
        """It goes out now, whatever becomes of it, unless it is put off."""
        self._probed_at[probe.to] = now
        if probe.size == BANDWIDTH_BYTES:
            self._bandwidth_at = {peer: at for peer, at in self._bandwidth_at.items() if now - at < BANDWIDTH_AGAIN_S}
            self._bandwidth_at[probe.to] = now

    def put_off(self, probe: Probe) -> None:
        """It has found this peer's line in use, or its receiver's: not sent, as it were."""
        self._puts_off[probe.to] = self._puts_off.get(probe.to, 0) + 1
        self._probed_at.pop(probe.to, None)
        if probe.size == BANDWIDTH_BYTES:
            self._bandwidth_at.pop(probe.to, None)

    def ended(self, probe: Probe, *, as_told: bool = False) -> None:
        """It has been taken, or cannot be. `as_told`: it has found the round trip that was found before."""
        self._puts_off.pop(probe.to, None)
        rest_s = self._rests_s.pop(probe.to, ROUND_TRIP_AGAIN_S)
        if as_told:
            self._rests_s[probe.to] = min(2 * rest_s, MOST_ROUND_TRIP_AGAIN_S)

    def line_rests(self, now: float) -> bool:
        """Whether no line probe can be due yet, whatever the links carry."""
        return not self._line_puts_off and now - self._line_at < LINE_PAUSE_S

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


def _size(age: LinkAge | None, rest_s: float) -> int:
    """Of a probe without a new bandwidth; 0: none."""
    if age is None:
        return FIRST_BYTES
    return ROUND_TRIP_BYTES if age.used_s >= rest_s else 0
