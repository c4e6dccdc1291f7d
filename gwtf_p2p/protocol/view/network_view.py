"""An immutable snapshot of all records of a run, as one peer sees it. Routers plan on nothing else.

Two peers with the same records have equal views, hence equal plans: peers are kept sorted by id and a view carries no clock.
Where no measurement of a link exists, the view predicts one and marks it `ASSUMED`: what links of its two peers are usually
like, as far as they have measured some. Advertised lines alone promise too much where a region or a crowded exchange is the
bottleneck, and whoever looks for the fastest way finds just those links of which nobody knows that they are slow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isinf

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.remembered import OfViews, Remembered
from gwtf_p2p.protocol.view.hop_cost import HopBytes, hop_cost_us
from gwtf_p2p.protocol.view.plans import tag
from gwtf_p2p.protocol.wire.records import Completion, LinkMeasurement, LinkSource, PeerState, StageRecord

NO_RECORD = -1
"""Below every sequence number."""

ASSUMED_LATENCY_S = 0.05
ASSUMED_BANDWIDTH_BYTES_PER_S = 12.5e6
"""Where no line is advertised, and nothing is measured."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What a peer's links are like: the medians of what it has measured, and its advertised line (inf: nothing is known)."""

    latency_s: float
    bandwidth_bytes_per_s: float

    @staticmethod
    def of(line_bytes_per_s: float, measured: Collection[tuple[float, float]]) -> Usual:
        """Of (one-way latency in seconds, bytes/s) of its links."""
        line = line_bytes_per_s if line_bytes_per_s > 0 else inf
        if not measured:
            return Usual(ASSUMED_LATENCY_S, line)
        latencies, bandwidths = (sorted(values) for values in zip(*measured, strict=True))
        return Usual(latencies[len(latencies) // 2], min(line, bandwidths[(len(bandwidths) - 1) // 2]))

    def to(self, other: Usual) -> tuple[float, float]:
        """One-way latency in seconds and bytes/s of a link between the two that neither has measured."""
        bandwidth = min(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s)
        latency_s = (self.latency_s + other.latency_s) / 2
        return latency_s, ASSUMED_BANDWIDTH_BYTES_PER_S if isinf(bandwidth) else bandwidth


@dataclass(frozen=True, slots=True)
class Link:
    """One directed link as planners see it."""

    latency_s: float
    bandwidth_bytes_per_s: float
    source: LinkSource


@dataclass(frozen=True)
class NetworkView:
    """`records` sorted by peer id; `clients` are those that only ask for forwards, and have none. Made by `NetworkView.of`.

    `microbatch_bytes` is what one hop forwards carries, `gradient_bytes` one hop back, and `end_bytes` one to or from thin data
    peers (None: they are not thin).
    """

    stages: int
    microbatch_bytes: int
    gradient_bytes: int
    records: Mapping[PeerId, StageRecord]
    _links: Mapping[PeerId, _Measured] = field(repr=False, compare=False)
    clients: frozenset[PeerId] = frozenset()
    end_bytes: int | None = None

    @staticmethod
    def of(
        records: Iterable[StageRecord],
        stages: int,
        microbatch_bytes: int,
        former: NetworkView | None = None,
        gradient_bytes: int | None = None,
        end_bytes: int | None = None,
    ) -> NetworkView:
        """Of several records of one peer the one with the highest sequence number counts; one of a stage that the run does not
        have, which anybody may sign, counts nowhere.

        `gradient_bytes` None: as many as `microbatch_bytes`.
        `former` is an earlier view, whose work is used again for the peers whose links have not changed.
        """
        newest: dict[PeerId, StageRecord] = {}
        for record in records:
            held = newest.get(record.peer)
            if record.stage > stages:
                continue
            if held is None or record.sequence_number > held.sequence_number:
                newest[record.peer] = record
        clients = frozenset(peer for peer, record in newest.items() if record.state is PeerState.ASKING)
        ordered = {peer: newest[peer] for peer in sorted(newest.keys() - clients)}
        links: dict[PeerId, _Measured] = {}
        for peer, record in ordered.items():
            before = former.records.get(peer) if former is not None else None
            said = (record.links, record.line_bytes_per_s)
            is_known = before is record or (before is not None and (before.links, before.line_bytes_per_s) == said)
            if former is not None and is_known:
                links[peer] = former._links[peer]
            else:
                links[peer] = _Measured(*said)
        back = microbatch_bytes if gradient_bytes is None else gradient_bytes
        view = NetworkView(stages, microbatch_bytes, back, ordered, links, clients, end_bytes)
        if former is not None and former.members == ordered.keys():
            vars(view)["members"] = former.members
        return view

    @property
    def hops(self) -> HopBytes:
        """What each hop carries."""
        return HopBytes(self.stages, self.microbatch_bytes, self.gradient_bytes, self.end_bytes)

    def hop_bytes(self, i: PeerId, j: PeerId) -> tuple[float, float]:
        """What hop i-j carries forth and back."""
        if self.end_bytes is not None and DATA_STAGE in (self.records[i].stage, self.records[j].stage):
            return self.end_bytes, self.end_bytes
        return self.microbatch_bytes, self.gradient_bytes

    def peers_of_stage(self, stage: Stage) -> tuple[PeerId, ...]:
        """Routable peers of a stage, sorted by id."""
        return self._routable[stage]

    @cached_property
    def _routable(self) -> Mapping[Stage, tuple[PeerId, ...]]:
        stages: dict[Stage, list[PeerId]] = {}
        for peer, record in self.records.items():
            if record.is_routable:
                stages.setdefault(record.stage, []).append(peer)
        return _Stages((stage, tuple(peers)) for stage, peers in stages.items())

    @cached_property
    def members(self) -> frozenset[PeerId]:
        """Of whom there are records: the same object as in the former view, while nobody has come or gone."""
        return frozenset(self.records)

    @cached_property
    def tagged(self) -> Mapping[tuple[int, str], PeerId]:
        """Who is meant by a stage and a tag in a published flow."""
        found: dict[tuple[int, str], PeerId] = {}
        for peer, record in self.records.items():
            found.setdefault((record.stage, tag(peer)), peer)
        return found

    @cached_property
    def furthest(self) -> tuple[tuple[int, int, PeerId], ...]:
        """(epoch, weights version, peer) of every record, the furthest first."""
        return tuple(sorted(((r.epoch, r.weights_version, p) for p, r in self.records.items()), reverse=True))

    @cached_property
    def signing(self) -> Mapping[Stage, frozenset[PeerId]]:
        """Who serves each stage and names the key that it signs with."""
        stages: dict[Stage, set[PeerId]] = {}
        for peer, record in self.records.items():
            if record.state is PeerState.ONLINE and record.signing_key:
                stages.setdefault(record.stage, set()).add(peer)
        return {stage: frozenset(peers) for stage, peers in stages.items()}

    @cached_property
    def positions_of_data_peers(self) -> tuple[tuple[int, int, PeerId], ...]:
        """(epoch, weights version, peer) of the data peers, whatever their state."""
        return tuple((r.epoch, r.weights_version, p) for p, r in self.records.items() if r.stage == DATA_STAGE)

    @cached_property
    def held(self) -> frozenset[tuple[PeerId, Stage]]:
        """Who holds which stage."""
        return frozenset((peer, record.stage) for peer, record in self.records.items())

    def since(self, former: NetworkView) -> Changes:
        """What is different from a former view; found once for all that had that one."""
        return _CHANGES.of((former, self), lambda: _changes(former, self))

    @cached_property
    def through(self) -> tuple[tuple[int, int, PeerId], ...]:
        """(epoch, weights version, peer) of those that say that the run is complete everywhere."""
        of_all = Completion.EVERYWHERE
        return tuple((r.epoch, r.weights_version, p) for p, r in self.records.items() if r.completion is of_all)

    @cached_property
    def said_lost(self) -> frozenset[PeerId]:
        """Whom at least half of the data peers hold for lost, by the newest record that there is of it: what the records alone
        say of the dead, whose own ones live on for a while."""
        told = [self.records[peer].lost for peer in self.data_peers]
        votes = Counter(named for lost in told for named in lost)
        tags = {tag(peer): peer for peer in self.records} if votes else {}
        found = []
        for named, peer in tags.items():
            newest = self.records[peer].sequence_number
            if named in votes and 2 * sum(lost.get(named, NO_RECORD) >= newest for lost in told) >= len(told):
                found.append(peer)
        return frozenset(found)

    @cached_property
    def complete(self) -> tuple[StageRecord, ...]:
        """Of those that have the last iteration's weights where they are to be."""
        return tuple(record for record in self.records.values() if record.completion is not Completion.RUNS)

    @property
    def data_peers(self) -> tuple[PeerId, ...]:
        return self.peers_of_stage(DATA_STAGE)

    def link(self, sender: PeerId, receiver: PeerId) -> Link:
        """Measured by the sender; else the reverse direction; else predicted (see the module docstring)."""
        ours, theirs = self._links.get(sender, _NOTHING), self._links.get(receiver, _NOTHING)
        measured = ours.get(receiver) or theirs.get(sender)
        return measured if measured is not None else Link(*ours.usual.to(theirs.usual), LinkSource.ASSUMED)

    def hop_cost_us(self, i: PeerId, j: PeerId) -> int:
        """The paper's linear cost of hop i-j (see `costs`); a data peer's compute time is its head's."""
        forth, back = self.link(i, j), self.link(j, i)
        compute = tuple(r.forward_s + r.backward_s for r in (self.records[i], self.records[j]))
        return hop_cost_us(
            (compute[0], compute[1]),
            (forth.latency_s, back.latency_s),
            (forth.bandwidth_bytes_per_s, back.bandwidth_bytes_per_s),
            *self.hop_bytes(i, j),
        )

    def without(self, peers: Iterable[PeerId]) -> NetworkView:
        """The same view with some peers left out, as when they are lost or excluded: one for all that leave out the same, as a
        thousand simulated peers do while newcomers are greeted."""
        gone = frozenset(peers)
        return _PARTS.of(self, gone, lambda: self.showing(_without(self.records, gone), self.clients - gone))

    def showing(self, records: Mapping[PeerId, StageRecord], clients: frozenset[PeerId] | None = None) -> NetworkView:
        """The same view with these alone of its records, in their order."""
        sizes, clients = (self.microbatch_bytes, self.gradient_bytes), self.clients if clients is None else clients
        view = NetworkView(self.stages, *sizes, records, self._links, clients, self.end_bytes)
        vars(view)["_routable"] = _Left(self, records)
        if not self.through:
            vars(view)["through"] = ()
        return view


@dataclass(frozen=True, slots=True)
class Changes:
    """`other`: whose records are others now, or gone, or new. `left`: who holds a stage no more, sorted."""

    other: frozenset[PeerId]
    left: tuple[tuple[PeerId, Stage], ...]


_CHANGES = Remembered[Changes](4)
_PARTS = OfViews[NetworkView]()


def _changes(former: NetworkView, now: NetworkView) -> Changes:
    before, after = former.records, now.records
    other = {peer for peer, record in after.items() if before.get(peer) is not record}
    other |= before.keys() - after.keys()
    left = sorted((peer, before[peer].stage) for peer in other if peer in before)
    return Changes(frozenset(other), tuple(held for held in left if held not in now.held))


class _Stages(dict[Stage, tuple[PeerId, ...]]):
    """The peers of each stage that has any."""

    def __missing__(self, stage: Stage) -> tuple[PeerId, ...]:
        return ()


class _Left(dict[Stage, tuple[PeerId, ...]]):
    """The routable peers of a view that are among some records, of each stage that is asked for."""

    def __init__(self, whole: NetworkView, records: Mapping[PeerId, StageRecord]) -> None:
        super().__init__()
        self._whole, self._records = whole, records

    def __missing__(self, stage: Stage) -> tuple[PeerId, ...]:
        left = self[stage] = tuple(peer for peer in self._whole.peers_of_stage(stage) if peer in self._records)
        return left


class Partly(Mapping[PeerId, StageRecord]):
    """All of some records but those that are hidden, of which the first `most` that are named by `since` (by number, to which
    more may come) are not hidden any more. It takes no time to make, however many there are."""

    def __init__(
        self, whole: Mapping[PeerId, StageRecord], hidden: frozenset[PeerId], since: Mapping[PeerId, int], most: int
    ) -> None:
        self._whole, self._hidden, self._since, self._most = whole, hidden, since, most

    def _hides(self, peer: PeerId) -> bool:
        return peer in self._hidden and self._since.get(peer, self._most) >= self._most

    def __getitem__(self, peer: PeerId) -> StageRecord:
        if self._hides(peer):
            raise KeyError(peer)
        return self._whole[peer]

    def __contains__(self, peer: object) -> bool:
        return isinstance(peer, str) and peer in self._whole and not self._hides(PeerId(peer))

    def __iter__(self) -> Iterator[PeerId]:
        return (peer for peer in self._whole if not self._hides(peer))

    def __len__(self) -> int:
        return len(self._whole) - len(self._hidden) + self._most


def _without(records: Mapping[PeerId, StageRecord], gone: frozenset[PeerId]) -> dict[PeerId, StageRecord]:
    """In the same order."""
    if 2 * len(gone) > len(records):
        return {peer: records[peer] for peer in sorted(records.keys() - gone)}
    left = dict(records)
    for peer in gone:
        left.pop(peer, None)
    return left


class _Measured(dict[PeerId, Link]):
    """The links of one peer that it has measured."""

    def __init__(self, links: Iterable[LinkMeasurement], line_bytes_per_s: float) -> None:
        known = (link for link in links if link.bandwidth_bytes_per_s > 0)
        super().__init__((m.to, Link(m.round_trip_s / 2, m.bandwidth_bytes_per_s, m.source)) for m in known)
        self._line_bytes_per_s = line_bytes_per_s

    @cached_property
    def usual(self) -> Usual:
        return Usual.of(self._line_bytes_per_s, [(link.latency_s, link.bandwidth_bytes_per_s) for link in self.values()])


_NOTHING = _Measured((), 0.0)


def usual_of(view: NetworkView, peer: PeerId) -> Usual:
    """What the links of a peer are like."""
    return view._links.get(peer, _NOTHING).usual


__all__ = ["Link", "LinkMeasurement", "NetworkView", "Usual", "usual_of"]
