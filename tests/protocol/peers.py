"""Peers driven by hand: events in, effects out. The one place where the tests of the core compose a machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, RunId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer, DataPeerConfig
from gwtf_p2p.protocol.peer.factory import PeerSettings, compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeer, StagePeerConfig
from gwtf_p2p.protocol.transfer.receipts import credited
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.receipts import Receipt, ReceiptLine
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

M = TypeVar("M")
E = TypeVar("E")

D, D2, D3 = PeerId("data_0"), PeerId("data_1"), PeerId("data_2")
A, A2 = PeerId("one_0"), PeerId("one_1")
B, B2 = PeerId("two_0"), PeerId("two_1")
C, C2 = PeerId("three_0"), PeerId("three_1")
"""Data peers, and two peers in each of the stages 1, 2 and 3."""

STAGE_OF = {D: 0, D2: 0, D3: 0, A: 1, A2: 1, B: 2, B2: 2, C: 3, C2: 3}


def microbatch(index: int = 0, iteration: int = 0, of: PeerId = D) -> MicrobatchId:
    return MicrobatchId(of, iteration, index)


def record(peer: PeerId, state: PeerState = PeerState.ONLINE, **fields: Any) -> StageRecord:
    stage = fields.pop("stage") if "stage" in fields else STAGE_OF[peer]
    return StageRecord(peer, RunId("r"), Stage(stage), state, 4, **fields)


def view(records: Iterable[StageRecord | PeerId], stages: int = 3) -> NetworkView:
    """Of records, or of peers that are ONLINE at version 0."""
    return NetworkView.of([r if isinstance(r, StageRecord) else record(r) for r in records], stages, 1_000_000)


@dataclass
class FirstFree:
    """Routes to the first peer of each stage that is not excluded; `hops` is what it was told."""

    peers: Sequence[PeerId]
    hops: list[HopObservation] = field(default_factory=list)
    ended: list[MicrobatchId] = field(default_factory=list)

    def observe_view(self, view: NetworkView, now: float) -> None:
        pass

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        self.hops.append(hop)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self.ended.append(microbatch)

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        found = []
        for stage in range(request.first_stage, request.last_stage + 1):
            able = [p for p in self.peers if STAGE_OF[p] == stage and p not in request.excluding]
            if not able:
                return NoRoute(f"nobody in stage {stage}")
            found.append(able[0])
        return Route(tuple(found), "the first")


class Introduced(Acquaintances):
    """Also knows the peers of these tests without their records: a test says only which records matter to it."""

    def _without_record(self, peer: PeerId) -> set[Stage]:
        return super()._without_record(peer) | ({Stage(STAGE_OF[peer])} if peer in STAGE_OF else set())


class Driven:
    """One machine, its clock and its armed timers; `out` are the effects of the last event, `log` those of all."""

    def __init__(self, machine: StagePeer | DataPeer, router: FirstFree) -> None:
        self.machine, self.router = machine, router
        machine.know(Introduced(machine.ctx, machine.participant, machine.known.roster))
        self.now = 100.0
        self.hears_itself = False
        self.computing: ef.Compute | None = None
        self.out: list[ef.Effect] = []
        self.log: list[ef.Effect] = []
        self.timers: dict[ev.TimerName, float] = {}

    @property
    def me(self) -> PeerId:
        return self.machine.ctx.me

    def handle(self, event: ev.Event, after_s: float = 0.0) -> list[ef.Effect]:
        """What a machine tells itself arrives at once where `hears_itself`, and its effects count as those of this event."""
        self.now += after_s
        self.out = self._handle(event)
        told = 0
        while self.hears_itself and told < len(self.out):
            effect = self.out[told]
            if isinstance(effect, ef.Send) and effect.to == self.me:
                self.out = self.out + self._handle(ev.Received(self.me, effect.message))
            told += 1
        return self.out

    def _handle(self, event: ev.Event) -> list[ef.Effect]:
        if isinstance(event, ev.Computed):
            self.computing = None
        out = self.machine.handle(event, self.now)
        self.log.extend(out)
        for effect in out:
            if isinstance(effect, ef.StartTimer):
                self.timers[effect.name] = self.now + effect.delay_s
            elif isinstance(effect, ef.CancelTimer):
                self.timers.pop(effect.name, None)
            elif isinstance(effect, ef.Compute):
                self.computing = effect
        return out

    def hears(self, sender: PeerId, message: msg.ControlMessage) -> list[ef.Effect]:
        return self.handle(ev.Received(sender, message))

    def fires(self, what: ev.Timer, of: object = "") -> list[ef.Effect]:
        """The timer is armed, and its time has come."""
        name = (what, str(of))
        due = self.timers.pop(name)
        self.now = max(self.now, due)
        return self.handle(ev.TimerFired(name))

    def is_armed(self, what: ev.Timer, of: object = "") -> bool:
        return (what, str(of)) in self.timers

    def sees(self, records: Iterable[StageRecord | PeerId]) -> list[ef.Effect]:
        return self.handle(ev.ViewChanged(view(records, self.machine.ctx.stages)))

    # ---- what it did

    def sent(self, kind: type[M], to: PeerId | None = None) -> list[M]:
        """Messages of this kind that the last event made it send."""
        found = [e for e in self.out if isinstance(e, ef.Send) and (to is None or e.to == to)]
        return [e.message for e in found if isinstance(e.message, kind)]

    def sent_to(self, kind: type[Any]) -> list[PeerId]:
        return [e.to for e in self.out if isinstance(e, ef.Send) and isinstance(e.message, kind)]

    def did(self, kind: type[E]) -> list[E]:
        """Effects of this kind of the last event."""
        return [e for e in self.out if isinstance(e, kind)]

    def reported(self, name: str) -> list[dict[str, Any]]:
        return [dict(e.fields) for e in self.out if isinstance(e, ef.Report) and e.name == name]

    def verdict(self) -> tuple[msg.Verdict, str]:
        [answer] = self.did(ef.Answer)
        return answer.verdict, answer.detail

    def pushed(self) -> ef.Push:
        [push] = self.did(ef.Push)
        return push

    def last_push(self, m: MicrobatchId) -> ef.Push | None:
        return next((e for e in reversed(self.log) if isinstance(e, ef.Push) and e.message.microbatch == m), None)

    def loses(self, peer: PeerId) -> list[ef.Effect]:
        """Its connection broke, and it does not answer the question that follows."""
        self.handle(ev.WatchBroken(peer, "reset"))
        return self.handle(ev.CheckFailed(peer, "refused", silent=False))

    def computes(self, work: ev.Work, m: MicrobatchId, loss: float | None = None) -> list[ef.Effect]:
        return self.handle(ev.Computed(work, m, 0.5, loss), after_s=0.5)

    def is_accepted(self, push: ef.Push) -> None:
        self.handle(ev.PushAnswered(push.token, msg.Verdict.ACCEPTED))
        self.handle(ev.PushDelivered(push.token, 0.1), after_s=0.1)


class DrivenStagePeer(Driven):
    """A stage peer, and what a microbatch goes through there, step by step."""

    def takes(self, m: MicrobatchId, sender: PeerId, attempt: msg.Attempt, ahead: tuple[PeerId, ...] = ()) -> None:
        """The input has arrived and its forward runs."""
        forward = msg.Forward(m, attempt, self.machine.ctx.stage, ahead, self.machine.ctx.epoch)
        self.handle(ev.Offered(sender, forward))
        assert self.verdict()[0] is msg.Verdict.ACCEPTED, self.verdict()
        self.handle(ev.Delivered(sender, forward))

    def hands_on(self, m: MicrobatchId, sender: PeerId, attempt: msg.Attempt, ahead: tuple[PeerId, ...] = ()) -> ef.Push:
        """The forward is done and the output is on its way."""
        self.takes(m, sender, attempt, ahead)
        self.computes(ev.Work.FORWARD, m)
        return self.pushed()

    def gets_gradient(self, m: MicrobatchId, sender: PeerId, attempt: msg.Attempt, done_by: tuple[PeerId, ...]) -> None:
        backward = msg.Backward(m, attempt, self.machine.ctx.stage, done_by)
        self.handle(ev.Offered(sender, backward))
        assert self.verdict()[0] is msg.Verdict.ACCEPTED, self.verdict()
        self.handle(ev.Delivered(sender, backward))

    def finishes(self, m: MicrobatchId, sender: PeerId, attempt: msg.Attempt, done_by: tuple[PeerId, ...]) -> ef.Push:
        """The gradient has come and the backward is done; returns the push of the input gradient."""
        self.gets_gradient(m, sender, attempt, done_by)
        self.computes(ev.Work.BACKWARD, m)
        return self.pushed()


P = TypeVar("P", bound=Driven)


def stage_peer(
    me: PeerId = A,
    stages: int = 3,
    capacity: int = 4,
    *,
    exact: bool = True,
    limit: int = 0,
    microbatches: int = 0,
    peers: Sequence[PeerId] = tuple(STAGE_OF),
) -> DrivenStagePeer:
    """A stage peer whose program has not started. `limit`: so many microbatches fit into its memory."""
    router = FirstFree(peers)
    own = StagePeerConfig(capacity)
    settings = PeerSettings(
        me=me,
        stage=Stage(STAGE_OF[me]),
        stages=stages,
        router=None,
        exact=exact,
        done_bytes=1,
        memory_limit_bytes=limit,
        stage_peer=own,
        microbatches=microbatches,
    )
    return DrivenStagePeer(compose(settings, router), router)


def data_peer(
    me: PeerId = D,
    stages: int = 3,
    microbatches: int = 2,
    data_peers: int = 1,
    *,
    exact: bool = True,
    peers: Sequence[PeerId] = tuple(STAGE_OF),
) -> Driven:
    """A data peer whose program has not started."""
    router = FirstFree(peers)
    own = DataPeerConfig(microbatches, data_peers)
    settings = PeerSettings(me, DATA_STAGE, stages, None, exact, data_peer=own)
    return Driven(compose(settings, router), router)


def online(driven: P, others: Iterable[StageRecord | PeerId] = (), version: int = 0) -> P:
    """Started; if no data peer but itself is seen, it is ONLINE at once."""
    driven.handle(ev.Started(version, incarnation=7))
    driven.sees([record(driven.me, weights_version=version), *others])
    return driven


def leading(*records: StageRecord | PeerId, version: int = 0, **how: Any) -> Driven:
    """A data peer that leads an iteration of two stages with A and B in them; it hears itself."""
    driven = data_peer(stages=2, **how)
    driven.hears_itself = True
    return online(driven, records or (A, B), version)


def goes_round(driven: Driven, m: MicrobatchId, line: tuple[PeerId, ...], attempt: msg.Attempt = (7, 0, 0, 0)) -> None:
    """A data peer's microbatch goes down this line and back, and is done."""
    stages = driven.machine.ctx.stages
    while driven.last_push(m) is None:
        assert driven.computing is not None
        driven.computes(driven.computing.work, driven.computing.microbatch, loss=2.0)
    push = driven.last_push(m)
    assert push is not None
    driven.is_accepted(push)
    result = msg.Forward(m, attempt[: stages + 2], Stage(stages + 1))
    driven.handle(ev.Offered(line[-1], result))
    driven.handle(ev.Delivered(line[-1], result))
    while driven.last_push(m) == push:
        assert driven.computing is not None
        driven.computes(driven.computing.work, driven.computing.microbatch, loss=2.0)
    push = driven.last_push(m)
    assert push is not None
    driven.is_accepted(push)
    back = msg.Backward(m, attempt[:2], DATA_STAGE, line)
    driven.handle(ev.Offered(line[0], back))
    driven.handle(ev.Delivered(line[0], back))
    driven.computes(ev.Work.FINISH, m)


def receipt_of(data_peer: PeerId, ledger: tuple[msg.Credit, ...], iteration: int = 0) -> Receipt:
    """What this data peer signs for, with no times."""
    counts = credited(data_peer, ledger)
    return Receipt(data_peer, iteration, 0, tuple(ReceiptLine(*place, n) for place, n in sorted(counts.items())))


def all_answer(driven: Driven, **changes: Any) -> None:
    """Everybody else whom the coordinator has just asked stands at its iteration with its promise. `changes` by peer."""
    asked = {e.to: e.message for e in driven.out if isinstance(e, ef.Send) and isinstance(e.message, msg.Inquire)}
    for peer, inquire in sorted(asked.items()):
        if peer != driven.me:
            promised = msg.Ballot(inquire.attempt, driven.me)
            own = {"promised": promised, **changes.get(peer, {})}
            version = own.pop("version", inquire.iteration)
            driven.hears(peer, msg.Standing(Stage(STAGE_OF[peer]), version, **own))


def in_step(me: PeerId = A, iteration: int = 0, leader: PeerId = D, **how: Any) -> DrivenStagePeer:
    """A stage peer that takes part in this iteration, admitted by `leader`."""
    driven = stage_peer(me, **how)
    driven.handle(ev.Started(iteration, incarnation=7))
    driven.sees([record(leader, weights_version=iteration), record(me, PeerState.JOINING, weights_version=iteration)])
    driven.hears(leader, msg.Admit(iteration, data_peers=(leader,)))
    assert driven.machine.state is PeerState.ONLINE
    return driven
