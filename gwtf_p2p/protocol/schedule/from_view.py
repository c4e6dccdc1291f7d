"""From a view to a `Pipeline`: the figures that the records hold, in the form in which plans are made.

`PipelineFigures` (`view/plans`) is what of a view matters for a plan. What a record does not say is predicted: an unmeasured
compute time is the median of the stage's, then of all stage peers'; an unmeasured link is what `NetworkView.link` assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Generic, TypeVar

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.remembered import OfViews, Remembered
from gwtf_p2p.protocol.schedule.model import UNLIMITED, Link, Pipeline
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS, HopBytes
from gwtf_p2p.protocol.view.network_view import NetworkView, Usual
from gwtf_p2p.protocol.view.plans import PeerFigures, PipelineFigures, Swarm
from gwtf_p2p.protocol.wire.records import StageRecord

NOTHING_MEASURED_S = 0.1
"""Compute time of a stage peer when no stage peer has measured any."""

REMEMBERED = 1 << 15
"""Peers whose figures are not made anew while their records are the same."""

T = TypeVar("T")

LEAST_S = 1e-6
"""Of a computation: forecasts need no zero times, but a measurement may round to one."""


def swarm_of(view: NetworkView, without: Iterable[PeerId] = ()) -> Swarm:
    """The routable peers, which is quicker to see than their figures."""
    gone = frozenset(without)
    made = ((r.peer, r.stage, r.capacity) for r in view.records.values() if r.is_routable and r.peer not in gone)
    return _SWARMS.of(view, gone, lambda: tuple(made))


def figures_of(view: NetworkView, without: Iterable[PeerId] = ()) -> tuple[PipelineFigures | None, str]:
    """The figures of the routable peers, or None and the reason why nothing can be planned."""
    gone = frozenset(without)
    return _ALL_FIGURES.of(view, gone, lambda: _all_figures(view, gone))


def _all_figures(view: NetworkView, gone: frozenset[PeerId]) -> tuple[PipelineFigures | None, str]:
    records = [r for r in view.records.values() if r.is_routable and r.peer not in gone]
    staffed = {r.stage for r in records}
    missing = next((k for k in range(view.stages + 1) if k not in staffed), None)
    if missing is not None:
        return None, f"stage {missing} has no peer"
    typical = typical_s(records)
    peers = tuple(_figures_of(r, typical[r.stage]) for r in records)
    return PipelineFigures(view.stages, view.microbatch_bytes, view.gradient_bytes, peers, view.end_bytes), ""


def typical_s(records: Iterable[StageRecord]) -> dict[Stage, tuple[float, float]]:
    """Median forward and backward seconds of each stage's measured peers."""
    known: dict[Stage, list[StageRecord]] = {}
    for record in records:
        known.setdefault(record.stage, [])
        if record.forward is not None and record.backward is not None:
            known[record.stage].append(record)
    everybody = [r for stage, peers in known.items() if stage != DATA_STAGE for r in peers]
    return {stage: _medians_s(peers or everybody) for stage, peers in known.items()}


def _medians_s(records: list[StageRecord]) -> tuple[float, float]:
    if not records:
        return NOTHING_MEASURED_S, 2 * NOTHING_MEASURED_S
    return median(r.forward_s for r in records), median(r.backward_s for r in records)


class _Newest(Generic[T]):
    """Of each peer, what was made of the newest that it has said: made once, though plans follow each other faster than
    measurements do, and nothing older is kept."""

    def __init__(self) -> None:
        self._made: dict[PeerId, tuple[object, tuple[float, ...], T]] = {}

    def of(self, peer: PeerId, said: object, beside: tuple[float, ...], make: Callable[[], T]) -> T:
        """What `make` gives for what this very peer has `said`, and for what counts `beside` it."""
        known = self._made.get(peer)
        if known is None or known[0] is not said or known[1] != beside:
            known = self._made[peer] = (said, beside, make())
            if len(self._made) > REMEMBERED:
                self._made = dict(list(self._made.items())[REMEMBERED // 2 :])
        return known[2]


_SWARMS = OfViews[Swarm]()
_ALL_FIGURES = OfViews[tuple[PipelineFigures | None, str]]()
_PIPELINES = Remembered[Pipeline](2)
_FIGURES = _Newest[PeerFigures]()
_MEASURED = _Newest[dict[PeerId, Link]]()
_USUAL = _Newest[Usual]()


def _figures_of(record: StageRecord, typical: tuple[float, float]) -> PeerFigures:
    return _FIGURES.of(record.peer, record, typical, lambda: _figures(record, typical))


def seconds_of(record: StageRecord, typical: tuple[float, float]) -> tuple[float, float]:
    """Of its forward and its backward: its stage's typical ones, where it has measured none."""
    first_s = record.forward_s if record.forward is not None else typical[0]
    return first_s, record.backward_s if record.backward is not None else typical[1]


def _figures(record: StageRecord, typical: tuple[float, float]) -> PeerFigures:
    first_s, second_s = seconds_of(record, typical)
    loss_s = 0.0
    if record.stage == DATA_STAGE:  # its `forward` is the head and loss, its `backward` the embedding
        loss_s, first_s = first_s, second_s
        second_s = record.finish.median_s if record.finish is not None else first_s
    links = tuple((m.to, m.round_trip_s / 2, m.bandwidth_bytes_per_s) for m in record.links if m.bandwidth_bytes_per_s > 0)
    line, capacity = record.line_bytes_per_s, record.capacity
    return PeerFigures(record.peer, record.stage, capacity, first_s, second_s, loss_s, line, links, record.recomputes)


def pipeline_of(figures: PipelineFigures) -> Pipeline:
    """Peers are numbered in the order of their ids. Links are looked up when they are first asked for."""
    return _PIPELINES.of((figures,), lambda: _pipeline_of(figures))


def _pipeline_of(figures: PipelineFigures) -> Pipeline:
    peers, stages = figures.peers, figures.stages
    line = tuple(p.line_bytes_per_s / MICROSECONDS if p.line_bytes_per_s > 0 else float("inf") for p in peers)
    links = ViewLinks(figures)
    in_stages: list[list[int]] = [[] for _ in range(stages + 1)]
    for i, p in enumerate(peers):
        in_stages[p.stage].append(i)
    data = in_stages[DATA_STAGE]
    return Pipeline(
        peers=tuple(p.peer for p in peers),
        stages=stages,
        hops=HopBytes(
            stages,
            float(figures.microbatch_bytes),
            float(figures.gradient_bytes),
            None if figures.end_bytes is None else float(figures.end_bytes),
        ),
        slots=tuple(p.capacity if p.capacity > 0 and p.stage != DATA_STAGE else UNLIMITED for p in peers),
        before_us=tuple(max(LEAST_S, p.before_s) * MICROSECONDS for p in peers),
        after_us=tuple(max(LEAST_S, p.after_s) * MICROSECONDS for p in peers),
        loss_us=tuple(max(LEAST_S, p.loss_s) * MICROSECONDS for p in peers),
        line=line,
        starts_us=tuple(links[data[0] * len(peers) + i].latency_us if i in data[1:] else 0.0 for i in range(len(peers))),
        demand=tuple((i, max(0, peers[i].capacity)) for i in data),
        stage_peers=tuple(map(tuple, in_stages)),
        links=links,
        recomputes=tuple(p.recomputes and p.stage != DATA_STAGE for p in peers),
    )


def _measured_by(figures: PeerFigures) -> dict[PeerId, Link]:
    """The links to whom this peer has measured."""
    links = figures.links
    return _MEASURED.of(figures.peer, links, (), lambda: {to: _link(far_s, wide) for to, far_s, wide in links})


def _link(latency_s: float, bytes_per_s: float) -> Link:
    return Link(latency_s * MICROSECONDS, bytes_per_s / MICROSECONDS)


class ViewLinks(dict[int, Link]):
    """By sender x peers + receiver: measured by the sender, else by the receiver, else assumed (`NetworkView.link`)."""

    def __init__(self, figures: PipelineFigures) -> None:
        super().__init__()
        self._figures = figures
        self._known: dict[int, dict[PeerId, Link]] = {}

    def _measured(self, sender: int) -> dict[PeerId, Link]:
        """The links to whom it has measured."""
        known = self._known.get(sender)
        if known is None:
            known = self._known[sender] = _measured_by(self._figures.peers[sender])
        return known

    def usual(self, peer: int) -> Usual:
        """What links of this peer are like that nobody has measured."""
        figures = self._figures.peers[peer]
        line, links = figures.line_bytes_per_s, figures.links
        return _USUAL.of(figures.peer, links, (line,), lambda: Usual.of(line, [(far_s, wide) for _, far_s, wide in links]))

    def measured(self, senders: Sequence[int], receivers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Index pairs that are measured in at least one direction."""
        peers = self._figures.peers
        row, column = ({peers[i].peer: n for n, i in enumerate(side)} for side in (senders, receivers))
        for n, i in enumerate(senders):
            yield from ((n, column[to]) for to in self._measured(i) if to in column)
        for n, i in enumerate(receivers):
            yield from ((row[to], n) for to in self._measured(i) if to in row)

    def __missing__(self, number: int) -> Link:
        peers = self._figures.peers
        sender, receiver = divmod(number, len(peers))
        a, b = peers[sender], peers[receiver]
        found = self._measured(sender).get(b.peer) or self._measured(receiver).get(a.peer)
        if found is None:
            found = _link(*self.usual(sender).to(self.usual(receiver)))
        self[number] = found
        return found
