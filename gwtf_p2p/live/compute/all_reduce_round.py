"""One attempt of one member at an average: what it sends, what it waits for, and where the result is put.

Nothing of the size of the gradient is held in memory. Pieces are read from the member's own gradient when they are sent, sums
are made batch by batch, and results go to a scratch as they come. A member whose parts come faster than the others' has to
wait: it is told that this peer is not there yet, which older releases know too; from then on its payloads to this peer wait for
the verdict, so that no more bytes travel in vain. Few finished batches are on their way at once.

In a row (`protocol/averages/rows`) the sum of a share is not the end of it: it is averaged `across` the rows, by a round with
the other owners of this lane, and what comes of it is told to the row as it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import torch

from gwtf_p2p.live.compute.all_reduce_parts import (
    Batch,
    Part,
    Parts,
    Residual,
    Told,
    average_parts,
    batches_of,
    squares_of,
    unpack_parts,
)
from gwtf_p2p.live.compute.averaging_group import AveragingFailed, Circle
from gwtf_p2p.live.rpc.api import DataPlane, FailureKind, Header, PushFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.parts import PartBound, PartsSeen, root_mean_square
from gwtf_p2p.training.codecs.codec import Codec, NotFiniteError
from gwtf_p2p.training.compute.values import Gradient
from gwtf_p2p.training.state.scratch import ScratchGradient

KIND = "average"
NOT_YET = "not in this group yet"
ENDED = "this average has ended"
"""Said to whoever's payload comes in after the receiver has ended its part. It has told the coordinator why; that it ends is no
fault of its own, and the attempt's Abort is on its way."""
MOST_AHEAD = 2
"""Batches of one member's parts that may have come and wait for the others', and finished batches on their way."""

_PUSH_S = 60.0
_ASK_AGAIN_S = (0.02, 0.5)
_INLINE_BYTES = 1 << 18
"""Smaller work is done at once: it takes less than handing it to a thread and back, which on a busy machine waits twice."""

T = TypeVar("T")

Key = tuple[str, int, int]
"""What comes (`part`: a member's piece of our share, `result`: a member's finished share), from which member, which batch."""


class Pieces:
    """What one member sends and takes, among those of a circle whose `shares` of the values these are. The average goes `into`
    the first, what rounding takes into the second (None: it takes nothing). The `bound` says how large others' parts and sums
    may be. What is `told` of each share is kept where it has to be passed on.
    """

    def __init__(
        self,
        rpc: DataPlane,
        circle: Circle,
        own: Gradient,
        codec: Codec,
        into: tuple[ScratchGradient, Residual | None],
        bound: PartBound,
        *,
        shares: Sequence[Sequence[Part]],
        told: Told | None = None,
    ) -> None:
        if rpc.peer_id not in circle.members:
            raise ValueError(f"{rpc.peer_id} is no member of {circle.name}")
        self.circle, self.told = circle, told
        self.result, self.residual = into
        self.sent_bytes = 0
        self._rpc, self._own, self._codec = rpc, own, codec
        self._me = circle.members.index(rpc.peer_id)
        self.seen = PartsSeen(bound, self._me)
        self._others = [i for i in range(len(circle.members)) if i != self._me]
        self._shares = shares
        self._batches = [batches_of([part.size for part in share]) for share in self._shares]
        loop = asyncio.get_running_loop()
        self.expected: dict[Key, asyncio.Future[memoryview]] = {
            (phase, i, b): loop.create_future()
            for i in self._others
            for phase, share in (("part", self._me), ("result", i))
            if phase == "result" or circle.weights[i] > 0
            for b in range(len(self._batches[share]))
        }
        self._taken: asyncio.Future[memoryview] = loop.create_future()
        self._taken.set_result(memoryview(b""))
        self.begun = {member: asyncio.Event() for member in circle.members}
        self._slower: set[PeerId] = set()
        self._summing = 0
        self._under_way = asyncio.Semaphore(MOST_AHEAD)
        self._failure: AveragingFailed | None = None
        self._work: asyncio.Task[None] | None = None

    def is_early(self, key: Key) -> bool:
        """A part of a batch so far ahead of the one that is summed now that it has to wait for its turn."""
        return key[0] == "part" and key[2] >= self._summing + MOST_AHEAD

    def key_of(self, sender: PeerId, header: Header) -> Key:
        """Raises RemoteProtocolError when nothing of the kind is due from the sender."""
        member = self.circle.members.index(sender) if sender in self.circle.members else -1
        batch = header.get("batch")
        key = (str(header.get("phase")), member, batch if isinstance(batch, int) else -1)
        if key not in self.expected:
            raise RemoteProtocolError(f"{key[0]:.10} {batch!r:.20} is not due from this peer")
        return key

    def bytes_of(self, key: Key) -> int:
        """How large this payload is."""
        return self._batch(key).encoded_bytes(self._codec.form)

    def missing(self) -> tuple[str, PeerId] | None:
        """What is still owed to us, and by whom. Parts come first: a result can be late because of another's part."""
        found = min((key for key, future in self.expected.items() if not future.done() or future.cancelled()), default=None)
        return (found[0], self.circle.members[found[1]]) if found else None

    def _batch(self, key: Key) -> Batch:
        phase, member, number = key
        return self._batches[self._me if phase == "part" else member][number]

    def _own_piece(self, place: Part) -> torch.Tensor:
        with disk_errors(self._rpc.peer_id):
            return self._own.piece(place.name, place.start, place.stop)

    def _payload(
        self,
        parts: Iterable[tuple[Part, torch.Tensor]],
        batch: Batch,
        weight: float,
        result: ScratchGradient | None = None,
    ) -> bytearray:
        """The bytes of parts; what they are read as goes to `result`, and what rounding takes of them is owed.

        Raises AveragingFailed.
        """
        payload, at = bytearray(batch.encoded_bytes(self._codec.form)), 0
        for place, part in parts:
            try:
                data = self._codec.encode(part)
            except NotFiniteError as error:
                raise AveragingFailed(self._rpc.peer_id, str(error)) from error
            end = at + len(data)
            payload[at:end] = data
            if result is not None or self.residual is not None:
                seen = self._codec.decode(memoryview(payload)[at:end], (place.size,)).float()
                with disk_errors(self._rpc.peer_id):
                    if result is not None:
                        result.put(place.name, place.start, seen)
                    if self.residual is not None:
                        self.residual.lost((place,), (part,), (seen,), weight)
            at = end
        return payload

    async def _arrived(self, key: Key) -> Parts:
        payload, batch = await self.expected[key], self._batch(key)
        self.expected[key] = self._taken  # and the payload can go

        def read() -> Parts:
            parts = unpack_parts(payload, batch, self._codec)
            size = root_mean_square(squares_of(parts), sum(batch.sizes)) if key[0] == "result" else 0.0
            if why := self.seen.bound.result(size):
                raise RemoteProtocolError(f"sum of its share: {why}")
            if key[0] == "result":
                self._keep(key[1], batch, payload)
            return parts

        try:
            return await in_thread(len(payload), read)
        except RemoteProtocolError as error:
            raise AveragingFailed(self.circle.members[key[1]], str(error), refused=True) from error

    def _keep(self, member: int, batch: Batch, payload: memoryview | bytearray) -> None:
        """What a member has told of its share."""
        if self.told is not None:
            with disk_errors(self._rpc.peer_id):
                self.told.put(self._shares[member][batch.span], payload)

    async def _push(self, to: int, phase: str, batch: int, payload: bytearray) -> None:
        """Until it is taken. As the other may not have heard of the group yet, the payload waits for the first verdict."""
        peer = self.circle.members[to]
        header = {"kind": KIND, "group": self.circle.name, "phase": phase, "batch": batch}
        wait_s, longest_s = _ASK_AGAIN_S
        begun = self.begun[peer]
        while True:
            expected = begun.is_set()
            try:
                eager = expected and peer not in self._slower
                result = await self._rpc.push(peer, header, payload, _PUSH_S, eager=eager)
            except PushFailed as error:
                if error.kind is not FailureKind.REFUSED or error.reason != ENDED:
                    raise AveragingFailed(peer, f"{phase}: {error.kind.value}: {error.reason}") from error
                await asyncio.get_running_loop().create_future()  # until this part ends too: nothing is sent again in vain
                return
            self.sent_bytes += result.sent_bytes
            if result.accepted:
                begun.set()
                return
            if result.reply.get("reason") != NOT_YET:
                raise AveragingFailed(peer, f"{phase} refused: {result.reply.get('reason')!r:.200}")
            if expected:
                begun.clear()  # it has left this group, or it will say so
                self._slower.add(peer)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await begun.wait()
            wait_s = min(2 * wait_s, longest_s)


class Round(Pieces):
    """The course of it."""

    @property
    def circles(self) -> list[Round]:
        """This one, and those across rows that are part of it."""
        return [self]

    def fail(self, failure: AveragingFailed) -> None:
        if self._failure is None and self._work is not None:
            self._failure = failure
            self._work.cancel()

    async def run(self, deadline_s: float) -> None:
        """Raises AveragingFailed."""
        self._work = asyncio.get_running_loop().create_task(self._run())
        try:
            async with asyncio.timeout(deadline_s):
                await self._work
        except TimeoutError as error:
            _, peer = self.missing() or ("", None)
            raise AveragingFailed(peer, f"nothing came within {deadline_s:.0f} s") from error
        except asyncio.CancelledError:
            if self._failure is not None:
                raise self._failure from None
            raise

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for other in self._others:
                    if self.circle.weights[self._me] > 0:
                        tasks.create_task(self._send_parts(other))
                    tasks.create_task(self._collect(other))
                tasks.create_task(self._sum_up(tasks))
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            if isinstance(first, AveragingFailed):
                raise first from None
            raise

    async def _send_parts(self, to: int) -> None:
        for number, batch in enumerate(self._batches[to]):
            pieces = ((place, self._own_piece(place)) for place in self._shares[to][batch.span])
            write = partial(self._payload, pieces, batch, self.circle.weights[self._me])
            await self._push(to, "part", number, await in_thread(batch.float_bytes, write))

    async def _sum_up(self, tasks: asyncio.TaskGroup) -> None:
        """Average our own share, batch by batch, and send each to all."""
        for number, batch in enumerate(self._batches[self._me]):
            parts = await self._parts(number)
            payload = await in_thread(batch.float_bytes * len(self._others), partial(self._share_of, batch, parts))
            await self._under_way.acquire()
            tasks.create_task(self._send_result(number, payload))

    async def _parts(self, number: int) -> dict[int, Parts]:
        """What others have brought to a batch of our share."""
        self._summing = number
        bring = (member for member in self._others if self.circle.weights[member] > 0)
        return {member: await self._arrived(("part", member, number)) for member in bring}

    def _share_of(self, batch: Batch, parts: dict[int, Parts]) -> bytearray:
        """Our finished batch as all others get it; as they decode it, it goes to the result. One part after the other."""
        payload = self._payload(self._means(batch, parts), batch, sum(self.circle.weights), self.result)
        self._keep(self._me, batch, payload)
        return payload

    def _means(self, batch: Batch, parts: dict[int, Parts]) -> Iterator[tuple[Part, torch.Tensor]]:
        """Of each part of our batch, in the order of the members. Raises AveragingFailed where a part is too large."""
        weights, me, places = self.circle.weights, self._me, self._shares[self._me][batch.span]
        summed = [member for member, weight in enumerate(weights) if weight > 0]
        squares = {member: squares_of(each) for member, each in parts.items()}
        if weights[me] > 0:
            squares[me] = sum(squares_of((self._own_piece(place),)) for place in places)
        refused = self.seen.refusal(squares, sum(batch.sizes))
        if refused is not None:
            raise AveragingFailed(self.circle.members[refused[0]], f"part: {refused[1]}", refused=True)
        for k, place in enumerate(places):
            theirs = {member: self._own_piece(place) if member == me else parts[member][k] for member in summed}
            yield place, average_parts([(weights[member], (theirs[member],)) for member in summed])[0]

    async def _send_result(self, number: int, payload: bytearray) -> None:
        try:
            async with asyncio.TaskGroup() as pushes:
                for other in self._others:
                    pushes.create_task(self._push(other, "result", number, payload))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self._under_way.release()

    async def _collect(self, other: int) -> None:
        for number, batch in enumerate(self._batches[other]):
            parts = await self._arrived(("result", other, number))
            await in_thread(batch.float_bytes, partial(self._put, other, batch, parts))

    def _put(self, member: int, batch: Batch, parts: Parts) -> None:
        with disk_errors(self._rpc.peer_id):
            for place, part in zip(self._shares[member][batch.span], parts, strict=True):
                self.result.put(place.name, place.start, part)


class RoundInRow(Round):
    """In a row: the means of our share lie in `result` until `across` has averaged them with those of other rows."""

    across: Round

    @property
    def circles(self) -> list[Round]:
        """See `Round`."""
        return [self, *self.across.circles]

    async def _sum_up(self, tasks: asyncio.TaskGroup) -> None:
        batches = self._batches[self._me]
        for number, batch in enumerate(batches):
            parts = await self._parts(number)
            if any(self.circle.weights):
                await in_thread(batch.float_bytes * len(self._others), partial(self._mean_of_row, batch, parts))
        await self.across._run()
        for number, batch in enumerate(batches):
            payload = await in_thread(batch.float_bytes, partial(self._told_of, batch))
            await self._under_way.acquire()
            tasks.create_task(self._send_result(number, payload))

    def _mean_of_row(self, batch: Batch, parts: dict[int, Parts]) -> None:
        with disk_errors(self._rpc.peer_id):
            for place, mean in self._means(batch, parts):
                self.result.put(place.name, place.start, mean)

    def _told_of(self, batch: Batch) -> bytearray:
        """Of our batch, across the rows."""
        assert self.across.told is not None, "what is averaged across rows is kept for the row"
        with disk_errors(self._rpc.peer_id):
            payload = self.across.told.read(self._shares[self._me][batch.span])
        self._keep(self._me, batch, payload)
        return payload

    def missing(self) -> tuple[str, PeerId] | None:
        """See `Round`. What is owed across the rows is owed before the sums of the row."""
        found = super().missing()
        return found if found is not None and found[0] == "part" else self.across.missing() or found


async def in_thread(size: int, function: Callable[[], T]) -> T:
    """In a thread, unless it is about few bytes."""
    return function() if size <= _INLINE_BYTES else await asyncio.to_thread(function)


@contextmanager
def disk_errors(me: PeerId) -> Iterator[None]:
    """Raises AveragingFailed, on this peer's own account, where its disk fails."""
    try:
        yield
    except OSError as error:
        raise AveragingFailed(me, f"what is averaged cannot be kept: {error.strerror or error}") from error
