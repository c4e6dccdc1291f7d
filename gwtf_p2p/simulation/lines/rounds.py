"""Averages of stage groups: a round begins when its last member is ready, and ends for all together a butterfly later.

Where steps are delayed (`beside_work`) lines are not idle meanwhile: then every part of a group that averages all with all is a
transfer like any other. Larger groups are timed as on idle lines there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.averages.rows import rows_of
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.simulation.lines.averaging import part_bytes, round_seconds, slowest_exchange_s
from gwtf_p2p.simulation.lines.links import REQUEST_TIMEOUT_S, Links, Transfer

Tell = Callable[[PeerId, ev.Event, PeerId | None], None]
"""(to, event, about): feed an event, one latency of the path to `about` from now, or now when that is None."""


@dataclass
class _Round:
    """One average: who is ready, since when."""

    prepare: Prepare
    ready: dict[PeerId, float] = field(default_factory=dict)
    under_way: dict[tuple[PeerId, PeerId], Transfer] = field(default_factory=dict)


class Rounds:
    """All averages of a world. `on_done` hears who averaged what, since when. `bytes_sent`: by all members of finished ones.
    `state_of` (member, iteration): the digest of the weights that its average is for. `refuses` (member, of whom, what) says
    whose part is not taken by whom: a fault, as there are no numbers here."""

    def __init__(self, links: Links, averaged_bytes: Callable[[Stage, int], int], tell: Tell) -> None:
        self.on_done: Callable[[PeerId, Prepare, float], None] | None = None
        self.beside_work = False
        self._links, self._averaged_bytes, self._tell = links, averaged_bytes, tell
        self._rounds: dict[str, _Round] = {}
        self.bytes_sent = 0
        self.state_of: Callable[[PeerId, int], str] = lambda member, iteration: ""
        self.refuses: Callable[[PeerId, PeerId, Prepare], bool] = lambda member, of, prepare: False

    def join(self, peer: PeerId, prepare: Prepare, dead: list[PeerId]) -> None:
        """A member is ready. A dead member refuses the connection."""
        round_ = self._rounds.setdefault(prepare.key, _Round(prepare))
        round_.ready[peer] = self._links.kernel.now
        if self._fails_across(peer, prepare):
            return
        if dead:
            self._tell(peer, ev.AverageFailed(prepare.iteration, prepare.attempt, "connection refused", dead[0]), dead[0])
        elif len(round_.ready) == len(prepare.participants):
            members = prepare.participants
            if self.beside_work and len(members) > 1 and rows_of(members, prepare.all_with_all) is None:
                self._exchange(round_)
                return
            seconds = self._seconds(prepare)
            self._links.kernel.after(seconds, lambda: self._finish(round_))

    def _exchange(self, round_: _Round) -> None:
        """Parts and what has become of them, from each member to every other."""
        links, members = self._links, round_.prepare.participants
        size = part_bytes(len(members), self._averaged_bytes(round_.prepare.stage, round_.prepare.iteration))
        latency_s = slowest_exchange_s(links, members)

        def arrived(pair: tuple[PeerId, PeerId]) -> None:
            del round_.under_way[pair]
            if not round_.under_way:
                links.kernel.after(latency_s, lambda: self._finish(round_))

        for pair in permutations(members, 2):
            round_.under_way[pair] = links.start(*pair, size, lambda pair=pair: arrived(pair))  # type: ignore[misc]
            links.bytes_sent -= size  # they are counted here

    def _fails_across(self, peer: PeerId, prepare: Prepare) -> bool:
        """Somebody of the group is on the other side of a partition, and does not answer."""
        partition = self._links.partition
        far = next((m for m in prepare.participants if partition.separates(peer, m)), None)
        if far is None:
            return False
        failed = ev.AverageFailed(prepare.iteration, prepare.attempt, "no answer", far)
        self._links.kernel.after(REQUEST_TIMEOUT_S, lambda: self._tell(peer, failed, None))
        return True

    def partitioned(self) -> None:
        """Those that average with somebody on the other side hear no more from there."""
        for key, round_ in list(self._rounds.items()):
            for peer in sorted(round_.ready):
                if self._fails_across(peer, round_.prepare):
                    self._rounds.pop(key, None)
            if key not in self._rounds:
                for transfer in round_.under_way.values():
                    self._links.bytes_sent += self._links.stop(transfer)

    def withdraw(self, peer: PeerId, iteration: int, attempt: int) -> None:
        for key, round_ in list(self._rounds.items()):
            if peer in round_.ready and (round_.prepare.iteration, round_.prepare.attempt) == (iteration, attempt):
                self._fail(key, peer, "withdrawn", suspect=False)

    def peer_gone(self, peer: PeerId) -> None:
        for key, round_ in list(self._rounds.items()):
            if peer in round_.ready:
                self._fail(key, peer, "connection reset")

    def _seconds(self, prepare: Prepare) -> float:
        size = self._averaged_bytes(prepare.stage, prepare.iteration)
        return round_seconds(self._links, prepare.participants, size, prepare.all_with_all)

    def _finish(self, round_: _Round) -> None:
        prepare, now = round_.prepare, self._links.kernel.now
        if self._rounds.get(prepare.key) is not round_:
            return
        del self._rounds[prepare.key]
        brought = [m for m, weight in zip(prepare.participants, prepare.weights, strict=True) if weight]
        refused = {m: of for m in prepare.participants for of in brought if m != of and self.refuses(m, of, prepare)}
        for member, of in refused.items():
            self._tell(member, ev.AverageFailed(prepare.iteration, prepare.attempt, "part: too large", of, refused=True), None)
        if refused:
            return
        self.bytes_sent += 2 * (len(prepare.participants) - 1) * self._averaged_bytes(prepare.stage, prepare.iteration)
        for participant, since in sorted(round_.ready.items()):
            if self.on_done is not None:
                self.on_done(participant, prepare, since)
            digest, state = f"{prepare.key}.{sum(prepare.weights)}", self.state_of(participant, prepare.iteration)
            done = ev.AverageDone(prepare.iteration, prepare.attempt, digest, now - since, state=state)
            self._tell(participant, done, None)

    def _fail(self, key: str, at: PeerId, reason: str, *, suspect: bool = True) -> None:
        prepare = self._rounds[key].prepare
        failed = ev.AverageFailed(prepare.iteration, prepare.attempt, reason, at if suspect else None)
        failing = self._rounds.pop(key)
        for transfer in failing.under_way.values():
            self._links.bytes_sent += self._links.stop(transfer)
        for participant in sorted(failing.ready):
            if participant != at:
                self._tell(participant, failed, at)
