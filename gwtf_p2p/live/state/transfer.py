"""A stage's weights and optimizer state from peer to peer: in chunks, hashed, from several donors at once.

The newcomer asks each donor for the *manifest* of a version: names, shapes, dtypes, the bytes as chunks with a hash each.
Donors of a stage have bit-equal states, so their manifests are equal; a donor whose manifest differs from the majority's is
left out. Then every donor is asked for one chunk after the other and pushes it; a chunk that does not come, or whose hash is
wrong, is asked of another donor. Chunks that have arrived stay: a donor that dies costs the chunk under way.

A donor serves from a snapshot, made when a version is first asked for: of its own weights, or of a checkpoint on its disk (its
own stage's, or a replica of another's). It paces its pushes so that training keeps most of its line. Snapshots are dropped when
nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.live.state.manifest import CHUNK_BYTES, Manifest, Snapshot, assemble, hash_chunk
from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.limits import MOST_ITERATIONS, MOST_STAGES

logger = logging.getLogger(__name__)

ASK_KIND, CHUNK_KIND, LIST_KIND = "state", "state_chunk", "state_list"
SNAPSHOT_IDLE_S = 30.0
MOST_SNAPSHOTS = 3
"""In memory at a donor; the one that was asked for longest ago makes room."""

ASK_DEADLINE_S = 5.0
PREPARE_DEADLINE_S = 600.0
"""A donor reads a large checkpoint from its disk and hashes it; one that is still at it then is left out."""

PREPARE_RETRY_S = 0.2
LISTED_FOR_S = 1.0
"""How old a list of what is kept may be. A newcomer asks once, and may have nobody else to learn of a copy just made from."""

CHUNK_PRIOR_S = 10.0
STRIKES = 2
"""Chunks that a donor may fail to deliver before it is left out."""


MOST_WAITING = 1024
"""Peers that have been told to ask for a list again, by stage; those that have not asked for longest are forgotten."""

MOST_PREPARING = 64
"""Versions that are looked for at once, or were not found and have not been asked for again."""


class StateUnavailable(Exception):
    """No donor could give the state of this version; the reasons by donor."""


class StateTooLarge(StateUnavailable):
    """It takes more than may be fetched: `state_bytes`."""

    def __init__(self, version: int, state_bytes: int, most_bytes: float) -> None:
        self.state_bytes = state_bytes
        super().__init__(f"version {version}: {state_bytes / 1e6:,.0f} MB, there is room for {most_bytes / 1e6:,.0f}")


@dataclass(frozen=True, slots=True)
class Pace:
    """How a state is fetched: so many bytes a second of each donor (0: no limit), and no larger one than `most_bytes`."""

    bytes_per_s: float = 0.0
    most_bytes: float = math.inf


UNBOUNDED = Pace()


class StateSource(Protocol):
    """What a donor can give (`state_store.StateStore`)."""

    async def state_of(self, stage: Stage, version: int) -> dict[str, Tensor] | None: ...

    async def kept_of(self, stage: Stage) -> tuple[int, tuple[int, ...]]: ...


class StateDonor:
    """Serves what `source` has; `stage` is the one meant where a request names none. `pace_bytes_per_s` 0: no limit."""

    def __init__(self, rpc: DataPlane, source: StateSource, stage: Stage, pace_bytes_per_s: float = 0.0) -> None:
        self._rpc, self._source, self._stage, self._pace = rpc, source, stage, pace_bytes_per_s
        self._snapshots: dict[tuple[Stage, int], Snapshot] = {}
        self._preparing: dict[tuple[Stage, int], asyncio.Task[str]] = {}
        self._lists: dict[Stage, tuple[float, int, tuple[int, ...]]] = {}
        self._looking: set[Stage] = set()
        self._waiting: dict[tuple[PeerId, Stage], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._line_free_at = 0.0
        self.bytes_served = 0
        rpc.add_service(ASK_KIND, self)
        rpc.add_service(LIST_KIND, self)

    def stop(self) -> None:
        for task in [*self._tasks, *self._preparing.values()]:
            task.cancel()
        self._snapshots.clear()

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """`{"version"}` asks for the manifest, `{"version", "chunk"}` for a push of that chunk, a list for what is kept."""
        stage = header.get("stage", self._stage)
        if not isinstance(stage, int) or not 0 <= stage <= MOST_STAGES:
            raise RemoteProtocolError(f"state: stage: expected a whole number from 0 to {MOST_STAGES}")
        if header.get("kind") == LIST_KIND:
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
        self._spawn(self._push(sender, snapshot, chunk))
        return {"status": "coming"}

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
        state = await self._source.state_of(*key)
        if state is None:
            return f"version {key[1]} is not what this peer has"
        snapshot = await asyncio.to_thread(Snapshot, key[1], state)
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

    async def _push(self, to: PeerId, snapshot: Snapshot, chunk: int) -> None:
        loop, payload = asyncio.get_running_loop(), snapshot.chunk(chunk)
        if self._pace:
            begin = max(loop.time(), self._line_free_at)
            self._line_free_at = begin + len(payload) / self._pace
            await asyncio.sleep(begin - loop.time())
        header = {"kind": CHUNK_KIND, "version": snapshot.manifest.version, "chunk": chunk}
        try:
            result = await self._rpc.push(to, header, payload, CHUNK_PRIOR_S * 6)
        except RpcFailed as error:
            logger.debug("chunk %d for %s: %s", chunk, to, error)
            return
        self.bytes_served += result.sent_bytes


class StateDownload:
    """Receives states. `on_chunk` hears how much of a download has arrived; not of copies, which are paced."""

    def __init__(self, rpc: DataPlane) -> None:
        self._rpc = rpc
        self._expected: dict[tuple[PeerId, int, int], asyncio.Future[memoryview]] = {}
        self._timings = Timings()
        self.on_chunk: Callable[[int, int], None] = lambda arrived, of: None
        rpc.add_service(CHUNK_KIND, self)

    async def fetch(
        self, version: int, donors: Sequence[PeerId], stage: Stage | None = None, pace: Pace = UNBOUNDED
    ) -> dict[str, Tensor]:
        """The state of this version; of the donors' own stage unless `stage` says otherwise.

        Raises StateUnavailable when no donor is left, StateTooLarge, before any of it is fetched, when it is over `pace`.
        """
        what: Header = {"version": version} if stage is None else {"version": version, "stage": stage}
        answers = await asyncio.gather(*(self._manifest(donor, what) for donor in donors))
        manifests = {donor: answer for donor, answer in zip(donors, answers, strict=True) if isinstance(answer, Manifest)}
        if not manifests:
            reasons = "; ".join(f"{donor[-6:]}: {answer}" for donor, answer in zip(donors, answers, strict=True))
            raise StateUnavailable(f"version {version}: {reasons or 'no donors'}")
        majority, _ = Counter(m.digest for m in manifests.values()).most_common(1)[0]
        equal = sorted(donor for donor, manifest in manifests.items() if manifest.digest == majority)
        manifest = manifests[equal[0]]
        if manifest.state_bytes > pace.most_bytes:
            raise StateTooLarge(version, manifest.state_bytes, pace.most_bytes)
        chunks = await _Chunks(self, manifest, what, pace.bytes_per_s).from_donors(equal)
        return await asyncio.to_thread(assemble, manifest, chunks)

    async def listed(self, peer: PeerId, stage: Stage) -> tuple[int, tuple[int, ...]]:
        """(epoch, versions) that a peer keeps of a stage. Raises RemoteProtocolError when it does not say."""
        reply = await self._until_ready(peer, {"kind": LIST_KIND, "stage": stage}, ASK_DEADLINE_S)
        epoch, versions = reply.get("epoch"), reply.get("versions")
        if reply.get("status") != "ready" or not isinstance(epoch, int) or not isinstance(versions, list):
            raise RemoteProtocolError("state_list: expected an epoch and versions")
        return epoch, tuple(version for version in versions if isinstance(version, int))

    async def _until_ready(self, peer: PeerId, what: Header, limit_s: float) -> Header:
        """The first answer that is not that it is being prepared. Raises RemoteProtocolError, also for none in so long."""
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    reply = await self._rpc.call(peer, what, ASK_DEADLINE_S, idempotent=True)
                    if reply.get("status") != "preparing":
                        return reply
                    await asyncio.sleep(PREPARE_RETRY_S)
        except TimeoutError as error:
            raise RemoteProtocolError(f"still preparing after {limit_s:g} s") from error

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        future = self._expected.get(_key(sender, header))
        wanted = future is not None and not future.done() and payload_bytes <= CHUNK_BYTES
        return {"accepted": wanted, **({} if wanted else {"reason": "not expected"})}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        future = self._expected.get(_key(sender, header))
        if future is not None and not future.done():
            future.set_result(payload)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        future = self._expected.get(_key(sender, header))
        if future is not None and not future.done():
            future.set_exception(RemoteProtocolError(f"broke off: {reason}"))

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("a download answers no calls")

    async def _manifest(self, donor: PeerId, what: Header) -> Manifest | str:
        """The donor's manifest, or why not."""
        try:
            reply = await self._until_ready(donor, {"kind": ASK_KIND, **what}, PREPARE_DEADLINE_S)
            if reply.get("status") == "ready":
                return Manifest.from_plain(reply)
            return str(reply.get("reason") or reply.get("status"))
        except RemoteProtocolError as error:
            return str(error)

    async def chunk(self, donor: PeerId, manifest: Manifest, what: Header, index: int) -> memoryview:
        """One chunk of one donor. Raises RemoteProtocolError or TimeoutError."""
        key = (donor, manifest.version, index)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[memoryview] = loop.create_future()
        self._expected[key] = future
        began = loop.time()
        try:
            reply = await self._rpc.call(donor, {"kind": ASK_KIND, **what, "chunk": index}, ASK_DEADLINE_S, idempotent=True)
            if reply.get("status") != "coming":
                raise RemoteProtocolError(f"the donor says {reply.get('status')}")
            async with asyncio.timeout(self._timings.deadline_s((donor,), CHUNK_PRIOR_S)):
                payload = await future
        finally:
            del self._expected[key]
        if hash_chunk(payload) != manifest.hashes[index]:
            raise RemoteProtocolError("hash differs")
        self._timings.observe((donor,), loop.time() - began)
        return payload


class _Chunks:
    """All chunks of one state, drawn from several donors; whoever has nothing left to fetch helps with what others wait for."""

    def __init__(self, download: StateDownload, manifest: Manifest, what: Header, pace_bytes_per_s: float) -> None:
        self._download, self._manifest, self._what, self._pace = download, manifest, what, pace_bytes_per_s
        self._missing = list(reversed(range(len(manifest.hashes))))
        self._chunks: dict[int, memoryview] = {}
        self._under_way: dict[int, set[PeerId]] = {}

    async def from_donors(self, donors: Sequence[PeerId]) -> list[memoryview]:
        """Raises StateUnavailable when no donor is left."""
        tasks = {asyncio.ensure_future(self._draw(donor)): donor for donor in donors}
        told: list[str] = []
        waiting = set(tasks)
        try:
            while waiting and not self._complete:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                told += [f"{tasks[task][-6:]}: {task.result()}" for task in done if task.result()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not self._complete:
            raise StateUnavailable(f"{len(self._chunks)} of {len(self._manifest.hashes)} chunks arrived; {'; '.join(told)}")
        return [self._chunks[index] for index in range(len(self._manifest.hashes))]

    @property
    def _complete(self) -> bool:
        return len(self._chunks) == len(self._manifest.hashes)

    async def _draw(self, donor: PeerId) -> str:
        """Until all is there; returns why this donor was given up, or nothing."""
        strikes = 0
        while not self._complete and strikes < STRIKES:
            index = self._next(donor)
            if index is None:
                await asyncio.sleep(PREPARE_RETRY_S)
                continue
            under_way = self._under_way.setdefault(index, set())
            under_way.add(donor)
            began = asyncio.get_running_loop().time()
            try:
                chunk = await self._download.chunk(donor, self._manifest, self._what, index)
            except (RemoteProtocolError, TimeoutError) as error:
                strikes += 1
                if index not in self._chunks:
                    self._missing.append(index)
                logger.info("chunk %d of %d from %s: %r", index, len(self._manifest.hashes), donor, error)
                continue
            finally:
                under_way.discard(donor)
            self._chunks[index] = chunk
            if not self._pace:
                self._download.on_chunk(len(self._chunks), len(self._manifest.hashes))
            if self._pace:
                await asyncio.sleep(max(0.0, began + len(chunk) / self._pace - asyncio.get_running_loop().time()))
        return "" if strikes < STRIKES else "failed to deliver"

    def _next(self, donor: PeerId) -> int | None:
        while self._missing:
            index = self._missing.pop()
            if index not in self._chunks:
                return index
        late = [i for i, donors in self._under_way.items() if i not in self._chunks and donors and donor not in donors]
        return min(late, default=None)


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int, int]:
    version, chunk = header.get("version"), header.get("chunk")
    return sender, version if isinstance(version, int) else -1, chunk if isinstance(chunk, int) else -1
