"""What a peer sends: tensors, small messages, questions; each ends as an event.

It remembers what was sent to whom: who is likely to have a tensor already is offered it before its bytes are sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.libp2p.receipt_signing import ReceiptSigning
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.rpc.api import FailureKind, Header, PushResult, RpcFailed
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.certifying import Sign, signed
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import Check, ControlMessage, Verdict, to_header

CALL_DEADLINE_S = 5.0
"""How long a small message may take before it counts as failed; the protocol then asks, it does not conclude."""

PUSH_DEADLINE_S = 120.0
"""Only a bound on leaked transfers: the protocol's own deadlines, from measured times, act long before and cancel."""


class Transport(Protocol):
    """What the driver needs of `rpc.Rpc`."""

    async def push(
        self, to: PeerId, header: Header, payload: memoryview, deadline_s: float, *, eager: bool = True
    ) -> PushResult: ...

    async def call(self, to: PeerId, header: Header, deadline_s: float, *, idempotent: bool = False) -> Header: ...

    def watch(self, peer: PeerId) -> None: ...

    def unwatch(self, peer: PeerId) -> None: ...

    def bar(self, peer: PeerId, seconds: float) -> None: ...


class Sender:
    """The outgoing half of a driver. `feed` takes its events, `spawn` runs its work under the driver's eyes.

    `resent_bytes` went to a peer after the same tensor had been sent to somebody before.
    """

    def __init__(
        self,
        me: PeerId,
        outwards: tuple[Transport, Compute, LinkProbes, ReceiptSigning],
        feed: Callable[[ev.Event], object],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        clock: Callable[[], float],
        *,
        sign: Sign | None = None,
    ) -> None:
        self._me, self._feed, self._spawn, self._clock = me, feed, spawn, clock
        self._transport, compute, self._probes, self._signing = outwards
        self._sign = sign
        self._payload = compute.payload
        self._pushes: dict[int, asyncio.Task[None]] = {}
        self._sent: dict[tuple[MicrobatchId, ev.Slot], set[PeerId]] = {}
        self.resent_bytes = 0

    def push(self, push: ef.Push) -> None:
        """Begin a transfer."""
        self._pushes[push.token] = self._spawn(self._transfer(push))

    def cancel(self, token: int) -> None:
        """Nobody waits for this transfer any more."""
        task = self._pushes.pop(token, None)
        if task is not None:
            task.cancel()

    def forget(self, microbatch: MicrobatchId) -> None:
        """Its tensors are gone."""
        for slot in ev.Slot:
            self._sent.pop((microbatch, slot), None)

    async def _transfer(self, push: ef.Push) -> None:
        what = (push.message.microbatch, push.slot)
        payload = self._payload(*what)
        before = self._sent.get(what, set())
        self._sent[what] = before | {push.to}
        eager = push.to not in before  # who was sent it already is likely to have it: the payload waits for the verdict
        try:
            result = await self._transport.push(push.to, to_header(push.message), payload, PUSH_DEADLINE_S, eager=eager)
        except RpcFailed as error:
            self._feed(ev.PushFailed(push.token, f"{error.kind.value}: {error.reason}"))
            return
        finally:
            self._pushes.pop(push.token, None)
        self.resent_bytes += result.sent_bytes if before else 0
        self._probes.observe(push.to, result.round_trip_s, result.sent_bytes, result.transfer_s)
        verdict, detail = _verdict_of(result.reply)
        self._feed(ev.PushAnswered(push.token, verdict, detail))
        if result.accepted:
            self._feed(ev.PushDelivered(push.token, result.seconds))

    def send(self, to: PeerId, message: ControlMessage) -> None:
        """A small message, signed if it has to be; one to itself comes back as an event of its own."""
        message = signed(self._signing.signed(message), self._sign)
        if to == self._me:
            asyncio.get_running_loop().call_soon(self._feed, ev.Received(to, message))
        else:
            self._spawn(self._call(to, message))

    async def _call(self, to: PeerId, message: ControlMessage) -> None:
        try:
            await self._transport.call(to, to_header(message), CALL_DEADLINE_S, idempotent=True)
        except RpcFailed as error:
            self._feed(ev.SendFailed(to, message, f"{error.kind.value}: {error.reason}"))

    async def ask(self, ask: ef.Ask) -> None:
        """Is a peer alive, and what of these does it hold?"""
        began = self._clock()
        try:
            reply = await self._transport.call(ask.peer, to_header(Check(ask.microbatches)), ask.deadline_s)
        except RpcFailed as error:
            silent = error.kind is FailureKind.TIMEOUT
            self._feed(ev.CheckFailed(ask.peer, f"{error.kind.value}: {error.reason}", silent))
            return
        indices = reply.get("known")
        known = {i for i in indices if isinstance(i, int)} if isinstance(indices, list) else set()
        unknown = tuple(m for i, m in enumerate(ask.microbatches) if i not in known)
        self._feed(ev.CheckAnswered(ask.peer, unknown, self._clock() - began))


def _verdict_of(reply: Header) -> tuple[Verdict, str]:
    """A verdict that is none counts as a refusal."""
    detail = str(reply.get("detail") or reply.get("reason") or "")
    try:
        return Verdict(reply.get("verdict")), detail
    except ValueError:
        return Verdict.REFUSED, detail or f"no verdict in the reply: {reply!r:.80}"
