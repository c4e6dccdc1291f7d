"""A stage is held within the memory that is allowed, or is not taken."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.view.memory_plan import PROCESS_BYTES, StageMemory, memory_plan

SIZES = st.integers(0, 1 << 30)


STAGES = st.builds(StageMemory, st.just(1), SIZES, SIZES, SIZES, st.integers(1, 1 << 20), st.booleans())


@given(STAGES, st.integers(1, 64), SIZES, SIZES)
def test_what_is_planned_stays_within_what_is_allowed(stage: StageMemory, capacity: int, more: int, most_kept: int) -> None:
    allowed = PROCESS_BYTES + more
    plan = memory_plan(stage, capacity, allowed, most_kept)
    assert (plan is None) == (allowed < stage.least)
    if plan is None:
        return
    assert 1 <= plan.capacity <= capacity
    assert stage.needed(0) + stage.activations_of(plan.capacity) + plan.kept_bytes <= allowed
    assert plan.kept_bytes <= most_kept or not most_kept
    assert most_kept or plan.kept_bytes >= plan.capacity * stage.microbatch, "the tensors of those that are computed fit, too"
    assert plan.capacity == capacity or stage.needed(plan.capacity + 1) > allowed, "no fewer than fit"


def test_a_stage_that_recomputes_has_the_activations_of_one_microbatch_at_a_time() -> None:
    keeps = StageMemory(1, 1000, 100, 50, 7)
    again = replace(keeps, recomputes=True)
    assert again.least == keeps.least == PROCESS_BYTES + 1157
    assert keeps.needed(4) - again.needed(4) == 3 * 50
    allowed = PROCESS_BYTES + 1157 + 21
    one, other = memory_plan(keeps, 4, allowed), memory_plan(again, 4, allowed)
    assert one is not None and other is not None and (one.capacity, other.capacity) == (1, 4)
