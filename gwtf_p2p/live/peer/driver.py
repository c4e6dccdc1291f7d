"""Interpreter 2 of the protocol: asyncio, real transfers, real computing. It carries out effects and decides nothing.

Every event enters through `feed`, in the event loop, one at a time; the effects that come back are carried out in order.
With an event log, each event is written with its `now` and what came back, so that a live story can be told again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from gwtf_p2p.live.compute.audit_work import AuditWork
from gwtf_p2p.live.compute.averages import Averager, Averages
from gwtf_p2p.live.compute.compute import Compute, state_digest
from gwtf_p2p.live.emulation.faults import FaultTrigger
from gwtf_p2p.live.libp2p.receipt_signing import ReceiptSigning, TooManyReceipts
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.peer.sending import Sender, Transport
from gwtf_p2p.live.rpc.api import Header
from gwtf_p2p.live.state.transfer import StateUnavailable
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.certifying import Sign
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.schedule.iteration_plan import make_plan
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import PlanRequest
from gwtf_p2p.protocol.wire.messages import (
    Backward,
    Check,
    Forward,
    Message,
    TensorMessage,
    Verdict,
    from_header,
)

logger = logging.getLogger(__name__)

ReportListener = Callable[[ef.Report, float], None]


Downloader = Callable[[ef.Download, Callable[[], object]], Coroutine[Any, Any, None]]
"""Puts a state in place; the second is called when its weights are, where they come first. Raises StateUnavailable or
RemoteProtocolError, and has then changed nothing but weights that came first."""

LogEvent = Callable[[ev.Event, float, Sequence[ef.Effect], str], None]
"""Hears each event, when it was, what came back, and the failure of the machine ('' when it was none)."""


@dataclass(frozen=True, slots=True)
class DriverParts:
    """Everything a driver connects. `publish` is called when the record should go out soon, `on_move` when this peer is to
    begin anew in another stage, `on_end` when its part is over; `save` writes a version and says how that went; `before` is
    waited for before any work begins. `signing` reads what comes and signs what goes; `sign` signs what others are to believe
    without this peer."""

    compute: Compute
    transport: Transport
    average: Averager
    download: Downloader
    publish: Callable[[], None]
    on_move: Callable[[Stage], None]
    on_end: Callable[[], None]
    save: Callable[[ef.Checkpoint, Callable[[int, str], object]], None]
    on_report: ReportListener
    probes: LinkProbes
    signing: ReceiptSigning
    log_event: LogEvent | None = None
    before: Callable[[ev.Work], Coroutine[Any, Any, None]] | None = None
    fault: FaultTrigger | None = None
    sign: Sign | None = None
    audits: AuditWork | None = None


class Driver:
    """Runs one state machine. Handlers of `rpc` are the `on_...` methods."""

    def __init__(self, machine: StagePeer | DataPeer, parts: DriverParts, clock: Callable[[], float] = time.monotonic) -> None:
        self.machine, self.parts = machine, parts
        self.clock = clock
        self.make_plan = make_plan
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[ev.TimerName, asyncio.TimerHandle] = {}
        self._download_task: asyncio.Task[None] | None = None
        outwards = (parts.transport, parts.compute, parts.probes, parts.signing)
        self.sender = Sender(machine.ctx.me, outwards, self.feed, self._spawn, clock, sign=parts.sign)
        self.averages = Averages(
            parts.compute, parts.average, self.feed, self._spawn, lambda report: parts.on_report(report, clock())
        )
        parts.signing.knows = lambda peer: machine.gate.known.is_known(peer)
        parts.signing.data_peers = lambda: machine.gate.known.data_peers
        self._stopped = False

    # ---- events in

    def feed(self, event: ev.Event) -> list[ef.Effect]:
        """Handle one event and carry out what follows; returns the effects, for answers."""
        if self._stopped:
            return []
        now = self.clock()
        if self.parts.fault is not None:
            self.parts.fault.on_event(event)
        try:
            effects = self._handle_or_drop(event, now)
            for effect in effects:
                self._carry_out(effect)
                if self.parts.fault is not None:
                    self.parts.fault.on_effect(effect)
        except Exception as error:  # our own bug: it ends the peer with its story, also where a library would swallow it
            if not self.failure.done():
                self.failure.set_exception(error)
            raise
        return effects

    def _handle_or_drop(self, event: ev.Event, now: float) -> list[ef.Effect]:
        """What a peer has sent ends nobody: if it cannot be handled it is dropped, and counts against its sender."""
        sender = self.machine.gate.sender_of(event)
        try:
            return self._handle(event, now)
        except Exception as error:  # a stranger chose what was handled: it must not be able to choose that this peer ends
            if sender is None:
                raise
            logger.exception("%s of %s could not be handled and is dropped", type(event).__name__, sender)
            return self._handle(ev.Misbehaved(sender, f"{type(event).__name__} could not be handled: {error!r:.200}"), now)

    def _handle(self, event: ev.Event, now: float) -> list[ef.Effect]:
        """Logged before anything is carried out."""
        effects: list[ef.Effect] = []
        raised = ""
        try:
            effects = self.machine.handle(event, now)
        except Exception as error:
            raised = repr(error)
            raise
        finally:
            if self.parts.log_event is not None:
                self.parts.log_event(event, now, effects, raised)
        return effects

    def view_changed(self, view: NetworkView) -> None:
        self.feed(ev.ViewChanged(view))

    def stop(self) -> None:
        """No more events or effects; running transfers are cancelled."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        self.parts.compute.close()

    # ---- the transport's handlers

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        message = self._read(sender, header, needs_payload=True)
        assert isinstance(message, (Forward, Backward))
        expected = self.parts.compute.payload_bytes(_slot_of(message))
        if payload_bytes != expected:
            return _reply(Verdict.REFUSED, f"payload: expected {expected} bytes, got {payload_bytes}")
        effects = self.feed(ev.Offered(sender, message))
        answer = next((effect for effect in effects if isinstance(effect, ef.Answer)), None)
        return _reply(answer.verdict, answer.detail) if answer else _reply(Verdict.BUSY, "not now")

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """Bytes that are no tensor, or one far too large, are as good as none: the sender is told REFUSED, and the microbatch
        goes another way."""
        message = _tensor_message(header)
        try:
            self.parts.compute.put(message.microbatch, _slot_of(message), payload, sender)
        except RemoteProtocolError as error:
            fields = {"sender": sender, "microbatch": str(message.microbatch), "reason": str(error)}
            self.parts.on_report(ef.Report("tensor_refused", fields), self.clock())
            self.feed(ev.DeliveryBroken(sender, message, str(error), refused=True))
            raise
        self.feed(ev.Delivered(sender, message))

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        self.feed(ev.DeliveryBroken(sender, _tensor_message(header), reason))

    def on_message(self, sender: PeerId, header: Header) -> Header:
        message = self._read(sender, header, needs_payload=False)
        assert not isinstance(message, (Forward, Backward))
        effects = self.feed(ev.Received(sender, message))
        if isinstance(message, Check):
            unknown = next((e.unknown for e in effects if isinstance(e, ef.AnswerCheck)), message.microbatches)
            known = set(message.microbatches) - set(unknown)
            return {"known": [message.microbatches.index(m) for m in sorted(known)]}
        return {}

    def _read(self, sender: PeerId, header: Header, needs_payload: bool) -> Message:
        """Raises RemoteProtocolError for what is no message, or one without what it needs; it counts against its sender."""
        try:
            message = self.parts.signing.read(sender, header)
            if isinstance(message, (Forward, Backward)) != needs_payload:
                raise RemoteProtocolError(f"{type(message).__name__} {'carries no' if needs_payload else 'needs a'} payload")
        except TooManyReceipts:
            raise  # this peer may not have heard of all data peers: whoever sent it sends it again
        except RemoteProtocolError as error:
            self.feed(ev.Misbehaved(sender, str(error)))
            raise
        return message

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        self.feed(ev.WatchBroken(peer, reason))

    # ---- effects out

    def _carry_out(self, effect: ef.Effect) -> None:
        match effect:
            case ef.Push():
                self.sender.push(effect)
            case ef.CancelPush(token):
                self.sender.cancel(token)
            case ef.Send(to, message):
                self.sender.send(to, message)
            case ef.Ask():
                self._spawn(self.sender.ask(effect))
            case ef.Compute():
                self._spawn(self._compute(effect))
            case ef.DropActivations(microbatch):
                self.parts.compute.drop_activations(microbatch)
            case ef.StartTimer(name, delay_s):
                self._start_timer(name, delay_s)
            case ef.CancelTimer(name):
                if (timer := self._timers.pop(name, None)) is not None:
                    timer.cancel()
            case ef.Watch(peer):
                self.parts.transport.watch(peer)
            case ef.Unwatch(peer):
                self.parts.transport.unwatch(peer)
            case ef.Average(prepare):
                self.averages.start(prepare)
            case ef.CancelAverage(iteration, attempt):
                self.averages.cancel((iteration, attempt))
            case ef.Step():
                self.averages.step(effect)
            case ef.Download():
                self._start_download(effect)
            case ef.Discard(microbatch):
                self.sender.forget(microbatch)
                self.parts.compute.discard(microbatch)
            case ef.Plan(request):
                self._spawn(self._plan(request))
            case ef.Checkpoint():
                self.parts.save(effect, lambda of, reason: self.feed(ev.Checkpointed(of, reason)))
            case ef.End():
                self.parts.on_end()
            case ef.MoveTo(stage):
                self.parts.on_move(stage)
            case ef.Publish():
                self.parts.publish()
            case ef.Bar(peer, seconds):
                self.parts.transport.bar(peer, seconds)
            case ef.Sign() | ef.Digest() | ef.Gather() | ef.DropGathered():
                assert self.parts.audits is not None, "only peers that can sign take part in audits"
                self._spawn(self.parts.audits.carry_out(effect, self.feed))
            case ef.Report():
                self.parts.on_report(effect, self.clock())
            case ef.Answer() | ef.AnswerCheck():
                pass  # read by whoever fed the event
            case _:
                assert_never(effect)

    async def _compute(self, compute: ef.Compute) -> None:
        work, microbatch = compute.work, compute.microbatch
        if work is ev.Work.AUDIT and self.parts.audits is not None:
            self.feed(await self.parts.audits.compare(microbatch))
            return
        if self.parts.before is not None:
            await self.parts.before(work)
        worked = await self.parts.compute.work(work, microbatch, compute.keeps)
        self.feed(ev.Computed(work, microbatch, worked.seconds, worked.loss, worked.again_s, worked.finite))

    async def _plan(self, request: PlanRequest) -> None:
        """In a thread: planning takes longer than other events can wait."""
        self.feed(ev.Planned(await asyncio.to_thread(self.make_plan, request)))

    def _start_download(self, download: ef.Download) -> None:
        if self._download_task is not None:
            self._download_task.cancel()
        self.averages.drop_before(download.version)
        self._download_task = self._spawn(self._download(download))

    async def _download(self, download: ef.Download) -> None:
        try:
            await self.parts.download(download, lambda: self.feed(ev.WeightsDownloaded(download.version)))
        except (StateUnavailable, RemoteProtocolError) as error:
            self.feed(ev.DownloadFailed(str(error)))
            return
        self.feed(ev.Downloaded(download.version, await state_digest(self.parts.compute)))

    def _start_timer(self, name: ev.TimerName, delay_s: float) -> None:
        old = self._timers.pop(name, None)
        if old is not None:
            old.cancel()

        def fire() -> None:
            del self._timers[name]
            self.feed(ev.TimerFired(name))

        self._timers[name] = asyncio.get_running_loop().call_later(delay_s, fire)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        """Task boundary: an exception here is our own bug, and ends the peer with its story rather than hanging it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            self.failure.set_exception(error)


def _tensor_message(header: Header) -> TensorMessage:
    message: Message = from_header(header)
    if not isinstance(message, (Forward, Backward)):
        raise RemoteProtocolError(f"{type(message).__name__} carries no payload")
    return message


def _slot_of(message: TensorMessage) -> ev.Slot:
    """Where a delivered tensor belongs."""
    return ev.Slot.INPUT if isinstance(message, Forward) else ev.Slot.OUTPUT_GRADIENT


def _reply(verdict: Verdict, detail: str) -> Header:
    return {"accepted": verdict is Verdict.ACCEPTED, "verdict": verdict.value, "detail": detail}
