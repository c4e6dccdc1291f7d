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

import torch

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
from gwtf_p2p.protocol.wire.run_parts import BoundaryTensor
from gwtf_p2p.training.codecs.codec import NotFiniteError
from gwtf_p2p.training.codecs.payload import (
    check_gradient,
    check_payload,
    decode_gradient,
    decode_payload,
    encode_gradient,
    encode_payload,
)
from gwtf_p2p.training.compute.difference import by_tokens, relative_difference
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.doors import Payload

ASK_KIND, TENSORS_KIND = "audit", "audit_tensors"
ANSWER_S = 60.0
"""Bound on one neighbour's answer; the protocol gives up long before."""

MOST_AT_ONCE = 4

_SLOTS = {Side.BEFORE: (Slot.INPUT, Slot.INPUT_GRADIENT), Side.AFTER: (Slot.OUTPUT, Slot.OUTPUT_GRADIENT)}
"""Of the worker, what its neighbour on that side has, too."""

Boundary = tuple[BoundaryTensor, ...]
WhyNot = Callable[[PeerId, Side, Hop, str], str]


class NotGathered(Exception):
    """A neighbour did not give what it should have; the text says why."""


class AuditWork:
    """Of one peer. `why_not` says what is given to whom; nothing until it is set."""

    def __init__(self, rpc: DataPlane, compute: Compute, sign: Callable[[str], str]) -> None:
        self._rpc, self._compute, self._sign = rpc, compute, sign
        self.why_not: WhyNot = lambda asker, side, hop, proof: "not up yet"
        boundaries = compute.executor.part.boundaries
        self._boundary = {Side.BEFORE: boundaries.input, Side.AFTER: boundaries.output}
        self._below = boundaries.below
        self._codecs: BoundaryCodecs = compute.codecs
        self._asked: dict[tuple[PeerId, int], tuple[Side, asyncio.Future[memoryview]]] = {}
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
        executor = self._compute.executor
        assert isinstance(executor, StageExecutor), "only stage peers do others' work again"
        return differences(executor, self._codecs, *(self._cut(here[side], side) for side in (Side.BEFORE, Side.AFTER)))

    def _cut(self, payload: memoryview, side: Side) -> tuple[memoryview, memoryview]:
        """An activation and a gradient."""
        size = self._compute.payload_bytes(_SLOTS[side][0])
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
        here = self._here[hop.microbatch] = {Side.BEFORE: before, Side.AFTER: after}
        input_, input_gradient, output, output_gradient = await asyncio.to_thread(
            lambda: [_digest(part) for side, payload in here.items() for part in self._cut(payload, side)]
        )
        return ev.Gathered(hop, Digests(input_, output, output_gradient, input_gradient))

    async def _ask(self, peer: PeerId, side: Side, hop: Hop, proof: str) -> memoryview:
        """What this neighbour has. Raises NotGathered."""
        number = next(self._numbers)
        future: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._asked[peer, number] = side, future
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

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        asked = self._asked.get(_key(sender, header)) if header.get("kind") == TENSORS_KIND else None
        due = 0 if asked is None else sum(self._compute.payload_bytes(slot) for slot in _SLOTS[asked[0]])
        wanted = asked is not None and not asked[1].done() and payload_bytes == due
        return {"accepted": True} if wanted else {"accepted": False, "reason": "not asked"}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        asked = self._asked.get(_key(sender, header))
        if asked is None or asked[1].done():
            return
        side, future = asked
        activation, gradient = self._cut(payload, side)
        check_payload(activation, self._boundary[side], self._codecs.activations, self._below)
        check_gradient(gradient, self._boundary[side], self._codecs.gradients)
        future.set_result(payload)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        asked = self._asked.get(_key(sender, header))
        if asked is not None and not asked[1].done():
            asked[1].set_exception(NotGathered(f"{sender[-6:]}: {reason:.120}"))

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


def differences(
    executor: StageExecutor, codecs: BoundaryCodecs, before: tuple[memoryview, memoryview], after: tuple[memoryview, memoryview]
) -> tuple[float, float]:
    """By how much a worker's output and its input's gradient differ from this executor's, given what has travelled before and
    after that stage: an activation and a gradient each. What is not finite travels as zeros (`BoundaryTensors.keep`)."""
    boundaries = executor.part.boundaries

    def activation(buffer: memoryview, boundary: Boundary) -> Payload:
        return decode_payload(buffer, boundary, codecs.activations, executor.device)

    def gradient(buffer: memoryview, boundary: Boundary) -> Payload:
        return decode_gradient(buffer, boundary, codecs.gradients, executor.device)

    given, made = activation(before[0], boundaries.input), activation(after[0], boundaries.output)
    got, handed = gradient(after[1], boundaries.output), gradient(before[1], boundaries.input)
    own, own_gradient = executor.repeat(given, got)
    try:
        encoded = encode_payload(own, boundaries.output, codecs.activations)
    except NotFiniteError:
        own = _zeros(own, but=boundaries.output)
        encoded = encode_payload(own, boundaries.output, codecs.activations)
    own_sent = activation(encoded, boundaries.output)
    try:
        encoded = encode_gradient(own_gradient, boundaries.input, codecs.gradients)
    except NotFiniteError:
        own_gradient = _zeros(own_gradient, but=boundaries.input)
        encoded = encode_gradient(own_gradient, boundaries.input, codecs.gradients)
    gradient_sent = gradient(encoded, boundaries.input)
    # Where another kind of tensor comes out than goes in, all of it is what the stage has made.
    same = boundaries.input == boundaries.output
    starts, gradient_starts = (given, got) if same else (_zeros(own), _zeros(own_gradient))
    if executor.part.holds_head:
        tokens = float(own[0][2])
        made, own, own_sent = ((by_tokens(payload[0], tokens),) for payload in (made, own, own_sent))
    output = relative_difference(made, own, own_sent, starts)
    return output, relative_difference(handed, own_gradient, gradient_sent, gradient_starts)


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int]:
    number = header.get("ask")
    return sender, number if isinstance(number, int) else -1


def _zeros(payload: Payload, but: Boundary | None = None) -> Payload:
    """`but`: what of this boundary are integers stays."""
    stays = [each.is_integer for each in but] if but is not None else [False] * len(payload)
    return tuple(tensor if kept else torch.zeros_like(tensor) for tensor, kept in zip(payload, stays, strict=True))


def _digest(payload: memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()
