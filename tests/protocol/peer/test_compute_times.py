"""What a peer's record says of its device."""

from __future__ import annotations

from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.peer.own_record import GUESS_STANDS_S, OwnMeasurements, stage_record
from gwtf_p2p.protocol.wire.records import StageRecord
from tests.protocol.peers import A, B, D, Driven, in_step, record


def told(driven: Driven) -> StageRecord:
    return stage_record(driven.machine, OwnMeasurements(RunId("r")), 1)


def later(driven: Driven, seconds: float) -> None:
    driven.now += seconds
    driven.sees([record(D), record(A), record(B)])


def test_a_time_that_its_start_has_measured_is_not_told_for_good() -> None:
    """Measured in a crowd it is ten times too long: nobody gave such a peer any work, and so it was never measured again."""
    driven = in_step()
    driven.machine.measured({Work.FORWARD: 9.0, Work.BACKWARD: 9.0})
    later(driven, GUESS_STANDS_S / 2)
    assert told(driven).forward_s == 9.0 and told(driven).backward_s == 9.0
    later(driven, GUESS_STANDS_S)
    assert told(driven).forward is None and told(driven).backward is None
    driven.machine.ctx.timings.observe(("compute", Work.FORWARD.value), 0.5)
    later(driven, 1.0)
    assert told(driven).forward_s == 0.5 and told(driven).backward is None


def test_what_was_measured_at_work_stays() -> None:
    driven = in_step()
    driven.machine.ctx.timings.observe(("compute", Work.FORWARD.value), 0.5)
    later(driven, 100 * GUESS_STANDS_S)
    assert told(driven).forward_s == 0.5
