"""What took time in a world: computations, tensors on their way, averages. For whoever draws it."""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.measure.trace import Span
from gwtf_p2p.simulation.scenario.sizes import Sizes


class Spans:
    """`listener` hears of every span as it ends; without one none is made. `since` and `began` are in virtual seconds."""

    def __init__(self, kernel: Kernel, sizes: Sizes) -> None:
        self.listener: Callable[[Span], None] | None = None
        self._kernel, self._sizes = kernel, sizes

    def computed(self, peer: PeerId, work: Work, microbatch: MicrobatchId, began: float) -> None:
        if self.listener is not None:
            self.listener(Span(peer, work.value, str(microbatch), began, self._kernel.now))

    def pushed(self, sender: PeerId, push: ef.Push, began: float) -> None:
        """The tensor has arrived."""
        if self.listener is not None:
            what, about = type(push.message).__name__.lower(), str(push.message.microbatch)
            self.listener(Span(sender, what, about, began, self._kernel.now, push.to, self._sizes.of_push(push.message)))

    def averaged(self, participant: PeerId, prepare: Prepare, since: float) -> None:
        if self.listener is not None:
            self.listener(Span(participant, "average", f"iteration {prepare.iteration}", since, self._kernel.now))
