"""A microbatch forwards through one stage, for its result alone: nothing is kept, counted or routed on.

Whoever asks pushes a payload to a stage peer with the weights version that it means, or none for those that are there; that
one computes without a graph and pushes its output back, with the version that it is of. It refuses when its weights are of
another version, or when it is busy with others of the kind. The
formats are those of training, so what is measured is the model as the swarm computes it. Who may ask, the state machine
says (`Gate.may_ask_forward_only`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.run_parts import BoundaryTensor
from gwtf_p2p.training.codecs.codec import NotFiniteError
from gwtf_p2p.training.codecs.payload import check_payload, decode_payload, encode_payload
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.doors import Payload

ASK_KIND, ANSWER_KIND = "forward_only", "forward_result"
ANY_VERSION, UNKNOWN_VERSION = -1, -2
MOST_AT_ONCE = 4
Boundary = tuple[BoundaryTensor, ...]
ANSWER_S = 60.0
"""Bound on one stage's answer; whoever is late is passed over."""


class NotAnswered(Exception):
    """A stage peer did not compute it; the text says why."""


class Answer(NamedTuple):
    """A stage's output, encoded, and the version of the weights that it is of."""

    payload: memoryview
    version: int


class Wanted(NamedTuple):
    """What an answer is to be: the tensors of it, or, of the last stage of thin data peers, logits instead of a loss."""

    boundary: Boundary
    logits: bool = False


class _Asked(NamedTuple):
    future: asyncio.Future[Answer]
    boundary: Boundary


class ForwardOnly:
    """Both ends: asks stage peers, and answers where this peer is one. `may_ask` says whom; nobody until it is set."""

    def __init__(self, rpc: DataPlane, compute: Compute) -> None:
        self._rpc, self._compute = rpc, compute
        self.may_ask: Callable[[PeerId], bool] = lambda peer: False
        self._boundaries = compute.executor.part.boundaries
        self._codec = compute.codecs.activations
        self._asked: dict[tuple[PeerId, int], _Asked] = {}
        self._numbers = count()
        self._answering = 0
        self._tasks: set[asyncio.Task[None]] = set()
        rpc.add_service(ASK_KIND, self)
        rpc.add_service(ANSWER_KIND, self)

    def stop(self) -> None:
        """Answer no more."""
        for task in self._tasks:
            task.cancel()

    def encode(self, payload: Payload) -> memoryview:
        """What goes out of this part. Raises NotAnswered for values that are not finite."""
        return self._encoded(payload, self._boundaries.output)

    def decode(self, buffer: memoryview, boundary: Boundary | None = None) -> Payload:
        """What comes into this part, or other tensors, on the compute device."""
        return decode_payload(buffer, boundary or self._boundaries.input, self._codec, self._compute.executor.device)

    async def ask(self, peer: PeerId, version: int | None, payload: memoryview, wanted: Wanted) -> Answer:
        """The output of this peer's stage, encoded; `version` None: whatever it has. Raises NotAnswered."""
        number = next(self._numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[peer, number] = _Asked(future, wanted.boundary)
        header = {"kind": ASK_KIND, "ask": number, "version": ANY_VERSION if version is None else version}
        header |= {"logits": True} if wanted.logits else {}
        try:
            async with asyncio.timeout(ANSWER_S):
                result = await self._rpc.push(peer, header, payload, ANSWER_S, eager=False)
                if not result.accepted:
                    raise NotAnswered(f"{peer[-6:]}: {result.reply.get('reason', 'refused')!s:.120}")
                return await future
        except (RpcFailed, RemoteProtocolError) as error:
            raise NotAnswered(str(error)) from error
        except TimeoutError as error:
            raise NotAnswered(f"{peer[-6:]}: no answer in {ANSWER_S:.0f} s") from error
        finally:
            del self._asked[peer, number]

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        if header.get("kind") == ANSWER_KIND:
            asked = self._asked.get(_key(sender, header))
            wanted = asked is not None and not asked.future.done() and payload_bytes == self._bytes(asked.boundary)
            return {"accepted": wanted, **({} if wanted else {"reason": "not asked"})}
        reason = self._why_not(header, payload_bytes) if self.may_ask(sender) else "not a data peer of this run"
        return {"accepted": not reason, **({"reason": reason} if reason else {})}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        key = _key(sender, header)
        if header.get("kind") == ASK_KIND:
            check_payload(payload, self._boundaries.input, self._codec, self._boundaries.below)
            self._answering += 1
            self._spawn(self._answer(*key, header, payload))
            return
        asked = self._asked.get(key)
        if asked is not None and not asked.future.done():
            check_payload(payload, asked.boundary, self._codec, self._boundaries.below)
            asked.future.set_result(Answer(payload, _version_of(header)))

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        self._failed(_key(sender, header), reason)

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """A stage peer that has accepted a payload and cannot compute it after all says so."""
        if header.get("kind") != ANSWER_KIND:
            raise RemoteProtocolError("forward_only has no calls")
        self._failed(_key(sender, header), f"{header.get('reason', '')!s:.120}")
        return {}

    def _bytes(self, boundary: Boundary) -> int:
        return sum(tensor.encoded_bytes(self._codec.form) for tensor in boundary)

    def _encoded(self, payload: Payload, boundary: Boundary) -> memoryview:
        try:
            return encode_payload(payload, boundary, self._codec)
        except NotFiniteError as error:
            raise NotAnswered(str(error)) from error

    def _why_not(self, header: Header, payload_bytes: int) -> str:
        """Why this peer does not compute what is offered; empty if it does."""
        if not isinstance(self._compute.executor, StageExecutor):
            return "not a stage peer"
        if payload_bytes != self._bytes(self._boundaries.input):
            return f"expected {self._bytes(self._boundaries.input)} bytes"
        if _asks_for_logits(header) and not self._compute.executor.part.holds_head:
            return "has no head"
        if _version_of(header) not in (ANY_VERSION, self._compute.optimizer.weights_version):
            return f"its weights are of version {self._compute.optimizer.weights_version}"
        return "busy" if self._answering >= MOST_AT_ONCE else ""

    async def _answer(self, to: PeerId, number: int, asked: Header, payload: memoryview) -> None:
        try:
            found = await self._compute.in_thread(lambda: self._forward(asked, payload))
        finally:
            self._answering -= 1
        header: dict[str, Any] = {"kind": ANSWER_KIND, "ask": number}
        try:
            if isinstance(found, str):
                await self._rpc.call(to, {**header, "reason": found}, ANSWER_S, idempotent=True)
            else:
                await self._rpc.push(to, {**header, "version": found.version}, found.payload, ANSWER_S)
        except RpcFailed:
            return  # whoever asked is gone, or does not want it any more

    def _forward(self, asked: Header, payload: memoryview) -> Answer | str:
        """In the compute thread: the output, or why there is none."""
        executor = self._compute.executor
        assert isinstance(executor, StageExecutor)
        own = self._compute.optimizer.weights_version
        if _version_of(asked) not in (ANY_VERSION, own):
            return f"its weights are of version {own}"
        given = self.decode(payload)
        try:
            if _asks_for_logits(asked):
                logits_BV = executor.evaluate_logits(given)
                return Answer(self._encoded((logits_BV,), logits_boundary(logits_BV.shape)), own)
            with torch.no_grad():
                output = executor.evaluate(given)
            return Answer(self.encode(output), own)
        except NotAnswered as error:
            return str(error)

    def _failed(self, key: tuple[PeerId, int], reason: str) -> None:
        asked = self._asked.get(key)
        if asked is not None and not asked.future.done():
            asked.future.set_exception(NotAnswered(f"{key[0][-6:]}: {reason}"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int]:
    number = header.get("ask")
    return sender, number if isinstance(number, int) else -1


def logits_boundary(shape: Sequence[int]) -> Boundary:
    """logits_BV as a payload."""
    return (BoundaryTensor("logits", tuple(shape), is_exact=True),)


def _asks_for_logits(header: Header) -> bool:
    return header.get("logits") is True


def _version_of(header: Header) -> int:
    version = header.get("version")
    return version if isinstance(version, int) else UNKNOWN_VERSION
