"""A microbatch forwards through one stage, for its result alone: nothing is kept, counted or routed on.

Whoever asks pushes a payload to a stage peer with the weights version that it means, or none for those that are there; that
one computes without a graph and pushes its output back, with the version that it is of. It refuses when its weights are of
another version, or when it is busy with others of the kind. The
formats are those of training, so what is measured is the model as the swarm computes it. Who may ask, the state machine
says (`Gate.may_ask_forward_only`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, NamedTuple

import torch

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.training.codecs.codec import NotFiniteError
from gwtf_p2p.training.codecs.payload import check_payload, decode_payload, encode_payload
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.doors import Payload

ASK_KIND, ANSWER_KIND = "forward_only", "forward_result"
ANY_VERSION, UNKNOWN_VERSION = -1, -2
MOST_AT_ONCE = 4
ANSWER_S = 60.0
"""Bound on one stage's answer; whoever is late is passed over."""


class NotAnswered(Exception):
    """A stage peer did not compute it; the text says why."""


class Answer(NamedTuple):
    """A stage's output, encoded, and the version of the weights that it is of."""

    payload: memoryview
    version: int


class ForwardOnly:
    """Both ends: asks stage peers, and answers where this peer is one. `may_ask` says whom; nobody until it is set."""

    def __init__(self, rpc: DataPlane, compute: Compute) -> None:
        self._rpc, self._compute = rpc, compute
        self.may_ask: Callable[[PeerId], bool] = lambda peer: False
        self._boundary = compute.executor.part.boundary
        self._codec = compute.codecs.activations
        self._asked: dict[tuple[PeerId, int], asyncio.Future[Answer]] = {}
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
        """Raises NotAnswered for values that are not finite."""
        try:
            return encode_payload(payload, self._boundary, self._codec)
        except NotFiniteError as error:
            raise NotAnswered(str(error)) from error

    def decode(self, buffer: memoryview) -> Payload:
        """On the compute device."""
        return decode_payload(buffer, self._boundary, self._codec, self._compute.executor.device)

    async def ask(self, peer: PeerId, version: int | None, payload: memoryview) -> Answer:
        """The output of this peer's stage, encoded as the payload is; `version` None: whatever it has. Raises NotAnswered."""
        number = next(self._numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[peer, number] = future
        header = {"kind": ASK_KIND, "ask": number, "version": ANY_VERSION if version is None else version}
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
            future = self._asked.get(_key(sender, header))
            wanted = future is not None and not future.done() and payload_bytes == self._bytes
            return {"accepted": wanted, **({} if wanted else {"reason": "not asked"})}
        reason = self._why_not(header, payload_bytes) if self.may_ask(sender) else "not a data peer of this run"
        return {"accepted": not reason, **({"reason": reason} if reason else {})}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        check_payload(payload, self._boundary, self._codec)
        key = _key(sender, header)
        if header.get("kind") == ASK_KIND:
            self._answering += 1
            self._spawn(self._answer(*key, _version_of(header), payload))
            return
        future = self._asked.get(key)
        if future is not None and not future.done():
            future.set_result(Answer(payload, _version_of(header)))

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        self._failed(_key(sender, header), reason)

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """A stage peer that has accepted a payload and cannot compute it after all says so."""
        if header.get("kind") != ANSWER_KIND:
            raise RemoteProtocolError("forward_only has no calls")
        self._failed(_key(sender, header), f"{header.get('reason', '')!s:.120}")
        return {}

    @property
    def _bytes(self) -> int:
        return self._compute.payload_bytes(Slot.INPUT)

    def _why_not(self, header: Header, payload_bytes: int) -> str:
        """Why this peer does not compute what is offered; empty if it does."""
        if not isinstance(self._compute.executor, StageExecutor):
            return "not a stage peer"
        if payload_bytes != self._bytes:
            return f"expected {self._bytes} bytes"
        if _version_of(header) not in (ANY_VERSION, self._compute.optimizer.steps):
            return f"its weights are of version {self._compute.optimizer.steps}"
        return "busy" if self._answering >= MOST_AT_ONCE else ""

    async def _answer(self, to: PeerId, number: int, version: int, payload: memoryview) -> None:
        try:
            found = await self._compute.in_thread(lambda: self._forward(version, payload))
        finally:
            self._answering -= 1
        header = {"kind": ANSWER_KIND, "ask": number}
        try:
            if isinstance(found, str):
                await self._rpc.call(to, {**header, "reason": found}, ANSWER_S, idempotent=True)
            else:
                await self._rpc.push(to, {**header, "version": found.version}, found.payload, ANSWER_S)
        except RpcFailed:
            return  # whoever asked is gone, or does not want it any more

    def _forward(self, version: int, payload: memoryview) -> Answer | str:
        """In the compute thread: the output, or why there is none."""
        executor = self._compute.executor
        assert isinstance(executor, StageExecutor)
        own = self._compute.optimizer.steps
        if version not in (ANY_VERSION, own):
            return f"its weights are of version {own}"
        with torch.no_grad():
            output = executor.evaluate(self.decode(payload))
        try:
            return Answer(self.encode(output), own)
        except NotAnswered as error:
            return str(error)

    def _failed(self, key: tuple[PeerId, int], reason: str) -> None:
        future = self._asked.get(key)
        if future is not None and not future.done():
            future.set_exception(NotAnswered(f"{key[0][-6:]}: {reason}"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(sender: PeerId, header: Header) -> tuple[PeerId, int]:
    number = header.get("ask")
    return sender, number if isinstance(number, int) else -1


def _version_of(header: Header) -> int:
    version = header.get("version")
    return version if isinstance(version, int) else UNKNOWN_VERSION
