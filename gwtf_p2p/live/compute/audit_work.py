"""Audits with real tensors: signatures, digests, the tensors of a worker's neighbours, and the computation done again.

Both ends of gathering: an auditor asks each neighbour of a worker for its two tensors of a hop; a neighbour whose state machine
says that it may (`why_not`) pushes them, one after the other in one payload. Digests are of the bytes in which tensors travel.
What a codec rounds is taken into account (`training/compute/difference`): the worker's result has travelled.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

from gwtf_p2p.live.compute.boundary import BoundaryCodecs
from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.audit.witness import KEPT, Side
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.audit_messages import Digests, Hop
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.training.codecs.codec import NotFiniteError
from gwtf_p2p.training.codecs.payload import check_payload, decode_payload, encode_payload
from gwtf_p2p.training.compute.difference import relative_difference
from gwtf_p2p.training.compute.executor import StageExecutor

ASK_KIND, TENSORS_KIND = "audit", "audit_tensors"
ANSWER_S = 60.0
"""Bound on one neighbour's answer; the protocol gives up long before."""

MOST_AT_ONCE = 4

WhyNot = Callable[[PeerId, Side, Hop, str], str]


class NotGathered(Exception):
    """A neighbour did not give what it should have; the text says why."""


class AuditWork:
    """Of one peer. `why_not` says what is given to whom; nothing until it is set."""

    def __init__(self, rpc: DataPlane, compute: Compute, sign: Callable[[str], str]) -> None:
        self._rpc, self._compute, self._sign = rpc, compute, sign
        self.why_not: WhyNot = lambda asker, side, hop, proof: "not up yet"
        self._boundary = compute.executor.part.boundary
        self._codecs: BoundaryCodecs = compute.codecs
        self._asked: dict[tuple[PeerId, int], asyncio.Future[memoryview]] = {}
        self._here: dict[MicrobatchId, dict[Side, memoryview]] = {}
        self._numbers = count()
        self._giving = 0
        self._tasks: set[asyncio.Task[None]] = set()
        rpc.add_service(ASK_KIND, self)
        rpc.add_service(TENSORS_KIND, self)

    def stop(self) -> None:
        """Give nothing any more."""
        for task in self._tasks:
            task.cancel()

    # ---- effects

    async def carry_out(
        self, effect: ef.Sign | ef.Digest | ef.Gather | ef.DropGathered, feed: Callable[[ev.Event], object]
    ) -> None:
        """What was asked for; `feed` hears of it."""
        match effect:
            case ef.Sign(name, text):
                feed(ev.Signed(name, await asyncio.to_thread(self._sign, text)))
            case ef.Digest(microbatch):
                feed(ev.Digested(microbatch, await asyncio.to_thread(self._digests, microbatch)))
            case ef.Gather(hop, proof):
                feed(await self._gather(hop, proof))
            case ef.DropGathered(microbatch):
                self._here.pop(microbatch, None)

    async def compare(self, microbatch: MicrobatchId) -> ev.Computed:
        """Do the hop again, in the compute thread, and say by how much the worker's results differ."""
        here = self._here.get(microbatch)
        if here is None:
            return ev.Computed(ev.Work.AUDIT, microbatch, 0.0)
        began = asyncio.get_running_loop().time()
        differs = await self._compute.in_thread(lambda: self._compared(here))
        return ev.Computed(ev.Work.AUDIT, microbatch, asyncio.get_running_loop().time() - began, differs=differs)

    # ---- digests and comparisons, in other threads

    def _digests(self, microbatch: MicrobatchId) -> Digests | None:
        try:
            found = {slot: _digest(self._compute.store.get(microbatch, slot)) for slot in Slot}
        except KeyError:
            return None
        return Digests(found[Slot.INPUT], found[Slot.OUTPUT], found[Slot.OUTPUT_GRADIENT], found[Slot.INPUT_GRADIENT])

    def _compared(self, here: dict[Side, memoryview]) -> tuple[float, float]:
        executor, (activations, gradients) = self._compute.executor, (self._codecs.activations, self._codecs.gradients)
        assert isinstance(executor, StageExecutor), "only stage peers do others' work again"
        (input_, input_gradient), (made_, output_gradient) = (self._cut(here[side]) for side in (Side.BEFORE, Side.AFTER))
        given, made = (decode_payload(b, self._boundary, activations, executor.device) for b in (input_, made_))
        got, handed = (decode_payload(b, self._boundary, gradients, executor.device) for b in (output_gradient, input_gradient))
        own, own_gradient = executor.repeat(given, got)
        try:
            sent = encode_payload(own, self._boundary, activations)
            sent_gradient = encode_payload(own_gradient, self._boundary, gradients)
        except NotFiniteError:
            return float("inf"), float("inf")
        own_sent = decode_payload(sent, self._boundary, activations, executor.device)
        gradient_sent = decode_payload(sent_gradient, self._boundary, gradients, executor.device)
        output = relative_difference(made, own, own_sent, given)
        return output, relative_difference(handed, own_gradient, gradient_sent, got)

    def _cut(self, payload: memoryview) -> tuple[memoryview, memoryview]:
        """An activation and a gradient."""
        size = self._compute.payload_bytes(Slot.INPUT)
        return payload[:size], payload[size:]

    # ---- as an auditor

    async def _gather(self, hop: Hop, proof: str) -> ev.Gathered:
        asks = [self._ask(peer, side, hop, proof) for side, peer in ((Side.BEFORE, hop.before), (Side.AFTER, hop.after))]
        before, after = await asyncio.gather(*asks, return_exceptions=True)
        for found in (before, after):
            if isinstance(found, NotGathered):
                return ev.Gathered(hop, None, str(found))
            if isinstance(found, BaseException):
                raise found
        assert isinstance(before, memoryview) and isinstance(after, memoryview)
        self._here[hop.microbatch] = {Side.BEFORE: before, Side.AFTER: after}
        input_, input_gradient, output, output_gradient = await asyncio.to_thread(
            lambda: [_digest(part) for payload in (before, after) for part in self._cut(payload)]
        )
        return ev.Gathered(hop, Digests(input_, output, output_gradient, input_gradient))

    async def _ask(self, peer: PeerId, side: Side, hop: Hop, proof: str) -> memoryview:
        """What this neighbour has. Raises NotGathered."""
        number = next(self._numbers)
        future: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._asked[peer, number] = future
        header = {"kind": ASK_KIND, "ask": number, "side": side.value, "hop": to_plain(hop), "proof": proof}
        try:
            async with asyncio.timeout(ANSWER_S):
                reply = await self._rpc.call(peer, header, ANSWER_S)
                if reply.get("accepted") is not True:
                    raise NotGathered(f"{peer[-6:]}: {reply.get('reason', 'refused')!s:.120}")
                return await future
        except (RpcFailed, RemoteProtocolError) as error:
            raise NotGathered(f"{peer[-6:]}: {error}") from error
        except TimeoutError as error:
            raise NotGathered(f"{peer[-6:]}: no answer in {ANSWER_S:.0f} s") from error
        finally:
            del self._asked[peer, number]

    # ---- the transport's side

    @property
    def _bytes(self) -> int:
        return self._compute.payload_bytes(Slot.INPUT) + self._compute.payload_bytes(Slot.INPUT_GRADIENT)

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        future = self._asked.get(_key(sender, header)) if header.get("kind") == TENSORS_KIND else None
        wanted = future is not None and not future.done() and payload_bytes == self._bytes
        return {"accepted": True} if wanted else {"accepted": False, "reason": "not asked"}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        activation, gradient = self._cut(payload)
        check_payload(activation, self._boundary, self._codecs.activations)
        check_payload(gradient, self._boundary, self._codecs.gradients)
        future = self._asked.get(_key(sender, header))
        if future is not None and not future.done():
            future.set_result(payload)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        future = self._asked.get(_key(sender, header))
        if future is not None and not future.done():
            future.set_exception(NotGathered(f"{sender[-6:]}: {reason:.120}"))

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """An auditor asks for what this peer kept."""
        if header.get("kind") != ASK_KIND:
            raise RemoteProtocolError("audit_tensors has no calls")
        hop: Hop = from_plain(Hop, header.get("hop"), "audit.hop")
        side: Side = from_plain(Side, header.get("side"), "audit.side")
        proof: str = from_plain(str, header.get("proof"), "audit.proof")
        reason = "busy" if self._giving >= MOST_AT_ONCE else self.why_not(sender, side, hop, proof)
        if reason:
            return {"accepted": False, "reason": reason}
        self._giving += 1
        self._spawn(self._give(sender, _key(sender, header)[1], side, hop.microbatch))
        return {"accepted": True}

    async def _give(self, to: PeerId, number: int, side: Side, microbatch: MicrobatchId) -> None:
        try:
            parts = await asyncio.to_thread(lambda: [self._compute.store.get(microbatch, slot) for slot in KEPT[side]])
            payload = memoryview(bytearray().join(parts))
            await self._rpc.push(to, {"kind": TENSORS_KIND, "ask": number}, payload, ANSWER_S, eager=False)
        except (KeyError, RpcFailed):
            return  # the iteration is over, or whoever asked is gone
        finally:
            self._giving -= 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int]:
    number = header.get("ask")
    return sender, number if isinstance(number, int) else -1


def _digest(payload: memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()
