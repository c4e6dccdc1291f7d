"""An iteration that is under way: where every microbatch is by forecast, and what a loss or a return changes in that.

A plan that is revised in the middle of an iteration must not count on time that has passed: a stage peer that has come can do
nothing before it came, and what a lost stage peer had done is done again, from now on. `Underway` is a forecast
(`pipeline_model`) that was stopped at a moment. It can be continued with other paths, as often as a search likes, and it can
lose stage peers.
**What a loss does**, as the protocol does it (`repair`). Let the stage peer of stage k be lost, X the peer before it on the
path, and Z the one after it. A microbatch
- that has not come to it goes to the replacement when it gets there;
- that is at it, or between it and a neighbour on the way down, is handed by X to the replacement anew;
- that is further down has its forward redone by the replacement, beside its way;
- that is at it on the way back, or between, is handed by X to the replacement, which has the gradient from Z at once;
- that has been through both passes (with exact recovery) is redone in stage k, beside its way.

**Simplified.** One that is beside its way does not hold up the microbatch itself, but the end of the iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify

from gwtf_p2p.protocol.schedule.model import (
    ARRIVING,
    COMPUTING,
    DONE,
    QUEUED,
    SENDING,
    WINDOW,
    Forecast,
    Path,
    Pipeline,
    Run,
    round_trip,
)


@dataclass(frozen=True, slots=True, eq=False)
class Underway:
    """`run` has come to `at_us`. `microbatches` of its items are microbatches, the others stages that are redone."""

    run: Run
    at_us: float
    microbatches: int

    @classmethod
    def begun(cls, pipeline: Pipeline, paths: Sequence[Path]) -> Underway:
        """At its beginning."""
        return cls(Run(pipeline, paths, WINDOW), 0.0, len(paths))

    def forecast(self, paths: Sequence[Path]) -> Forecast:
        """The whole iteration, if it goes on with these paths; they may differ in what is still to come."""
        run = self._continued(self.run.pipeline, paths)
        run.advance(float("inf"))
        seen, stages = run.result, self.run.pipeline.stages
        seen.makespan_us = max(seen.finish_us)
        del seen.finish_us[self.microbatches :], seen.wait_us[self.microbatches * stages :]
        return seen

    def is_handed_to(self, m: int, stage: int) -> bool:
        """Is microbatch m at this stage or beyond, or on its way there? To the first stage it goes once it is released."""
        run = self.run
        flies = run.state[m] in (SENDING, ARRIVING)
        return run.position[m] >= stage - flies if stage > 1 else run.sequence[m] > 0

    def later(self, paths: Sequence[Path], at_us: float) -> Underway:
        """What has come of it at a later moment."""
        run = self._continued(self.run.pipeline, paths)
        run.advance(at_us)
        return Underway(run, max(at_us, self.at_us), self.microbatches)

    def changed(self, pipeline: Pipeline, paths: Sequence[Path]) -> Underway:
        """Stage peers have come or gone: `pipeline` has the peers of this one first, and only those that are there in its
        stages. `paths` lead through these; what leads elsewhere now through a stage peer that is gone, has lost it."""
        run = _copy(self.run, pipeline, paths, self.microbatches)
        present = {i for peers in pipeline.stage_peers for i in peers}
        gone = set(range(len(pipeline.peers))) - present
        _Loss(self.run, run, gone, self.at_us, self.microbatches).carry_out()
        return Underway(run, self.at_us, self.microbatches)

    def _continued(self, pipeline: Pipeline, paths: Sequence[Path]) -> Run:
        run = _copy(self.run, pipeline, paths, self.microbatches)
        run.begin(self.at_us)
        return run


def _copy(former: Run, pipeline: Pipeline, paths: Sequence[Path], microbatches: int) -> Run:
    """A run of its own from the same state. Peers that `former` does not know are idle."""
    redone = [route[: former.turn] for route in former.routes[microbatches:]]
    run = Run(pipeline, [*paths, *redone], former.window)
    more, known = len(pipeline.peers) - len(former.kept), len(former.kept)
    run.position, run.state, run.version = former.position.copy(), former.state.copy(), former.version.copy()
    run.left, run.rate, run.updated = former.left.copy(), former.rate.copy(), former.updated.copy()
    run.queued_at, run.sequence, run.last = former.queued_at.copy(), former.sequence.copy(), former.last.copy()
    run.offered = [row.copy() for row in former.offered]
    run.again = former.again.copy()
    run.jumps, run.released, run.heap = former.jumps.copy(), former.released, former.heap.copy()
    run.kept, run.running = former.kept + [0] * more, former.running + [False] * more
    run.backlog = former.backlog + [0] * more
    run.queues = [queue.copy() for queue in former.queues] + [[] for _ in range(more)]
    run.up = [items.copy() for items in former.up] + [[] for _ in range(more)]
    run.down = [items.copy() for items in former.down] + [[] for _ in range(more)]
    for number, items in former.on_link.items():
        sender, receiver = divmod(number, known)
        run.on_link[sender * (known + more) + receiver] = items.copy()
    for pending in run.pending:
        pending[:] = [m for m in pending if m < microbatches and not run.sequence[m]]
    seen = former.result
    run.result = Forecast(0.0, seen.finish_us.copy(), seen.release_us.copy(), seen.wait_us.copy(), run.offered)
    return run


class _Loss:
    """What the loss of stage peers does to `run`, a copy of `former` whose paths avoid them already."""

    def __init__(self, former: Run, run: Run, gone: set[int], now: float, microbatches: int) -> None:
        self.former, self.run, self.gone, self.now, self.microbatches = former, run, gone, now, microbatches
        self._restarts: list[tuple[int, int]] = []
        self._redone: list[tuple[int, int, bool]] = []

    def carry_out(self) -> None:
        run, gone, turn = self.run, self.gone, self.run.turn
        for m in range(self.microbatches):
            if run.sequence[m]:
                for k in range(1, turn):
                    if self.former.routes[m][k] in gone:
                        self._lose(m, k)
        for item in range(self.microbatches, len(run.routes)):
            if run.state[item] != DONE:
                self._lose_redone(item)
        for stage_peer in gone:
            run.queues[stage_peer], run.up[stage_peer], run.down[stage_peer] = [], [], []
            run.kept[stage_peer], run.backlog[stage_peer], run.running[stage_peer] = 0, 0, False
        for item, position in self._restarts:
            self._go(item, position)
        for m, k, whole in self._redone:
            self._redo(m, k, whole)

    def _lose(self, m: int, k: int) -> None:
        """Of the stage peer of stage k on the way of microbatch m."""
        run, position, state, back = self.run, self.run.position[m], self.run.state[m], 2 * self.run.turn - k
        at, sending, flies = state in (QUEUED, COMPUTING), state == SENDING, state in (SENDING, ARRIVING)
        if position < k - 1 or (position == k - 1 and not (flies and position >= 0)):
            run.backlog[run.routes[m][1]] += k == 1
        elif position == k - 1 or (position == k and (at or sending)):
            self._restart(m, k - 1)
        elif position < back - 1 or (position == back - 1 and not flies):
            self._redone.append((m, k, False))
        elif position == back - 1 or (position == back and (at or sending)):
            run.jumps[m] = (k, back - 1)
            self._restart(m, k - 1)
        else:
            self._redone.append((m, k, True))

    def _lose_redone(self, item: int) -> None:
        """Of a stage peer on the way of a redone stage: if it is the one that redoes it, that is asked for anew in `_lose`."""
        run, former, gone = self.run, self.former, self.gone
        last = run.last[item]
        stage = last if last < run.turn else 2 * run.turn - last
        if former.routes[item][stage] in gone:
            self._take_out(item)
            run.state[item] = DONE
        elif run.state[item] in (SENDING, ARRIVING):
            position = run.position[item]
            ends = former.routes[item][position : position + 2]
            if gone.intersection(ends):
                other = stage - 1 if position < stage else stage + 1
                path = list(run.routes[item][: run.turn])
                path[other] = run.pipeline.stage_peers[other][0]
                run.routes[item] = round_trip(tuple(path))
                self._restart(item, position)

    def _restart(self, item: int, position: int) -> None:
        if all(item != other for other, _ in self._restarts):
            self._take_out(item)
            self._restarts.append((item, position))

    def _take_out(self, item: int) -> None:
        """Of wherever it is."""
        run, route, position = self.run, self.former.routes[item], self.run.position[item]
        if run.state[item] == SENDING:
            sender, receiver = route[position], route[position + 1]
            run.up[sender].remove(item)
            run.down[receiver].remove(item)
            run.on_link[sender * len(run.pipeline.peers) + receiver].remove(item)
        elif run.state[item] == QUEUED:
            queue = run.queues[route[position]]
            queue[:] = [entry for entry in queue if entry[2] != item]
            heapify(queue)
        run.version[item] += 1

    def _go(self, item: int, position: int) -> None:
        run = self.run
        run.position[item] = position
        run.backlog[run.routes[item][1]] += position == 0
        run.send(item, position, run.routes[item][position], self.now)

    def _redo(self, m: int, k: int, whole: bool) -> None:
        """Stage k of microbatch m, or (not `whole`) its forward, as an item of its own."""
        run, back = self.run, 2 * self.run.turn - k
        item = len(run.routes)
        run.routes.append(run.routes[m])
        run.offered.append(run.offered[m].copy())
        for times in (run.left, run.rate, run.updated, run.queued_at, run.result.finish_us, run.result.release_us):
            times.append(0.0)
        for numbers in (run.position, run.version, run.sequence):
            numbers.append(0)
        run.result.wait_us.extend([0.0] * run.pipeline.stages)
        run.state.append(ARRIVING)
        run.last.append(back if whole else k)
        if whole:
            run.jumps[item] = (k, back - 1)
        self._go(item, k - 1)
