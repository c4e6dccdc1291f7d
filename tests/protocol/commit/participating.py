"""A participant in the stage between two others, and what is asked of it."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from tests.protocol.peers import A2, D2, A, B, C, D, Driven, DrivenStagePeer, in_step, microbatch

M0, M1 = microbatch(0), microbatch(1)


def prepare(attempt: int = 1, by: PeerId = D, share: tuple[MicrobatchId, ...] = (), **changes: object) -> msg.Prepare:
    shares = (msg.Share(A, share), msg.Share(A2, ()))
    fields: dict[str, object] = {"iteration": 0, "data_peers": (D,), **changes}
    return msg.Prepare(attempt=attempt, coordinator=by, stage=Stage(1), shares=shares, **fields)  # type: ignore[arg-type]


def prepared(driven: Driven, message: msg.Prepare, digest: str = "bytes") -> None:
    """It takes part in the attempt and its average is ready."""
    driven.hears(message.coordinator, message)
    assert driven.did(ef.Average) == [ef.Average(message)]
    driven.handle(ev.AverageDone(message.iteration, message.attempt, digest, 0.1))
    assert driven.sent(msg.Prepared, message.coordinator)


def counted(*microbatches: MicrobatchId) -> DrivenStagePeer:
    """A peer of stage 1 that has done these microbatches."""
    driven = in_step()
    for m in microbatches:
        driven.is_accepted(driven.hands_on(m, D, (7, 0), (B, C)))
        driven.is_accepted(driven.finishes(m, B, (7, 0, 0), (B, C)))
    return driven


def standing(driven: Driven, asker: PeerId = D2) -> msg.Standing:
    driven.hears(asker, msg.Inquire(0))
    [told] = driven.sent(msg.Standing, asker)
    return told
