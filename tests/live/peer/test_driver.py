"""What the driver does with tensors of strangers, and with own ones that cannot be sent."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.compute.audit_work import AuditWork
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.receipt_signing import ReceiptSigning
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.peer.assembly import Place, make_compute, peer_settings
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.driver import Driver, DriverParts
from gwtf_p2p.live.rpc.api import DataPlane
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.peer.factory import compose
from gwtf_p2p.protocol.wire.messages import Backward, Check, Forward, to_header
from gwtf_p2p.protocol.wire.records import WireSpec
from gwtf_p2p.training.compute.values import all_of

ME, SENDER = PeerId("me"), PeerId("sender")
MICROBATCH = MicrobatchId(PeerId("data"), 0, 0)
OTHER = MicrobatchId(PeerId("data"), 0, 1)
FORWARD, BACKWARD = Forward(MICROBATCH, (1, 1), Stage(1)), Backward(MICROBATCH, (1, 1), Stage(1), (SENDER,))
RUN = dataclasses.replace(SmallRun().record(), wire=WireSpec("int4", "int8"))
SHAPE = (RUN.microbatch_size, RUN.sequence_length, 128)


@dataclasses.dataclass
class Driven:
    """A driver of stage 1 and the events that it was fed."""

    driver: Driver
    events: list[ev.Event]


@pytest.fixture
async def driven(tmp_path: Path) -> AsyncIterator[Driven]:
    events: list[ev.Event] = []
    config, place = PeerConfig("peer"), Place(Stage(1))
    nothing = cast(Any, None)
    compute = make_compute(config, RUN, place)
    parts = DriverParts(
        compute=compute,
        audits=AuditWork(cast(DataPlane, SimpleNamespace(add_service=lambda kind, service: None)), compute, str.upper),
        transport=nothing,
        average=nothing,
        download=nothing,
        publish=lambda: None,
        on_move=lambda stage: None,
        on_end=nothing,
        save=nothing,
        on_report=lambda report, now: None,
        probes=LinkProbes(lambda: 0.0),
        signing=ReceiptSigning(create_identity(tmp_path / "identity.key"), RUN.run_id),
        log_event=lambda event, *_: events.append(event),
    )
    driver = Driver(compose(peer_settings(config, RUN, place, ME)), parts, clock=lambda: 0.0)
    yield Driven(driver, events)
    driver.stop()


async def test_each_direction_has_its_own_size(driven: Driven) -> None:
    driver = driven.driver
    assert RUN.activation_bytes < RUN.gradient_bytes
    for message, wrong in ((FORWARD, RUN.gradient_bytes), (BACKWARD, RUN.activation_bytes), (FORWARD, 0)):
        reply = driver.on_offer(SENDER, to_header(message), wrong)
        assert (reply["accepted"], reply["verdict"]) == (False, "REFUSED")
        assert f"got {wrong}" in reply["detail"]
    assert not driven.events, "what has the wrong size never reaches the protocol"
    assert "bytes" not in driver.on_offer(SENDER, to_header(FORWARD), RUN.activation_bytes)["detail"]


@pytest.mark.parametrize("message", [FORWARD, BACKWARD])
async def test_bytes_that_are_no_tensor_are_refused_and_as_good_as_lost(driven: Driven, message: Forward | Backward) -> None:
    driver, size = driven.driver, RUN.activation_bytes if isinstance(message, Forward) else RUN.gradient_bytes
    with pytest.raises(RemoteProtocolError, match="scale out of range"):
        driver.on_delivery(SENDER, to_header(message), memoryview(bytearray(b"\xff" * size)))
    [event] = driven.events
    assert isinstance(event, ev.DeliveryBroken) and event.sender == SENDER
    assert driver.parts.compute.store.held_bytes == 0
    assert not driver.failure.done()


async def test_what_audits_ask_for_is_done(driven: Driven) -> None:
    compute = driven.driver.parts.compute
    for slot in ev.Slot:
        codec = compute.codecs.activations if slot in (ev.Slot.INPUT, ev.Slot.OUTPUT) else compute.codecs.gradients
        compute.put(MICROBATCH, slot, codec.encode(torch.ones(SHAPE)))
    for effect in (ef.Sign("draw", "text"), ef.Digest(MICROBATCH), ef.Digest(OTHER), ef.DropGathered(MICROBATCH)):
        driven.driver._carry_out(effect)
    await asyncio.gather(*driven.driver._tasks)
    found = {type(event).__name__: event for event in driven.events if event != ev.Digested(OTHER, None)}
    assert ev.Digested(OTHER, None) in driven.events and found["Signed"] == ev.Signed("draw", "TEXT")
    digested = found["Digested"]
    assert isinstance(digested, ev.Digested) and digested.digests is not None and len(digested.digests.input) == 64


async def test_tensors_are_kept_as_they_travel(driven: Driven) -> None:
    compute = driven.driver.parts.compute
    compute.put(MICROBATCH, ev.Slot.INPUT, compute.codecs.activations.encode(torch.randn(SHAPE)))
    await compute.work(ev.Work.FORWARD, MICROBATCH)
    assert compute.store.held_bytes == 2 * RUN.activation_bytes
    compute.put(MICROBATCH, ev.Slot.OUTPUT_GRADIENT, compute.codecs.gradients.encode(torch.randn(SHAPE)))
    await compute.work(ev.Work.BACKWARD, MICROBATCH)
    assert compute.store.held_bytes == 2 * RUN.activation_bytes + 2 * RUN.gradient_bytes
    assert compute.store.held_bytes == driven.driver.machine.ctx.done_bytes


async def test_a_tensor_that_is_computed_again_has_the_same_bytes(driven: Driven) -> None:
    compute = driven.driver.parts.compute
    compute.put(MICROBATCH, ev.Slot.INPUT, compute.codecs.activations.encode(torch.randn(SHAPE)))
    outputs = []
    for _ in range(2):
        await compute.work(ev.Work.FORWARD, MICROBATCH)
        outputs.append(bytes(compute.payload(MICROBATCH, ev.Slot.OUTPUT)))
    assert outputs[0] == outputs[1] and len(outputs[0]) == RUN.activation_bytes


async def test_a_rollback_may_throw_away_what_waits_for_the_compute_thread(driven: Driven) -> None:
    compute, hold = driven.driver.parts.compute, threading.Event()
    compute.put(MICROBATCH, ev.Slot.INPUT, compute.codecs.activations.encode(torch.randn(SHAPE)))
    await compute.work(ev.Work.FORWARD, MICROBATCH)
    compute.put(MICROBATCH, ev.Slot.OUTPUT_GRADIENT, compute.codecs.gradients.encode(torch.randn(SHAPE)))
    busy = asyncio.ensure_future(compute.in_thread(hold.wait))
    backward = asyncio.ensure_future(compute.work(ev.Work.BACKWARD, MICROBATCH))
    await asyncio.sleep(0)  # the backward is in the queue of the thread
    compute.discard(MICROBATCH)
    hold.set()
    await busy
    assert (await backward).seconds == 0.0
    assert compute.store.held_bytes == 0 and not compute.executor.counted


async def test_what_is_missing_though_nobody_threw_it_away_is_our_bug(driven: Driven) -> None:
    with pytest.raises(KeyError):
        await driven.driver.parts.compute.work(ev.Work.FORWARD, MICROBATCH)


async def test_a_message_that_cannot_be_handled_is_dropped_and_counts_against_its_sender(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driven.driver

    def fails(*_: object) -> None:
        raise ZeroDivisionError("as a bug would")

    monkeypatch.setattr(driver.machine, "_received", fails)
    monkeypatch.setattr(driver.machine.known, "is_known", lambda peer: True)
    driver.on_message(SENDER, to_header(Check(())))
    assert not driver.failure.done()
    assert [type(event) for event in driven.events] == [ev.Received, ev.Misbehaved]
    with pytest.raises(RemoteProtocolError):
        driver.on_message(SENDER, {"kind": "Commit", "iteration": -1})
    assert isinstance(driven.events[-1], ev.Misbehaved) and "iteration" in driven.events[-1].reason


async def test_what_the_peer_itself_cannot_handle_ends_it_with_its_story(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("as a bug would")

    monkeypatch.setattr(driven.driver.machine, "_settle", fails)
    with pytest.raises(ZeroDivisionError):
        driven.driver.feed(ev.DrainRequested())
    assert isinstance(driven.driver.failure.exception(), ZeroDivisionError)


async def test_zeros_stand_for_an_own_result_that_is_not_finite_which_is_said(driven: Driven) -> None:
    compute = driven.driver.parts.compute
    for parameter in compute.executor.part.parameters.values():
        parameter.data.fill_(float("inf"))
    compute.put(MICROBATCH, ev.Slot.INPUT, compute.codecs.activations.encode(torch.randn(SHAPE)))
    assert not (await compute.work(ev.Work.FORWARD, MICROBATCH)).finite
    sent = compute.codecs.activations.decode(compute.payload(MICROBATCH, ev.Slot.OUTPUT), SHAPE)
    assert not sent.any(), "nobody else is to find it, and be blamed"
    compute.put(MICROBATCH, ev.Slot.OUTPUT_GRADIENT, compute.codecs.gradients.encode(torch.randn(SHAPE)))
    assert not (await compute.work(ev.Work.BACKWARD, MICROBATCH)).finite
    assert all(not tensor.any() for tensor in all_of(await compute.mean_gradient(0)).values())
