"""What a peer's record says of its device."""

from __future__ import annotations

from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.peer.own_record import PASSED_OVER, OwnMeasurements, stage_record
from gwtf_p2p.protocol.wire.records import StageRecord
from tests.protocol.peers import A, B, D, Driven, in_step, record


def told(driven: Driven) -> StageRecord:
    return stage_record(driven.machine, OwnMeasurements(RunId("r")), 1)


def others_do(driven: Driven, iterations: int) -> None:
    """Without this peer, which is online."""
    driven.machine.participant.progress.version += iterations


def test_a_time_that_its_start_has_measured_is_not_told_for_good() -> None:
    """Measured in a crowd it is ten times too long: nobody gave such a peer any work, and so it was never measured again."""
    driven = in_step()
    driven.machine.measured({Work.FORWARD: 9.0, Work.BACKWARD: 9.0})
    driven.now += 3600.0
    driven.sees([record(D), record(A), record(B)])
    assert told(driven).forward_s == 9.0 and told(driven).backward_s == 9.0, "others are still waited for"
    others_do(driven, PASSED_OVER)
    assert told(driven).forward is None and told(driven).backward is None
    driven.machine.ctx.timings.observe(("compute", Work.FORWARD.value), 0.5)
    assert told(driven).forward_s == 0.5 and told(driven).backward is None


def test_what_was_measured_at_work_stays() -> None:
    driven = in_step()
    driven.machine.ctx.timings.observe(("compute", Work.FORWARD.value), 0.5)
    others_do(driven, 100)
    assert told(driven).forward_s == 0.5
