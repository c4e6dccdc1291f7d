"""A stage is held within the memory that is allowed, or is not taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.view.memory_plan import PROCESS_BYTES, StageMemory, memory_plan

SIZES = st.integers(0, 1 << 30)


@given(st.builds(StageMemory, st.just(1), SIZES, SIZES, SIZES, st.integers(1, 1 << 20)), st.integers(1, 64), SIZES, SIZES)
def test_what_is_planned_stays_within_what_is_allowed(stage: StageMemory, capacity: int, more: int, most_kept: int) -> None:
    allowed = PROCESS_BYTES + more
    plan = memory_plan(stage, capacity, allowed, most_kept)
    assert (plan is None) == (allowed < stage.least)
    if plan is None:
        return
    assert 1 <= plan.capacity <= capacity
    assert stage.needed(0) + plan.capacity * stage.activations + plan.kept_bytes <= allowed
    assert plan.kept_bytes <= most_kept or not most_kept
    assert most_kept or plan.kept_bytes >= plan.capacity * stage.microbatch, "the tensors of those that are computed fit, too"
    assert plan.capacity == capacity or stage.needed(plan.capacity + 1) > allowed, "no fewer than fit"
