"""Copies of other stages' checkpoints on this disk, and copies of this stage's on others'.

Which stages a peer keeps copies for, whom it asks for them and which version it copies next is decided in
`protocol/view/replica_choice`. A copy is fetched like any state: in chunks,
hashed, off the compute thread, at a pace that leaves the line to the training. Several donors of a stage with equal
checkpoints share the work. What others keep of this peer's own stage counts as kept here: this peer can fetch it (`remote`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.live.state.transfer import Pace, StateDownload, StateTooLarge, StateUnavailable
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.replica_choice import (
    LOOK_S,
    CopySearch,
    Kept,
    kept_by,
    next_copy,
    secured_version,
    who_keeps,
    worth_keeping,
)
from gwtf_p2p.training.state.stored import StoredState

logger = logging.getLogger(__name__)

SEEK_PERIOD_S = 1.0
MOST_TOLD = 8
"""Newest copied versions in a record, however many are kept on the disk."""


class Replication:
    """Of one peer. `view` gives the newest view, `serves` whether this peer takes part; `on_remote` hears of changes."""

    def __init__(self, checkpoints: Checkpoints, download: StateDownload, me: PeerId) -> None:
        self._checkpoints, self._download, self._me = checkpoints, download, me
        self.remote: dict[int, tuple[PeerId, ...]] = {}
        self.on_remote: Callable[[], None] = lambda: None
        self._adopted = self._noted = 0
        self._search = CopySearch(checkpoints.stage, checkpoints.options.copies)

    @property
    def _epoch(self) -> int:
        """The one that this peer is in, or the one that it has found the others in."""
        return max(self._adopted, self._checkpoints.epoch)

    @property
    def copied(self) -> tuple[int, ...]:
        """What the record tells: versions of this peer's stage that are here and copied. Without copies, its own must do."""
        checkpoints = self._checkpoints
        twice = checkpoints.copied.intersection(checkpoints.kept) if checkpoints.options.copies else checkpoints.kept
        return tuple(sorted(worth_keeping(twice, MOST_TOLD, checkpoints.secured)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Versions of this peer's stage that it has on its disk or can fetch."""
        remote = self.remote if self._noted == self._epoch else ()
        return tuple(sorted({*self._checkpoints.kept, *remote}))

    async def adopt(self, view: NetworkView) -> int:
        """What others keep of this stage, at the start; returns the epoch that it belongs to."""
        found = await self._ask(view.records)
        self._adopted = max([self._checkpoints.epoch, *(h for h, kept in found.values() if kept)])
        self._note(who_keeps(found, self._adopted), self._adopted)
        return self._adopted

    async def fetch(self, version: int) -> StoredState:
        """A version of this stage from whoever keeps it. Raises StateUnavailable."""
        return await self._download.fetch(version, self.remote.get(version, ()), self._checkpoints.stage)

    async def run(self, view: Callable[[], NetworkView | None], serves: Callable[[], bool]) -> None:
        """Look for copies of what this peer may need, and make copies of what it keeps for others, until cancelled."""
        clock, checkpoints = asyncio.get_running_loop().time, self._checkpoints
        while True:
            await asyncio.sleep(LOOK_S if serves() else SEEK_PERIOD_S)
            now = view()
            if now is not None and (not serves() or self._search.is_due(now, checkpoints.kept, clock())):
                await self.look(now, serves())

    async def look(self, view: NetworkView, serves: bool) -> None:
        """Once: what others keep of this stage, which version is secured, and copies of what this peer keeps for others."""
        checkpoints = self._checkpoints
        asked = self._search.asked(view, serves)
        self._search.heard(asked, await self._ask(asked))
        self._note(self._search.found(self._epoch), self._epoch)
        if serves:  # else peers of the same stage were asked too
            checkpoints.copied = frozenset(self.remote)
        secured = secured_version(view, checkpoints.epoch)
        if secured is not None:  # else some stage has not said yet: what was secured before still holds
            checkpoints.secured = secured
        if serves and await asyncio.to_thread(checkpoints.disk_takes):  # nothing is fetched that could not be kept
            for stage in kept_by(view, self._me, checkpoints.stage, checkpoints.options.copies):
                await self._copy(view, stage)

    async def _ask(self, peers: Iterable[PeerId], stage: Stage | None = None) -> dict[PeerId, Kept]:
        """What each of them keeps of a stage (this peer's own if none is named); those that do not answer are left out."""
        of = self._checkpoints.stage if stage is None else stage
        asked = sorted(set(peers) - {self._me})
        answers = await asyncio.gather(*(self._download.listed(peer, of) for peer in asked), return_exceptions=True)
        found = {}
        for peer, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, RemoteProtocolError):
                    raise answer
            else:
                found[peer] = answer
        return found

    def _note(self, remote: dict[int, tuple[PeerId, ...]], epoch: int) -> None:
        if (remote, epoch) != (self.remote, self._noted):
            self.remote, self._noted = remote, epoch
            self.on_remote()

    async def _copy(self, view: NetworkView, stage: Stage) -> None:
        """The next version of a stage that is worth it, of those that its peers have on disk."""
        checkpoints = self._checkpoints
        found = await self._ask(self._search.donors(view, stage), stage)
        self._search.offered(stage, found)
        here = await asyncio.to_thread(checkpoints.kept_of, stage)
        copy = next_copy(who_keeps(found, checkpoints.epoch), here, checkpoints.secured, checkpoints.best)
        if copy is None:
            return
        try:
            room = await asyncio.to_thread(checkpoints.room_for, stage)
            pace = Pace(checkpoints.options.copy_bytes_per_s / len(copy.donors), room)
            state = await self._download.fetch(copy.version, copy.donors, stage, pace)
            await asyncio.to_thread(checkpoints.keep, stage, state)
        except StateTooLarge as error:
            logger.warning("no copy of stage %d: %s", stage, error)
            checkpoints.refused(stage, error.state_bytes)
            return
        except (StateUnavailable, RemoteProtocolError, InputError) as error:
            logger.warning("no copy of stage %d after %d iterations: %s", stage, copy.version, error)
            return
        logger.info("copied the checkpoint of stage %d after %d iterations", stage, copy.version)
