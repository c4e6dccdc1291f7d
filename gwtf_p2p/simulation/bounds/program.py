"""The linear program of `bound`: the most microbatches per data peer in a span, or per second in the steady state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gwtf_p2p.simulation.bounds.path_times import PathTimes
from gwtf_p2p.simulation.bounds.resources import Limit, StagePeer, data_peer_limits, stage_peers_of
from gwtf_p2p.simulation.scenario.sizes import Sizes

MOST_FLOWS = 10_000
"""Above so many (data peer, hop) pairs the data peers count as one, which loosens the slots' bound a little."""

Numbers = npt.NDArray[np.float64]


@dataclass
class _Rows:
    """Sparse rows with a right-hand side that depends on the span."""

    row: list[Numbers] = field(default_factory=list)
    column: list[Numbers] = field(default_factory=list)
    value: list[Numbers] = field(default_factory=list)
    supplies: list[Limit] = field(default_factory=list)

    def add(self, columns: Numbers, values: Numbers, supply: Limit) -> None:
        self.row.append(np.full(len(columns), len(self.supplies), dtype=np.float64))
        self.column.append(columns.astype(np.float64))
        self.value.append(np.broadcast_to(np.asarray(values, dtype=np.float64), (len(columns),)))
        self.supplies.append(supply)

    def matrix(self, width: int) -> Any:
        from scipy.sparse import csr_array

        row, column, value = (np.concatenate(part) for part in (self.row, self.column, self.value))
        return csr_array((value, (row.astype(int), column.astype(int))), shape=(len(self.supplies), width))


class Program:
    """Variables: the microbatches of commodity c (a data peer, or all of them) on hop i-j of layer k; the last one is x, those
    of the mean data peer. Each has its part of x by its demand."""

    def __init__(self, times: PathTimes, sizes: Sizes, demands: Sequence[int], *, queues: bool) -> None:
        self.times, self.sizes, self.demands, self.queues = times, sizes, demands, queues
        self._part = [demand * len(demands) / sum(demands) for demand in demands]
        self.data_peers = len(times.layers[0])
        hops = sum(matrix.size for matrix in times.forth_s)
        self.is_small = self.data_peers * hops <= MOST_FLOWS
        everyone = range(self.data_peers)
        self._commodities = [[d] for d in everyone] if self.is_small else [list(everyone)]
        self.stage_peers = list(stage_peers_of(times, sizes, queues=queues))
        self._variables: dict[tuple[int, int], Numbers] = {}
        self._width = 0
        self._number_variables()
        self._limits, self._equal = _Rows(), _Rows()
        self._add_stage_peers()
        self._add_data_peers()
        self._add_links()
        self._at_most, self._exactly = self._limits.matrix(self._width), self._equal.matrix(self._width)

    def most(self, span_s: float) -> float:
        """Most microbatches per data peer in a span; per second when the span is infinite."""
        from scipy.optimize import linprog

        aim = np.zeros(self._width)
        aim[-1] = -1.0
        supply = np.array([limit.supply(span_s) for limit in self._limits.supplies])
        method = "highs" if self.is_small else "highs-ipm"
        answer = linprog(aim, self._at_most, supply, self._exactly, np.zeros(len(self._equal.supplies)), method=method)
        assert answer.success, answer.message
        return float(answer.x[-1])

    def _number_variables(self) -> None:
        for c, participants in enumerate(self._commodities):
            for k, matrix in enumerate(self.times.forth_s):
                rows = len(participants) if k == 0 else matrix.shape[0]
                columns = len(participants) if k == self.times.stages else matrix.shape[1]
                size = rows * columns
                self._variables[c, k] = np.arange(self._width, self._width + size).reshape(rows, columns).astype(float)
                self._width += size
        self._width += 1

    def _add_stage_peers(self) -> None:
        for stage_peer in self.stage_peers:
            k, i = stage_peer.stage, stage_peer.index
            flows = []
            for c in range(len(self._commodities)):
                into, out = self._variables[c, k - 1][:, i], self._variables[c, k][i, :]
                self._equal.add(np.concatenate([into, out]), np.repeat([1.0, -1.0], [len(into), len(out)]), Limit(1, 0, 0))
                flows.append(out)
            everything = np.concatenate(flows)
            for limit in stage_peer.limits:
                self._limits.add(everything, np.array(limit.amount), Limit(1, limit.rate, limit.lost_s))
            self._add_slots(stage_peer)

    def _add_slots(self, stage_peer: StagePeer) -> None:
        """A slot is held while the input arrives (unless inputs queue), and from then until the backward is done."""
        times, k, i = self.times, stage_peer.stage, stage_peer.index
        into_s = (times.forth_s[k - 1] - times.latency_s[k - 1])[:, i] * (not self.queues)
        own_s = float(times.before_s[k][i] + times.after_s[k][i])
        columns, values = [], []
        for c, participants in enumerate(self._commodities):
            columns += [self._variables[c, k - 1][:, i], self._variables[c, k][i, :]]
            values += [into_s[participants] if k == 1 else into_s, own_s + self._away_s(participants, k)[i]]
        self._limits.add(np.concatenate(columns), np.concatenate(values), Limit(1, stage_peer.slots, stage_peer.slot_lost_s))

    def _away_s(self, participants: list[int], k: int) -> Numbers:
        """[i, j]: from the start of the transfer i to j until the gradient is back at i, at the least."""
        times = self.times
        if k == times.stages:
            return np.asarray((times.forth_s[k] + times.loss_s[None, :] + times.back_s[k])[:, participants])
        away = times.forth_s[k] + times.down_s[k + 1][participants].min(axis=0)[None, :] + times.back_s[k]
        return np.asarray(away[participants] if k == 0 else away)

    def _add_data_peers(self) -> None:
        times, last = self.times, self.times.stages
        x = np.array([self._width - 1.0])
        limits = data_peer_limits(times, self.sizes)
        for c, participants in enumerate(self._commodities):
            away = self._away_s(participants, 0)
            for place, d in enumerate(participants):
                out, into = self._variables[c, 0][place, :], self._variables[c, last][:, place]
                for side in (out, into):
                    self._equal.add(np.concatenate([side, x]), np.repeat([1.0, -self._part[d]], [len(side), 1]), Limit(1, 0, 0))
                for limit in limits[d]:
                    self._limits.add(x, np.array(limit.amount * self._part[d]), Limit(1, limit.rate, limit.lost_s))
                own_s = float(times.before_s[0][d] + times.after_s[0][d])
                self._limits.add(out, own_s + away[place], Limit(1, self.demands[d], 0.0))

    def _add_links(self) -> None:
        """Seconds of a link, each way. After the last activation comes all below it, after the last gradient all above."""
        times = self.times
        for k, forth in enumerate(times.forth_s):
            latency, back = times.latency_s[k], times.back_s[k]
            ready = times.arrived_s[k] + times.before_s[k]
            rest = times.after_s[k] + times.up_s[k]
            turn = times.loss_s if k == times.stages else times.down_s[k + 1].min(axis=0)
            lost_forth = ready[:, None] + latency + turn[None, :] + back + rest[:, None]
            lost_back = ready[:, None] + forth + turn[None, :] + latency + rest[:, None]
            for (i, j), lost in np.ndenumerate(lost_forth):
                columns = self._hop_columns(k, i, j)
                self._limits.add(columns, np.array(forth[i, j] - latency[i, j]), Limit(1, 1.0, float(lost)))
                self._limits.add(columns, np.array(back[i, j] - latency[i, j]), Limit(1, 1.0, float(lost_back[i, j])))

    def _hop_columns(self, k: int, i: int, j: int) -> Numbers:
        columns = []
        for c, participants in enumerate(self._commodities):
            if (k == 0 and i not in participants) or (k == self.times.stages and j not in participants):
                continue
            row = participants.index(i) if k == 0 else i
            column = participants.index(j) if k == self.times.stages else j
            columns.append(self._variables[c, k][row, column])
        return np.array(columns)
