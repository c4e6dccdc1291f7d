"""Who may send what: one table, asked before any handler, in the simulator as in the live swarm.

The sender's id comes from the transport, which has authenticated it. What a sender is, `acquaintance` says. Peers *before* a
stage peer are those of the stage before it (data peers before stage 1), *after* it those of the stage after it; before a data
peer is the last stage, after it stage 1. What concerns one microbatch comes from its own data peer where it comes from a data
peer at all.

A message that is not allowed costs its sender a strike (`core/bars`), unless it may be honest: from somebody whose record has
not got here yet, or about what has changed meanwhile. Such a message is as good as lost, and senders repeat those that matter;
an offer is answered BUSY.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Any

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.trust.fitness import unfit
from gwtf_p2p.protocol.wire import audit_messages as audit
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire import negotiation_messages as neg


class Who(Enum):
    """What a sender has to be."""

    ANYBODY = auto()
    """It asks, or says of itself what concerns nobody else."""
    MEMBER = auto()
    """Known to hold some stage."""
    NEWCOMER = auto()
    """Anybody who says that it has just come; of others, whoever is known to hold the stage that it says."""
    DATA_PEER = auto()
    OWNER = auto()
    """The data peer of the microbatch."""
    BEFORE = auto()
    AFTER = auto()
    BESIDE = auto()
    """Of the same stage."""
    LEADER = auto()
    """A data peer, and the one that the message names as its coordinator."""
    PARTICIPANT = auto()
    """Of the attempt that this peer leads."""


_TALKS = (Who.BEFORE, Who.AFTER, Who.BESIDE)
"""Ends of flows change hands, and whoever has handed one over passes on what still comes about it."""

MAY_SEND: Mapping[type[Any], tuple[Who, ...]] = MappingProxyType(
    {
        msg.Forward: (Who.BEFORE,),
        msg.Backward: (Who.AFTER,),
        msg.Complete: (Who.AFTER,),
        msg.CapacityAvailable: (Who.AFTER,),
        msg.Done: (Who.MEMBER,),
        msg.Superseded: (Who.BEFORE, Who.AFTER, Who.OWNER),
        msg.Check: (Who.ANYBODY,),
        msg.Redo: (Who.OWNER, Who.BEFORE),
        msg.Missing: (Who.MEMBER,),
        msg.Finished: (Who.DATA_PEER,),
        msg.Prepare: (Who.LEADER,),
        msg.Prepared: (Who.PARTICIPANT,),
        msg.NotPrepared: (Who.PARTICIPANT,),
        msg.Abort: (Who.DATA_PEER,),
        msg.Commit: (Who.DATA_PEER,),
        msg.Inquire: (Who.ANYBODY,),
        msg.Standing: (Who.NEWCOMER,),
        msg.Admit: (Who.DATA_PEER,),
        msg.Lost: (Who.MEMBER,),
        audit.Testify: (Who.OWNER,),
        audit.Testimony: (Who.MEMBER,),
        audit.AuditOrder: (Who.OWNER,),
        audit.AuditResult: (Who.MEMBER,),
        audit.Conviction: (Who.MEMBER,),
        neg.RequestFlow: _TALKS,
        neg.FlowAnswer: _TALKS,
        neg.CancelFlow: _TALKS,
        neg.UpstreamIs: _TALKS,
        neg.PathIs: _TALKS,
        neg.PathLost: _TALKS,
        neg.RequestChange: (Who.BESIDE,),
        neg.ChangeAnswer: (Who.BESIDE,),
        neg.RequestRedirect: (Who.BESIDE,),
        neg.RedirectAnswer: (Who.BESIDE,),
        neg.CheckFlows: (Who.BEFORE, Who.AFTER),
        neg.UnknownFlows: (Who.BEFORE, Who.AFTER),
    }
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message is not heard. `breach`: no honest peer sends this, whatever it knows. `stranger`: its sender is unknown.
    `is_final`: nothing else of this sender is heard either."""

    reason: str
    breach: bool
    stranger: bool = False
    is_final: bool = False


class Authorisation:
    """Of one peer."""

    def __init__(self, context: Context, known: Acquaintances) -> None:
        self.ctx, self.known = context, known

    def refusal(self, sender: PeerId, message: msg.Message, led: Callable[[], Mapping[PeerId, Stage]]) -> Refusal | None:
        """None when the sender may say this here; a peer may say anything to itself. `led`: the participants of the attempt
        that this peer leads."""
        if sender == self.ctx.me or self._is_misdirected(message):
            return None
        who = MAY_SEND[type(message)]
        if not any(self._is(sender, each, message, led) for each in who):
            stranger = not self.known.is_known(sender)
            kind = type(message).__name__
            if Who.PARTICIPANT in who and not stranger:
                return Refusal(f"{kind} from no participant", breach=False)  # of an attempt that has ended
            names = " or ".join(each.name for each in who)
            # A record may be late, or a peer have moved to another stage; but who leads has been known for an iteration.
            breach = bool({*who} & {Who.LEADER, Who.DATA_PEER, Who.PARTICIPANT})
            return Refusal(f"{kind}: expected {names}", breach, stranger)
        wrong = unfit(self.ctx, self.known, sender, message)
        return Refusal(f"{type(message).__name__}: {wrong.what}", wrong.breach) if wrong is not None else None

    def _is_misdirected(self, message: msg.Message) -> bool:
        """An offer for another stage than this peer's, which may have moved: its handler says so."""
        ctx = self.ctx
        match message:
            case msg.Forward(stage=stage):
                return stage != (ctx.stage or ctx.stages + 1)
            case msg.Backward(stage=stage):
                return stage != ctx.stage
        return False

    def _is(self, sender: PeerId, who: Who, message: msg.Message, led: Callable[[], Mapping[PeerId, Stage]]) -> bool:
        known, ctx = self.known, self.ctx
        match who:
            case Who.ANYBODY:
                return True
            case Who.MEMBER:
                return known.is_known(sender)
            case Who.NEWCOMER:
                assert isinstance(message, msg.Standing)
                return message.joining or known.holds(sender, {message.stage})
            case Who.DATA_PEER:
                return known.holds(sender, {DATA_STAGE})
            case Who.OWNER:
                return known.holds(sender, {DATA_STAGE}) and _microbatch_of(message).data_peer == sender
            case Who.BEFORE:
                stage = ctx.stages if ctx.stage == DATA_STAGE else ctx.stage - 1
                return self._neighbour(sender, stage, message)
            case Who.AFTER:
                return self._neighbour(sender, 0 if ctx.stage == ctx.stages else ctx.stage + 1, message)
            case Who.BESIDE:
                return known.holds(sender, {ctx.stage})
            case Who.LEADER:
                assert isinstance(message, msg.Prepare)
                return message.coordinator == sender and known.holds(sender, {DATA_STAGE})
            case Who.PARTICIPANT:
                return sender in led()

    def _neighbour(self, sender: PeerId, stage: int, message: msg.Message) -> bool:
        if not self.known.holds(sender, {stage}):
            return False
        microbatch = getattr(message, "microbatch", None)
        return stage != DATA_STAGE or microbatch is None or microbatch.data_peer == sender


def _microbatch_of(message: msg.Message) -> MicrobatchId:
    microbatch = getattr(message, "microbatch", None)
    assert isinstance(microbatch, MicrobatchId), "only what is about one microbatch has an owner"
    return microbatch
