"""How long to wait for the next peer: to take a microbatch, to hand it on, and to bring its gradient back.

Every wait has a deadline from measured times. One that was too short for a living peer is doubled, but not without end: a
question costs little. A transfer that was cut short is begun anew, so it must get there, and its deadline grows further.
"""

from __future__ import annotations

from typing import Literal

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held
from gwtf_p2p.protocol.events import Timer

PUSH_PRIOR_S = 2.0
WAIT_PRIOR_S = 2.0
"""How long to wait before asking while nothing is measured. A question costs a small message, so these are no time-outs."""

MOST_DOUBLINGS = 2
MOST_PUSH_DOUBLINGS = 6

WAITS = (Timer.PUSH, Timer.COMPLETE, Timer.BACKWARD)


class Waits:
    """Of one peer, for the peers of the next stage."""

    def __init__(self, context: Context) -> None:
        self.ctx = context

    def for_push(self, held: Held) -> None:
        """For the next peer to have all of it."""
        deadline_s = self.ctx.timings.deadline_s(("push", held.successor), PUSH_PRIOR_S)
        self.ctx.start_timer(Timer.PUSH, held.name, deadline_s * 2.0 ** min(held.asked, MOST_PUSH_DOUBLINGS))

    def for_answer(self, held: Held, what: Literal[Timer.COMPLETE, Timer.BACKWARD]) -> None:
        """For `Complete` of the next peer, then for the gradient."""
        if not held.asked:
            held.wait_from(self.ctx.now)
        key = ("complete", held.successor) if what is Timer.COMPLETE else ("backward",)
        deadline_s = self.ctx.timings.deadline_s(key, WAIT_PRIOR_S)
        self.ctx.start_timer(what, held.name, deadline_s * 2 ** min(held.asked, MOST_DOUBLINGS))

    def end(self, held: Held) -> None:
        """Nothing is waited for."""
        for what in WAITS:
            self.ctx.cancel_timer(what, held.name)

    def recovered(self, held: Held) -> None:
        """It moves on; if the peer that had it fell silent, this is how long that has cost."""
        ctx = self.ctx
        if held.lost_at is not None:
            ctx.timings.observe(("recovery",), ctx.now - held.lost_at)
            ctx.report("recovered", microbatch=held.name, seconds=ctx.now - held.lost_at)
            held.found()
