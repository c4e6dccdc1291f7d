"""A stage's weights and optimizer state from peer to peer: in chunks, hashed, from several donors at once.

The newcomer asks each donor for the *manifest* of a version: names, shapes, dtypes, the bytes as chunks with a hash each.
Donors of a stage have bit-equal states, so their manifests are equal; a donor whose manifest differs from the majority's is
left out. Then every donor is asked for one chunk after the other and pushes it; a chunk that does not come, or whose hash is
wrong, is asked of another donor. Chunks that have arrived stay: a donor that dies costs the chunk under way.

A donor serves from a snapshot taken when the version was first asked for, and paces its pushes so that training keeps most of
its line. Snapshots are dropped when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwtf_p2p.live.rpc import Header, Rpc, RpcFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.timings import Timings
from gwtf_p2p.training.wire import tensor_bytes

logger = logging.getLogger(__name__)

ASK_KIND, CHUNK_KIND = "state", "state_chunk"
CHUNK_BYTES = 1 << 20
SNAPSHOT_IDLE_S = 60.0
ASK_DEADLINE_S = 5.0
PREPARE_RETRY_S = 0.2
CHUNK_PRIOR_S = 10.0
STRIKES = 2
"""Chunks that a donor may fail to deliver before it is left out."""

DTYPES = {"torch.float32": torch.float32, "torch.int64": torch.int64}


class StateUnavailable(Exception):
    """No donor could give the state of this version; the reasons by donor."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a state consists of. `tensors`: (name, dtype, shape), sorted; the bytes lie one after the other, cut into chunks."""

    version: int
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    hashes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Names the whole state: equal for bit-equal states."""
        return hashlib.sha256(json.dumps([self.version, self.tensors, self.hashes]).encode()).hexdigest()

    def to_plain(self) -> Header:
        tensors = [[name, dtype, list(shape)] for name, dtype, shape in self.tensors]
        return {"version": self.version, "tensors": tensors, "hashes": list(self.hashes)}

    @staticmethod
    def from_plain(plain: Mapping[str, object]) -> Manifest:
        """Raises RemoteProtocolError."""
        try:
            tensors = tuple((str(n), str(d), tuple(int(s) for s in shape)) for n, d, shape in plain["tensors"])  # type: ignore[attr-defined]
            hashes = tuple(str(h) for h in plain["hashes"])  # type: ignore[attr-defined]
            version = int(str(plain["version"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"manifest: {error!r}") from error
        if any(dtype not in DTYPES for _, dtype, _ in tensors):
            raise RemoteProtocolError("manifest: unknown dtype")
        return Manifest(version, tensors, hashes)


class _Snapshot:
    """One version's bytes at a donor."""

    def __init__(self, version: int, state: Mapping[str, Tensor]) -> None:
        names = sorted(state)
        self.bytes = memoryview(b"".join(tensor_bytes(state[name]) for name in names))
        hashes = tuple(_hash(self.chunk(i)) for i in range(-(-len(self.bytes) // CHUNK_BYTES)))
        tensors = tuple((name, str(state[name].dtype), tuple(state[name].shape)) for name in names)
        self.manifest = Manifest(version, tensors, hashes)
        self.last_asked = 0.0

    def chunk(self, index: int) -> memoryview:
        return self.bytes[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


class StateDonor:
    """Serves the states that `take_snapshot` gives: (version, state) of now. `pace_bytes_per_s` 0: as fast as it goes."""

    def __init__(
        self, rpc: Rpc, take_snapshot: Callable[[], Awaitable[tuple[int, dict[str, Tensor]]]], pace_bytes_per_s: float = 0.0
    ) -> None:
        self._rpc, self._take_snapshot, self._pace = rpc, take_snapshot, pace_bytes_per_s
        self._snapshots: dict[int, _Snapshot] = {}
        self._preparing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._line_free_at = 0.0
        self.bytes_served = 0
        rpc.add_service(ASK_KIND, self)

    def stop(self) -> None:
        for task in [*self._tasks, *([self._preparing] if self._preparing else [])]:
            task.cancel()

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """`{"version"}` asks for the manifest, `{"version", "chunk"}` for a push of that chunk."""
        now = asyncio.get_running_loop().time()
        for old in [v for v, s in self._snapshots.items() if now - s.last_asked > SNAPSHOT_IDLE_S]:
            del self._snapshots[old]
        version, chunk = header.get("version"), header.get("chunk")
        if not isinstance(version, int):
            raise RemoteProtocolError("state: version: expected a whole number")
        snapshot = self._snapshots.get(version)
        if snapshot is None:
            if self._preparing is None:
                self._preparing = asyncio.get_running_loop().create_task(self._prepare())
                return {"status": "preparing"}
            if self._preparing.done():
                self._preparing = None
                return {"status": "gone", "reason": f"version {version} is not what this peer has"}
            return {"status": "preparing"}
        snapshot.last_asked = now
        if chunk is None:
            return {"status": "ready", **snapshot.manifest.to_plain()}
        if not isinstance(chunk, int) or not 0 <= chunk < len(snapshot.manifest.hashes):
            raise RemoteProtocolError("state: chunk: out of range")
        task = asyncio.get_running_loop().create_task(self._push(sender, snapshot, chunk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"status": "coming"}

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": False, "reason": "a donor takes no state"}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        raise RemoteProtocolError("a donor takes no state")

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing was accepted, so nothing broke."""

    async def _prepare(self) -> None:
        version, state = await self._take_snapshot()
        if version not in self._snapshots:
            snapshot = await asyncio.to_thread(_Snapshot, version, state)
            snapshot.last_asked = asyncio.get_running_loop().time()
            self._snapshots = {version: snapshot}

    async def _push(self, to: PeerId, snapshot: _Snapshot, chunk: int) -> None:
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
    """Receives states. One object per peer; one download at a time."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._expected: dict[tuple[PeerId, int, int], asyncio.Future[memoryview]] = {}
        self._timings = Timings()
        rpc.add_service(CHUNK_KIND, self)

    async def fetch(self, version: int, donors: Sequence[PeerId]) -> dict[str, Tensor]:
        """The state of this version. Raises StateUnavailable when no donor is left."""
        answers = await asyncio.gather(*(self._manifest(donor, version) for donor in donors))
        manifests = {donor: answer for donor, answer in zip(donors, answers, strict=True) if isinstance(answer, Manifest)}
        if not manifests:
            reasons = "; ".join(f"{donor[-6:]}: {answer}" for donor, answer in zip(donors, answers, strict=True))
            raise StateUnavailable(f"version {version}: {reasons or 'no donors'}")
        majority, _ = Counter(m.digest for m in manifests.values()).most_common(1)[0]
        equal = sorted(donor for donor, manifest in manifests.items() if manifest.digest == majority)
        manifest = manifests[equal[0]]
        chunks = await self._chunks(manifest, equal)
        return await asyncio.to_thread(_assemble, manifest, chunks)

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

    async def _manifest(self, donor: PeerId, version: int) -> Manifest | str:
        """The donor's manifest, or why not."""
        try:
            while True:
                reply = await self._rpc.call(donor, {"kind": ASK_KIND, "version": version}, ASK_DEADLINE_S, idempotent=True)
                if reply.get("status") == "ready":
                    return Manifest.from_plain(reply)
                if reply.get("status") != "preparing":
                    return str(reply.get("reason") or reply.get("status"))
                await asyncio.sleep(PREPARE_RETRY_S)
        except RemoteProtocolError as error:
            return str(error)

    async def _chunks(self, manifest: Manifest, donors: Sequence[PeerId]) -> list[memoryview]:
        missing = list(reversed(range(len(manifest.hashes))))
        chunks: dict[int, memoryview] = {}

        async def draw_from(donor: PeerId) -> str:
            strikes = 0
            while len(chunks) < len(manifest.hashes) and strikes < STRIKES:
                if not missing:
                    await asyncio.sleep(PREPARE_RETRY_S)  # another donor's chunk may come back to be fetched
                    continue
                index = missing.pop()
                try:
                    chunks[index] = await self._chunk(donor, manifest, index)
                except (RemoteProtocolError, TimeoutError) as error:
                    strikes += 1
                    missing.append(index)
                    logger.info("chunk %d of %d from %s: %r", index, len(manifest.hashes), donor, error)
            return "" if strikes < STRIKES else "failed to deliver"

        reasons = await asyncio.gather(*(draw_from(donor) for donor in donors))
        if len(chunks) < len(manifest.hashes):
            told = "; ".join(f"{donor[-6:]}: {reason}" for donor, reason in zip(donors, reasons, strict=True))
            raise StateUnavailable(f"{len(chunks)} of {len(manifest.hashes)} chunks arrived; {told}")
        return [chunks[index] for index in range(len(manifest.hashes))]

    async def _chunk(self, donor: PeerId, manifest: Manifest, index: int) -> memoryview:
        key = (donor, manifest.version, index)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[memoryview] = loop.create_future()
        self._expected[key] = future
        began = loop.time()
        try:
            header = {"kind": ASK_KIND, "version": manifest.version, "chunk": index}
            reply = await self._rpc.call(donor, header, ASK_DEADLINE_S, idempotent=True)
            if reply.get("status") != "coming":
                raise RemoteProtocolError(f"the donor says {reply.get('status')}")
            async with asyncio.timeout(self._timings.deadline_s((donor,), CHUNK_PRIOR_S)):
                payload = await future
        finally:
            del self._expected[key]
        if _hash(payload) != manifest.hashes[index]:
            raise RemoteProtocolError("hash differs")
        self._timings.observe((donor,), loop.time() - began)
        return payload


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int, int]:
    version, chunk = header.get("version"), header.get("chunk")
    return sender, version if isinstance(version, int) else -1, chunk if isinstance(chunk, int) else -1


def _hash(chunk: memoryview) -> str:
    return hashlib.blake2b(chunk, digest_size=16).hexdigest()


def _assemble(manifest: Manifest, chunks: Sequence[memoryview]) -> dict[str, Tensor]:
    """Raises RemoteProtocolError when the bytes do not fill the tensors exactly."""
    data = np.concatenate([np.frombuffer(chunk, np.uint8) for chunk in chunks]) if chunks else np.empty(0, np.uint8)
    state: dict[str, Tensor] = {}
    at = 0
    for name, dtype, shape in manifest.tensors:
        size = DTYPES[dtype].itemsize * int(np.prod(shape, dtype=np.int64))
        if at + size > len(data):
            raise RemoteProtocolError(f"state: {name}: the bytes end early")
        state[name] = torch.from_numpy(data[at : at + size].copy()).view(DTYPES[dtype]).reshape(shape)
        at += size
    if at != len(data):
        raise RemoteProtocolError(f"state: {len(data) - at} bytes too many")
    return state
