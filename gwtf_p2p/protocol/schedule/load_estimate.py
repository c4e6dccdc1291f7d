"""How evenly do paths load the stage peers? A quick estimate that a search can ask thousands of times before one forecast.

For each stage peer: the time by which it could be done with what the paths bring it, if nothing ever waited. A microbatch
holds one of its slots from its arrival until its backward is done, which takes what an idle swarm takes for everything below;
it keeps the device, and each direction of the line, busy for a while. The time is the largest of slots, device and line, and
to it comes what passes before a microbatch can be there and after it has left (`lost`, the mean of the paths through the stage
peer). A stage peer that recomputes holds up nothing by its
slots, and is taken to compute each forward twice. The load is the sum of the eighth powers: nearly the maximum, but it also
falls when the second-worst stage peer improves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gwtf_p2p.protocol.schedule.model import UNLIMITED, Path, Pipeline

Change = tuple[int, Path]
"""Microbatch number, its new path."""

_Visits = list[tuple[int, float, float]]
"""(stage peer, how long it holds a slot, what is lost before and after)"""


@dataclass(slots=True)
class _Undo:
    total: float
    stage_peers: dict[int, tuple[float, int, float, float]]
    visits: list[tuple[int, _Visits]]


class Load:
    """The load of a list of paths, kept up to date under changes. `total` has no unit: lower is better."""

    def __init__(self, pipeline: Pipeline, paths: Sequence[Path]) -> None:
        peers = len(pipeline.peers)
        self.pipeline = pipeline
        self._hop_us: dict[tuple[int, int, float], float] = {}
        self._known: dict[Path, _Visits] = {}
        self._slots = [pipeline.slots[i] if pipeline.waits_for_slots(i) else UNLIMITED for i in range(peers)]
        stage_of = {i: k for k, layer in enumerate(pipeline.stage_peers) for i in layer}
        line_bytes = [pipeline.hops.over_line(k) for k in range(pipeline.stages + 1)]
        self._busy_us = [
            max(before * (1 if pipeline.waits_for_slots(i) else 2) + after, line_bytes[stage_of.get(i, 0)] / line)
            for i, (before, after, line) in enumerate(zip(pipeline.before_us, pipeline.after_us, pipeline.line, strict=True))
        ]
        self._held_us, self._count = [0.0] * peers, [0] * peers
        self._lost_us, self._power = [0.0] * peers, [0.0] * peers
        self.total = 0.0
        self._visits: list[_Visits] = [[] for _ in paths]
        self.change(enumerate(paths))

    def change(self, changes: Iterable[Change]) -> _Undo:
        """Replace paths; the result undoes it."""
        held, count, lost, power = self._held_us, self._count, self._lost_us, self._power
        undo = _Undo(self.total, {}, [])
        touched = undo.stage_peers
        for m, path in changes:
            before, after = self._visits[m], self._visits_of(path)
            for stage_peer, hold_us, lost_us in before:
                if stage_peer not in touched:
                    touched[stage_peer] = (held[stage_peer], count[stage_peer], lost[stage_peer], power[stage_peer])
                held[stage_peer] -= hold_us
                count[stage_peer] -= 1
                lost[stage_peer] -= lost_us
            for stage_peer, hold_us, lost_us in after:
                if stage_peer not in touched:
                    touched[stage_peer] = (held[stage_peer], count[stage_peer], lost[stage_peer], power[stage_peer])
                held[stage_peer] += hold_us
                count[stage_peer] += 1
                lost[stage_peer] += lost_us
            undo.visits.append((m, before))
            self._visits[m] = after
        for stage_peer in touched:
            self.total += self._update(stage_peer)
        return undo

    def undo(self, undo: _Undo) -> None:
        self.total = undo.total
        for stage_peer, former in undo.stage_peers.items():
            self._held_us[stage_peer], self._count[stage_peer], self._lost_us[stage_peer], self._power[stage_peer] = former
        for m, visits in undo.visits:
            self._visits[m] = visits

    def value_of(self, changes: Iterable[Change]) -> float:
        """What the total would be."""
        undo = self.change(changes)
        total = self.total
        self.undo(undo)
        return total

    def _update(self, stage_peer: int) -> float:
        former = self._power[stage_peer]
        new = 0.0
        if self._count[stage_peer]:
            slots_us = self._held_us[stage_peer] / self._slots[stage_peer]
            busy_us = self._count[stage_peer] * self._busy_us[stage_peer]
            new = self._lost_us[stage_peer] / self._count[stage_peer] + (slots_us if slots_us > busy_us else busy_us)
            new *= new
            new *= new
            new *= new
        self._power[stage_peer] = new
        return new - former

    def _visits_of(self, path: Path) -> _Visits:
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._walk(path)
        return known

    def _walk(self, path: Path) -> _Visits:
        """The round trip of a microbatch that is alone."""
        pipeline, hops = self.pipeline, self.pipeline.hops
        now = pipeline.before_us[path[0]]
        arrived = [0.0]
        for k, (sender, receiver) in enumerate(pairwise(path)):
            now += self._hop(sender, receiver, hops.forth(k))
            arrived.append(now)
            now += pipeline.before_us[receiver]
        now += self._hop(path[-1], path[0], hops.forth(pipeline.stages)) + pipeline.loss_us[path[0]]
        done = [0.0] * len(path)
        sender = path[0]
        for k in range(len(path) - 1, -1, -1):
            now += self._hop(sender, path[k], hops.back(k)) + pipeline.after_us[path[k]]
            done[k], sender = now, path[k]
        return [(path[k], done[k] - arrived[k], now - done[k] + arrived[k]) for k in range(1, len(path))]

    def _hop(self, sender: int, receiver: int, size: float) -> float:
        hop = (sender, receiver, size)
        seconds = self._hop_us.get(hop)
        if seconds is None:
            seconds = self._hop_us[hop] = self.pipeline.idle_us(sender, receiver, size)
        return seconds
