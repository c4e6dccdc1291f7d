"""Drives the state machine of one stage peer by hand: events in, effects out, no network, no clock, no tensors.

A swarm of one stage: the data peer `ann` hands a microbatch to `bob`, who computes it and sends it back home. Run it with
`python -m examples.one_machine`; every line is an event and what the machine wants done about it.
"""

from __future__ import annotations

from examples.toy_router import FastestRouter
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, RunId, Stage
from gwtf_p2p.protocol.peer.factory import PeerSettings, compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeerConfig
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Backward, Forward, Verdict
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

ANN, BOB, FIRST = PeerId("ann"), PeerId("bob"), Stage(1)


def story() -> list[tuple[ev.Event, list[ef.Effect]]]:
    """What happens to one microbatch at one stage peer, and what the machine answered each time."""
    bob = compose(PeerSettings(BOB, FIRST, stages=1, router=None, stage_peer=StagePeerConfig(capacity=4)), FastestRouter())
    told: list[tuple[ev.Event, list[ef.Effect]]] = []

    def feed(event: ev.Event) -> list[ef.Effect]:
        effects = bob.handle(event, now=0.1 * len(told))
        told.append((event, effects))
        return effects

    microbatch = MicrobatchId(ANN, iteration=0, index=0)
    feed(ev.Started())
    feed(ev.ViewChanged(NetworkView.of([], stages=1, microbatch_bytes=1024)))  # nobody is ahead of it: it serves at once
    ann = StageRecord(ANN, RunId("example"), DATA_STAGE, PeerState.ONLINE, capacity=4)
    feed(ev.ViewChanged(NetworkView.of([ann], stages=1, microbatch_bytes=1024)))  # from whom it has no record it takes nothing
    there = Forward(microbatch, attempt=(1, 0), stage=FIRST)
    feed(ev.Offered(ANN, there))
    feed(ev.Delivered(ANN, there))
    home = next(e for e in feed(ev.Computed(ev.Work.FORWARD, microbatch, seconds=0.05)) if isinstance(e, ef.Push))
    feed(ev.PushAnswered(home.token, Verdict.ACCEPTED))
    feed(ev.PushDelivered(home.token, seconds=0.01))
    back = Backward(microbatch, home.message.attempt, FIRST)
    feed(ev.Offered(ANN, back))
    feed(ev.Delivered(ANN, back))
    feed(ev.Computed(ev.Work.BACKWARD, microbatch, seconds=0.1))
    return told


if __name__ == "__main__":
    for event, effects in story():
        print(event)
        for effect in effects:
            print("    ", effect)
