"""Faults on purpose: a peer that crashes or freezes itself at a named moment of an iteration.

Only tests and `gwtf demo --churn` give a peer a fault. The peer is killed (SIGKILL) or stopped (SIGSTOP) by its own hand, so
the moment is exact; what follows is as real as any crash. A fault that fires says so first; whoever scripted it checks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.wire.messages import Backward, Forward

MOMENTS = (
    "forward_received",
    "forward_sent",
    "loss_returned",
    "backward_received",
    "backward_sent",
    "averaging",
)
"""`loss_returned`: the gradient from the loss (or the next stage) is offered, before its bytes have come."""

REPLACING = "replacing"
"""A microbatch arrives that was handed on before: this peer takes the place of a lost one."""

ALL_MOMENTS = (*MOMENTS, REPLACING)

ACTIONS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Fault:
    """`action` at the first `moment` in that iteration (counted from 0).

    Of several peers whose faults name the same `token` file, only the first that gets there breaks down.
    """

    action: str
    moment: str
    iteration: int
    token: Path | None = None

    def is_first(self) -> bool:
        if self.token is None:
            return True
        try:
            self.token.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class FaultTrigger:
    """Looks at every event and effect of a peer until one of its faults fires: of those that another peer has got to first,
    nothing comes. `announce` must have gone out when it returns."""

    def __init__(self, faults: Sequence[Fault], announce: Callable[[dict[str, Any]], None]) -> None:
        self._faults, self._announce = list(faults), announce
        self._pushes: dict[int, Forward | Backward] = {}

    def on_event(self, event: ev.Event) -> None:
        """Before the state machine handles it."""
        match event:
            case ev.Delivered(_, Forward() as message):
                if message.attempt[-1] > 0:
                    self._reached(REPLACING, message.microbatch.iteration)
                self._reached("forward_received", message.microbatch.iteration)
            case ev.Delivered(_, Backward() as message):
                self._reached("backward_received", message.microbatch.iteration)
            case ev.Offered(_, Backward() as message):
                self._reached("loss_returned", message.microbatch.iteration)
            case ev.PushDelivered(token) if token in self._pushes:
                sent = self._pushes.pop(token)
                moment = "forward_sent" if isinstance(sent, Forward) else "backward_sent"
                self._reached(moment, sent.microbatch.iteration)
            case _:
                pass

    def on_effect(self, effect: ef.Effect) -> None:
        """Before it is carried out, except that an average has begun."""
        if isinstance(effect, ef.Push):
            self._pushes[effect.token] = effect.message
        elif isinstance(effect, ef.Average):
            self._reached("averaging", effect.prepare.iteration)

    def _reached(self, moment: str, iteration: int) -> None:
        for fault in [each for each in self._faults if (each.moment, each.iteration) == (moment, iteration)]:
            self._faults.remove(fault)
            if fault.is_first():
                self._announce({"name": "fault", "action": fault.action, "moment": moment, "iteration": iteration})
                os.kill(os.getpid(), ACTIONS[fault.action])
