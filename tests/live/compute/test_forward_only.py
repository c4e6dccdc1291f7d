"""Who is computed for: a stage peer's forwards for their result alone are for the run's data peers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gwtf_p2p.live.compute.forward_only import ANY_VERSION, ASK_KIND, ForwardOnly
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.protocol.wire.run_parts import BoundaryTensor
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.parts.spec import Boundaries
from tests.protocol.peers import A, B, D, in_step, record

STRANGER = PeerId("stranger")
BYTES = 64


class OneStage(StageExecutor):
    """Of a stage peer whose weights are of version 3."""

    def __init__(self) -> None:
        self.part: Any = SimpleNamespace(
            boundaries=Boundaries((BoundaryTensor("ids", (BYTES // 4,), is_integer=True),), ()), holds_head=False
        )


def answering() -> ForwardOnly:
    """One end, without a network."""
    rpc: Any = SimpleNamespace(add_service=lambda kind, service: None)
    compute: Any = SimpleNamespace(
        executor=OneStage(),
        codecs=SimpleNamespace(activations=codec_of("float32")),
        optimizer=SimpleNamespace(weights_version=3),
    )
    return ForwardOnly(rpc, compute)


@pytest.mark.parametrize(("sender", "accepted"), [(D, True), (B, False), (STRANGER, False)])
def test_only_data_peers_of_the_run_are_computed_for(sender: PeerId, accepted: bool) -> None:
    machine = in_step().machine
    forward = answering()
    header = {"kind": ASK_KIND, "ask": 0, "version": 3}
    assert not forward.on_offer(D, header, BYTES)["accepted"], "nobody before the state machine is asked"
    forward.may_ask = machine.gate.may_ask_forward_only
    assert forward.on_offer(sender, header, BYTES)["accepted"] is accepted


def test_logits_are_asked_of_whoever_has_the_head() -> None:
    forward = answering()
    forward.may_ask = lambda peer: True
    header = {"kind": ASK_KIND, "ask": 0, "version": 3, "logits": True}
    assert forward.on_offer(D, header, BYTES) == {"accepted": False, "reason": "has no head"}


def test_who_only_asks_is_computed_for_and_is_in_no_plan() -> None:
    driven, client = in_step(), PeerId("client")
    asking = record(client, PeerState.ASKING, stage=0)
    driven.sees([D, A, record(B), asking])
    view = driven.machine.ctx.view
    assert driven.machine.gate.may_ask_forward_only(client)
    assert view is not None and client in view.clients and client not in view.records
    assert view.data_peers == (D,) and not driven.machine.known.is_known(client)
    driven.sees([D, A, record(B)])
    assert not driven.machine.gate.may_ask_forward_only(client)


def test_a_forward_is_of_the_version_that_is_meant_or_of_whatever_is_there() -> None:
    forward = answering()
    forward.may_ask = lambda peer: True
    found = {v: forward.on_offer(D, {"kind": ASK_KIND, "ask": 0, "version": v}, BYTES) for v in (ANY_VERSION, 3, 2)}
    assert [found[v]["accepted"] for v in (ANY_VERSION, 3, 2)] == [True, True, False]
    assert not forward.on_offer(D, {"kind": ASK_KIND, "ask": 0}, BYTES)["accepted"], "no version is not any version"


def test_whoever_is_barred_is_computed_for_no_more() -> None:
    driven = in_step()
    driven.sees([D, A, record(B)])
    gate = driven.machine.gate
    assert gate.may_ask_forward_only(D)
    while driven.machine.ctx.bars.strike(D, driven.machine.ctx.now, False) is None:
        pass
    assert not gate.may_ask_forward_only(D)
