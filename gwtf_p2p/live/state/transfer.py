"""A stage's weights and optimizer state from peer to peer: in chunks, hashed, from several donors at once.

The newcomer asks each donor for the *manifest* of a version: names, shapes, dtypes, the bytes as chunks with a hash each.
Donors of a stage have bit-equal states, so their manifests are equal; a donor whose manifest differs from the majority's is
left out. Then every donor is asked for one chunk after the other, two at a time, and pushes them, packed where it can
(`packing`); a chunk that does not come, or whose hash is wrong, is asked of another donor. Chunks that have arrived stay: a
donor that dies costs the chunks under way. The chunks that bring the weights may come first, and be put to use while the others
are on their way.

What a donor does is in `donor`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from gwtf_p2p.live.rpc.api import DataPlane, Header
from gwtf_p2p.live.state.manifest import Manifest, hash_chunk
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.live.state.packing import PLANES_ZSTD, unpacked
from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.trust.state_access import WhyNoState
from gwtf_p2p.training.state.scratch import Scratch, scratch_folder
from gwtf_p2p.training.state.stored import StoredState, renamed
from gwtf_p2p.training.state.tensors import is_of_weights

logger = logging.getLogger(__name__)

ASK_KIND, CHUNK_KIND, LIST_KIND = "state", "state_chunk", "state_list"
ASK_DEADLINE_S = 5.0
PREPARE_DEADLINE_S = 600.0
"""A donor reads a large checkpoint from its disk and hashes it; one that is still at it then is left out."""

FIRST_RETRY_S, PREPARE_RETRY_S = 0.02, 0.2
"""How soon a donor that prepares is asked again, and how soon at most: each time after twice as long."""

REFUSED = "refused"
"""Status of the answer to whoever gets nothing, with why (`protocol/trust/state_access`)."""

RECORD_RETRY_S, RECORD_PATIENCE_S = 1.0, 15.0
"""How often a donor is asked again that has not seen this peer's record, and for how long."""

CHUNK_PRIOR_S = 10.0
AT_ONCE = 4
"""Chunks that one donor is asked for at a time: its line does not stand idle while an answer and the next question travel,
which take three latencies; where these are 0.1 s each, so many bring 13 MB a second."""

STRIKES = 2
"""Chunks that a donor may fail to deliver before it is left out."""


OnWeights = Callable[[Mapping[str, Tensor]], Coroutine[Any, Any, None]]
"""Puts the weights of a state in place, whose other tensors are still coming."""


class StateUnavailable(Exception):
    """No donor could give the state of this version; the reasons by donor. `refused` are those that did not want to."""

    def __init__(self, reason: str, refused: Sequence[StateRefused] = ()) -> None:
        self.refused = tuple(refused)
        super().__init__(reason)


class StateRefused(RemoteProtocolError):
    """A donor gives this peer nothing. `why` as it says it; None where that is a word this version does not know."""

    def __init__(self, donor: PeerId, why: WhyNoState | None, reason: str) -> None:
        self.donor, self.why, self.reason = donor, why, reason
        super().__init__(f"refused ({why.value if why is not None else 'why is not known'}): {reason}")

    @staticmethod
    def read(donor: PeerId, reply: Header) -> StateRefused:
        """Of what the donor says."""
        said, reason = str(reply.get("why")), f"{reply.get('reason', '')!s:.120}"
        return StateRefused(donor, next((why for why in WhyNoState if why.value == said), None), reason)


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


class StateDownload:
    """Receives states. `on_chunk` hears how much of a download has arrived; not of copies, which are paced."""

    def __init__(self, rpc: DataPlane, folder: Path | None = None, packs: bool = True) -> None:
        """`folder`: where a state lies that comes (None: where temporary files go). `packs`: chunks may come packed."""
        self._packs = packs
        self._rpc, self._folder = rpc, scratch_folder(folder)
        self._expected: dict[tuple[PeerId, int, int], asyncio.Future[tuple[memoryview, object]]] = {}
        self._turns = WeakValueDictionary[tuple[PeerId, int, int], asyncio.Lock]()
        self._timings = Timings()
        self.on_chunk: Callable[[int, int], None] = lambda arrived, of: None
        rpc.add_service(CHUNK_KIND, self)

    async def fetch(
        self,
        version: int,
        donors: Sequence[PeerId],
        stage: Stage | None = None,
        pace: Pace = UNBOUNDED,
        on_weights: OnWeights | None = None,
    ) -> StoredState:
        """The state of this version, on the disk; of the donors' own stage unless `stage` says otherwise. With `on_weights` the
        weights come first, and are handed to it with the step count, if anything comes after them; it has ended when this does.

        Raises StateUnavailable when no donor is left, StateTooLarge, before any of it is fetched, when it is over `pace`.
        """
        what: Header = {"version": version} if stage is None else {"version": version, "stage": stage}
        answers = await asyncio.gather(*(self._manifest(donor, what) for donor in donors))
        manifests = {donor: answer for donor, answer in zip(donors, answers, strict=True) if isinstance(answer, Manifest)}
        if not manifests:
            reasons = "; ".join(f"{donor[-6:]}: {answer}" for donor, answer in zip(donors, answers, strict=True))
            refused = [answer for answer in answers if isinstance(answer, StateRefused)]
            raise StateUnavailable(f"version {version}: {reasons or 'no donors'}", refused)
        majority, _ = Counter(m.digest for m in manifests.values()).most_common(1)[0]
        equal = sorted(donor for donor, manifest in manifests.items() if manifest.digest == majority)
        manifest = manifests[equal[0]]
        if manifest.state_bytes > pace.most_bytes:
            raise StateTooLarge(version, manifest.state_bytes, pace.most_bytes)
        manifest.check()
        scratch = await asyncio.to_thread(Scratch, manifest.state_bytes, self._folder)
        first = manifest.chunks_of(is_of_weights) if on_weights is not None else frozenset()
        chunks = _Chunks(self, (manifest, scratch), what, pace.bytes_per_s, first)
        hands_over = on_weights is not None and len(first) < len(manifest.hashes)
        handed = [asyncio.ensure_future(chunks.hand_over(on_weights))] if hands_over and on_weights is not None else []
        try:
            await chunks.from_donors(equal)
            await asyncio.gather(*handed)
        finally:
            for task in handed:
                task.cancel()
            await asyncio.gather(*handed, return_exceptions=True)
        return manifest.state_in(scratch)

    async def listed(self, peer: PeerId, stage: Stage) -> tuple[int, tuple[int, ...]]:
        """(epoch, versions) that a peer keeps of a stage. Raises RemoteProtocolError when it does not say."""
        reply = await self._until_ready(peer, {"kind": LIST_KIND, "stage": stage}, ASK_DEADLINE_S)
        epoch, versions = reply.get("epoch"), reply.get("versions")
        if reply.get("status") != "ready" or not isinstance(epoch, int) or not isinstance(versions, list):
            raise RemoteProtocolError("state_list: expected an epoch and versions")
        return epoch, tuple(version for version in versions if isinstance(version, int))

    async def _until_ready(self, peer: PeerId, what: Header, limit_s: float) -> Header:
        """The first answer that is not that it is being prepared. Raises RemoteProtocolError, also for none in so long, and
        StateRefused: at once, or when this peer's record has not got there in time."""
        refused, clock, pause_s = None, asyncio.get_running_loop().time, FIRST_RETRY_S
        patience_ends_at = clock() + RECORD_PATIENCE_S
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    reply = await self._rpc.call(peer, what, ASK_DEADLINE_S, idempotent=True)
                    if reply.get("status") == REFUSED:
                        refused = StateRefused.read(peer, reply)
                        if refused.why is not WhyNoState.NO_RECORD or clock() >= patience_ends_at:
                            raise refused
                    elif reply.get("status") != "preparing":
                        return reply
                    await asyncio.sleep(pause_s if refused is None else RECORD_RETRY_S)
                    pause_s = min(2 * pause_s, PREPARE_RETRY_S)
        except TimeoutError as error:
            raise refused or RemoteProtocolError(f"still preparing after {limit_s:g} s") from error

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        future = self._expected.get(_key(sender, header))
        wanted = future is not None and not future.done() and payload_bytes <= CHUNK_BYTES
        return {"accepted": wanted, **({} if wanted else {"reason": "not expected"})}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        future = self._expected.get(_key(sender, header))
        if future is not None and not future.done():
            future.set_result((payload, header.get("packed")))

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        future = self._expected.get(_key(sender, header))
        if future is not None and not future.done():
            future.set_exception(RemoteProtocolError(f"broke off: {reason}"))

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("a download answers no calls")

    async def _manifest(self, donor: PeerId, what: Header) -> Manifest | StateRefused | str:
        """The donor's manifest, or why not."""
        try:
            reply = await self._until_ready(donor, {"kind": ASK_KIND, **what}, PREPARE_DEADLINE_S)
            if reply.get("status") == "ready":
                return Manifest.from_plain(reply)
            return str(reply.get("reason") or reply.get("status"))
        except StateRefused as error:
            return error
        except RemoteProtocolError as error:
            return str(error)

    async def chunk(self, donor: PeerId, manifest: Manifest, what: Header, index: int) -> tuple[memoryview, int]:
        """One chunk of one donor, and how many bytes of it have travelled. Raises RemoteProtocolError or TimeoutError.

        What comes says neither of which stage it is nor for which download, so of one number one comes after the other."""
        key = (donor, manifest.version, index)
        self._turns[key] = turn = self._turns.get(key) or asyncio.Lock()
        async with turn:
            return await self._chunk(key, manifest, what)

    async def _chunk(self, key: tuple[PeerId, int, int], manifest: Manifest, what: Header) -> tuple[memoryview, int]:
        donor, _, index = key
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[memoryview, object]] = loop.create_future()
        self._expected[key] = future
        began = loop.time()
        try:
            ask = {"kind": ASK_KIND, **what, "chunk": index, **({"packs": [PLANES_ZSTD]} if self._packs else {})}
            reply = await self._until_ready(donor, ask, ASK_DEADLINE_S)
            if reply.get("status") != "coming":
                raise RemoteProtocolError(f"the donor says {reply.get('status')}")
            async with asyncio.timeout(self._timings.deadline_s((donor,), CHUNK_PRIOR_S)):
                payload, way = await future
        finally:
            del self._expected[key]
        took_s = loop.time() - began
        size = manifest.span_of(index)[1]
        chunk = payload if way is None else await asyncio.to_thread(unpacked, way, payload, size)
        if hash_chunk(chunk) != manifest.hashes[index] or len(chunk) != size:
            raise RemoteProtocolError("hash differs")
        self._timings.observe((donor,), took_s)
        return chunk, len(payload)


class _Chunks:
    """All chunks of one state, drawn from several donors, the `first` ones before the others; whoever has nothing left to fetch
    helps with what others wait for."""

    def __init__(
        self,
        download: StateDownload,
        state: tuple[Manifest, Scratch],
        what: Header,
        pace_bytes_per_s: float,
        first: frozenset[int],
    ) -> None:
        self._download, self._what, self._pace = download, what, pace_bytes_per_s
        self._manifest, self._scratch = state
        self._first, self._first_are_here = first, asyncio.Event()
        self._missing = sorted(range(len(self._manifest.hashes)), key=lambda index: (index not in first, index), reverse=True)
        self._chunks: set[int] = set()
        self._under_way: dict[int, set[PeerId]] = {}

    async def hand_over(self, on_weights: OnWeights) -> None:
        """The weights and the step count, when the first chunks are here."""
        await self._first_are_here.wait()
        state = self._manifest.state_in(self._scratch)
        await on_weights(renamed(state, {name: name for name in state if is_of_weights(name)}))

    async def from_donors(self, donors: Sequence[PeerId]) -> None:
        """Each chunk to its place. Raises StateUnavailable when no donor is left, or this peer's disk fails."""
        at_once = range(1 if self._pace else AT_ONCE)
        tasks = {asyncio.ensure_future(self._draw(donor)): donor for donor in donors for _ in at_once}
        told: list[str] = []
        waiting = set(tasks)
        try:
            while waiting and not self._complete:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                told += sorted({f"{tasks[task][-6:]}: {task.result()}" for task in done if task.result()} - {*told})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not self._complete:
            raise StateUnavailable(f"{len(self._chunks)} of {len(self._manifest.hashes)} chunks arrived; {'; '.join(told)}")

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
                chunk, travelled = await self._download.chunk(donor, self._manifest, self._what, index)
            except (RemoteProtocolError, TimeoutError) as error:
                strikes += 1
                if index not in self._chunks:
                    self._missing.append(index)
                logger.info("chunk %d of %d from %s: %r", index, len(self._manifest.hashes), donor, error)
                continue
            finally:
                under_way.discard(donor)
            try:
                await asyncio.to_thread(self._scratch.write, self._manifest.span_of(index)[0], chunk)
            except OSError as error:
                raise StateUnavailable(f"what has come cannot be kept: {error.strerror or error}") from error
            self._chunks.add(index)
            if self._first <= self._chunks:
                self._first_are_here.set()
            if not self._pace:
                self._download.on_chunk(len(self._chunks), len(self._manifest.hashes))
            if self._pace:
                await asyncio.sleep(max(0.0, began + travelled / self._pace - asyncio.get_running_loop().time()))
        return "" if strikes < STRIKES else "failed to deliver"

    def _next(self, donor: PeerId) -> int | None:
        for at in reversed(range(len(self._missing))):
            index = self._missing[at]
            if index in self._chunks:
                del self._missing[at]
            elif donor not in self._under_way.get(index, ()):  # another donor has failed to bring what this one is bringing
                del self._missing[at]
                return index
        late = [i for i, donors in self._under_way.items() if i not in self._chunks and donors and donor not in donors]
        return min(late, default=None)


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int, int]:
    version, chunk = header.get("version"), header.get("chunk")
    return sender, version if isinstance(version, int) else -1, chunk if isinstance(chunk, int) else -1
