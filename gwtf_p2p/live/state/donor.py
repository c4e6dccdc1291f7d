"""A donor of state: it gives what it has of it to those who may have it (`protocol/trust/state_access`).

It serves from a snapshot in a nameless file, made when a version is first asked for: of its own weights, or of a checkpoint on
its disk (its own stage's, or a replica of another's). It paces its pushes so that training keeps most of its line. Snapshots
are dropped when nobody has asked for a while. Whose record it has not seen is told to ask again until the records are read once
more, then why it gets nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.live.state.manifest import Snapshot, StateGone
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.live.state.packing import PLANES_ZSTD, packed, reads_packed
from gwtf_p2p.live.state.transfer import (
    ASK_DEADLINE_S,
    ASK_KIND,
    CHUNK_KIND,
    CHUNK_PRIOR_S,
    LIST_KIND,
    PREPARE_RETRY_S,
    REFUSED,
)
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.limits import MOST_ITERATIONS, MOST_STAGES
from gwtf_p2p.protocol.trust.state_access import NoState, WhyNoState
from gwtf_p2p.training.state.scratch import scratch_folder

logger = logging.getLogger(__name__)

SNAPSHOT_IDLE_S = 30.0
MOST_SNAPSHOTS = 3
"""On a donor's disk; the one that was asked for longest ago makes room."""

LISTED_FOR_S = 1.0
"""How old a list of what is kept may be. A newcomer asks once, and may have nobody else to learn of a copy just made from."""

MOST_WAITING = 1024
"""Peers that have been told to ask for a list again, by stage; those that have not asked for longest are forgotten."""

MOST_PREPARING = 64
"""Versions that are looked for at once, or were not found and have not been asked for again."""

MOST_PUSHES = 8
"""Chunks under way to one peer, which asks for a few at a time (`transfer.AT_ONCE`), perhaps of two states."""

MayHave = Callable[[PeerId, Stage | None, float], tuple[NoState | None, bool]]
"""Of an asker, a stage (None: it asks what is kept) and the time of the event loop: why it gets nothing, and whether that
stands (`StateAccess.asked`)."""

NOBODY = NoState(WhyNoState.SHUT_OUT, "this peer gives nothing yet")


class StateSource(Protocol):
    """What a donor can give (`state_store.StateStore`)."""

    async def state_of(self, stage: Stage, version: int) -> Reading | None: ...

    async def kept_of(self, stage: Stage) -> tuple[int, tuple[int, ...]]: ...


class StateDonor:
    """Serves what `source` has; `stage` is the one meant where a request names none. `pace_bytes_per_s` 0: no limit. Snapshots
    lie in `folder` (None: where temporary files go).

    `may_have` says who gets what; nobody gets anything until it is set. `on_unseen` hears that somebody waits for the records
    to be read."""

    def __init__(
        self, rpc: DataPlane, source: StateSource, stage: Stage, pace_bytes_per_s: float = 0.0, folder: Path | None = None
    ) -> None:
        self._rpc, self._source, self._stage, self._pace = rpc, source, stage, pace_bytes_per_s
        self._folder = scratch_folder(folder)
        self._snapshots: dict[tuple[Stage, int], Snapshot] = {}
        self._preparing: dict[tuple[Stage, int], asyncio.Task[str]] = {}
        self._lists: dict[Stage, tuple[float, int, tuple[int, ...]]] = {}
        self._looking: set[Stage] = set()
        self._waiting: dict[tuple[PeerId, Stage], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._line_free_at = 0.0
        self._pushes: Counter[PeerId] = Counter()
        self.may_have: MayHave = lambda peer, stage, now: (NOBODY, True)
        self.on_unseen: Callable[[], None] = lambda: None
        self.chunk_bytes = CHUNK_BYTES
        self.bytes_served = 0
        rpc.add_service(ASK_KIND, self)
        rpc.add_service(LIST_KIND, self)

    def stop(self) -> None:
        for task in [*self._tasks, *self._preparing.values()]:
            task.cancel()
        self._snapshots.clear()

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """`{"version"}` asks for the manifest, `{"version", "chunk"}` for a push of that chunk (with `packs`, how it may be
        packed), a list for what is kept."""
        stage = header.get("stage", self._stage)
        if not isinstance(stage, int) or not 0 <= stage <= MOST_STAGES:
            raise RemoteProtocolError(f"state: stage: expected a whole number from 0 to {MOST_STAGES}")
        asks_for_list = header.get("kind") == LIST_KIND
        refusal = self._refusal(sender, None if asks_for_list else Stage(stage))
        if refusal is not None:
            return refusal
        if asks_for_list:
            return self._listed(sender, Stage(stage))
        version, chunk = header.get("version"), header.get("chunk")
        if not isinstance(version, int) or not 0 <= version <= MOST_ITERATIONS:
            raise RemoteProtocolError(f"state: version: expected a whole number from 0 to {MOST_ITERATIONS}")
        key = (Stage(stage), version)
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            return self._not_there(key)
        snapshot.last_asked = asyncio.get_running_loop().time()
        if chunk is None:
            return {"status": "ready", **snapshot.manifest.to_plain()}
        if not isinstance(chunk, int) or not 0 <= chunk < len(snapshot.manifest.hashes):
            raise RemoteProtocolError("state: chunk: out of range")
        if self._pushes[sender] >= MOST_PUSHES:
            return {"status": "preparing"}
        self._pushes[sender] += 1
        self._spawn(self._push(sender, snapshot, chunk, reads_packed(header.get("packs"))))
        return {"status": "coming"}

    def _refusal(self, sender: PeerId, stage: Stage | None) -> Header | None:
        refusal, stands = self.may_have(sender, stage, asyncio.get_running_loop().time())
        if refusal is None:
            return None
        if not stands:
            self.on_unseen()
            return {"status": "preparing"}
        return {"status": REFUSED, "why": refusal.why.value, "reason": refusal.reason}

    def _not_there(self, key: tuple[Stage, int]) -> Header:
        task = self._preparing.get(key)
        if task is None and len(self._preparing) >= MOST_PREPARING:
            self._preparing = {each: other for each, other in self._preparing.items() if not other.done()}
            if len(self._preparing) >= MOST_PREPARING:
                return {"status": "preparing"}  # whoever asks again gets its turn
        if task is None:
            self._preparing[key] = asyncio.get_running_loop().create_task(self._prepare(key))
        elif task.done():
            del self._preparing[key]
            return {"status": "gone", "reason": task.result()}
        return {"status": "preparing"}

    def _listed(self, sender: PeerId, stage: Stage) -> Header:
        """What was found on the disk just now, or since this peer has begun to ask: to it that is new, whatever its line takes.

        Else the disk is read first, and whoever asks asks again.
        """
        now, key = asyncio.get_running_loop().time(), (sender, stage)
        found = self._lists.get(stage)
        if (found is None or now - found[0] > PREPARE_RETRY_S) and stage not in self._looking:
            self._looking.add(stage)
            self._spawn(self._look(stage, now))
        asked_at = self._waiting.pop(key, now)
        if now - asked_at > ASK_DEADLINE_S:
            asked_at = now  # it has given up in between
        if found is None or (now - found[0] > LISTED_FOR_S and found[0] < asked_at):
            self._waiting[key] = asked_at
            while len(self._waiting) > MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            return {"status": "preparing"}
        return {"status": "ready", "epoch": found[1], "versions": list(found[2])}

    async def _look(self, stage: Stage, began: float) -> None:
        try:
            epoch, versions = await self._source.kept_of(stage)
        finally:
            self._looking.discard(stage)
        self._lists[stage] = (began, epoch, versions)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": False, "reason": "a donor takes no state"}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        raise RemoteProtocolError("a donor takes no state")

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing was accepted, so nothing broke."""

    async def _prepare(self, key: tuple[Stage, int]) -> str:
        """Returns why it is not there, or nothing."""
        loop = asyncio.get_running_loop()
        reading = await self._source.state_of(*key)
        if reading is None:
            return f"version {key[1]} is not what this peer has"
        try:
            snapshot = await asyncio.to_thread(Snapshot, reading, self._folder, self.chunk_bytes)
        except (OSError, StateGone) as error:
            reading.end()
            return str(error)
        snapshot.last_asked = loop.time()
        while len(self._snapshots) >= MOST_SNAPSHOTS:
            del self._snapshots[min(self._snapshots, key=lambda other: self._snapshots[other].last_asked)]
        self._snapshots[key] = snapshot
        self._preparing.pop(key, None)
        loop.call_later(SNAPSHOT_IDLE_S, self._drop_idle, key)
        return ""

    def _drop_idle(self, key: tuple[Stage, int]) -> None:
        snapshot, loop = self._snapshots.get(key), asyncio.get_running_loop()
        if snapshot is None:
            return
        left_s = snapshot.last_asked + SNAPSHOT_IDLE_S - loop.time()
        if left_s <= 0:
            del self._snapshots[key]
        else:
            loop.call_later(left_s, self._drop_idle, key)

    async def _push(self, to: PeerId, snapshot: Snapshot, chunk: int, may_pack: bool) -> None:
        loop = asyncio.get_running_loop()
        header: Header = {"kind": CHUNK_KIND, "version": snapshot.manifest.version, "chunk": chunk}
        try:
            payload: memoryview | bytes = await asyncio.to_thread(snapshot.chunk, chunk)
            small = await asyncio.to_thread(packed, memoryview(payload)) if may_pack else None
            if small is not None:
                header["packed"], payload = PLANES_ZSTD, small
            if self._pace:
                begin = max(loop.time(), self._line_free_at)
                self._line_free_at = begin + len(payload) / self._pace
                await asyncio.sleep(begin - loop.time())
            result = await self._rpc.push(to, header, payload, CHUNK_PRIOR_S * 6)
        except (RpcFailed, OSError) as error:
            logger.debug("chunk %d for %s: %s", chunk, to, error)
            return
        finally:
            self._pushes[to] -= 1
            if not self._pushes[to]:
                del self._pushes[to]
        self.bytes_served += result.sent_bytes
