"""What one peer has computed, and how much of it entered a committed gradient. The rest was for nothing."""

from __future__ import annotations

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.events import Computed
from gwtf_p2p.protocol.wire.messages import Prepare


class Accounts:
    """Seconds since the program started. `useful_s` counts what is credited in committed iterations."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.computed_s = 0.0
        self.useful_s = 0.0
        self._computed_before_s = 0.0

    @property
    def uncommitted_s(self) -> float:
        """Computed since the last step, and for it ahead of that: what a crash now would take with it."""
        return self.computed_s - self._computed_before_s

    def computed(self, event: Computed) -> None:
        """Times are kept under ("compute", work); a forward that was computed again is no part of its backward's."""
        self.computed_s += event.seconds
        self.ctx.timings.observe(("compute", event.work.value), event.seconds - event.again_s)

    def stepped(self, preparing: Prepare, skipped: bool) -> None:
        """The iteration is committed; to be called while its microbatches are still held. What was computed for a step that is
        skipped was for nothing."""
        ctx = self.ctx
        credited = preparing.share_of(ctx.me)
        counts = not skipped and ctx.me not in preparing.left_out
        useful = sum(held.computed_s for m, held in ctx.held.items() if m in credited) if counts else 0.0
        self.useful_s += useful
        later_s = sum(held.computed_s for m, held in ctx.held.items() if m.iteration > preparing.iteration)
        spent = self.uncommitted_s - later_s
        self._computed_before_s = self.computed_s - later_s
        ctx.report(
            "stepped",
            iteration=preparing.iteration,
            microbatches=len(credited),
            of=preparing.total,
            loss=None if skipped else preparing.mean_loss,
            skipped=skipped,
            skipped_for=list(preparing.skipped_for),
            left_out=list(preparing.left_out),
            different=len({m for share in preparing.shares for m in share.microbatches}),
            useful_s=useful,
            wasted_s=spent - useful,
            computed_s=self.computed_s,
            hop_s=ctx.timings.median_s(("hop",)),
        )
