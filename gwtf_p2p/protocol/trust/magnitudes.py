"""How large a tensor of another peer may be: within `FACTOR` of what is usual for its kind. Of parts of averages, see `parts`.

What is usual is the median of each sender's last `WINDOW` tensors of that kind, and of these medians the lower middle one: one
sender among several cannot move it, whatever it sends. What is refused counts in its sender's median too. So growth in which
all senders take part moves the bound along, and a sender that is the only one is refused for half a window at most: a bound
never stops a run. Zeros (first gradients behind layers that begin at zero) say nothing of what is usual.

`FACTOR` is far above what training does: in `tests/training/test_magnitudes.py`, where a learning rate 300 times too high lets
gradients vanish and other data brings them back, the most was 312 times the usual. It is there against a peer that multiplies,
not to judge how well a run goes. Who is named is who has sent the tensor. That peer may have computed honestly from what a
third had sent, so it is not struck, and all else is taken from it as before.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from statistics import median_low

from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import PeerId

FACTOR = 10_000.0
WINDOW = 32
"""Tensors of one sender and kind: of a few iterations."""

LEAST = 16
"""Tensors of a kind before any is refused."""

MOST_SENDERS = 64
"""Remembered of each kind; whoever has sent last stays."""


class Magnitudes:
    """Of one peer. A kind is a slot (activations at the boundary before it, gradients at the one after it), or the name of
    another thing that has sizes."""

    def __init__(self) -> None:
        self._seen: dict[Slot | str, OrderedDict[PeerId, deque[float]]] = {}

    def refusal(self, kind: Slot | str, sender: PeerId, size: float) -> str:
        """Why a tensor whose values have this root mean square is not taken; empty if it is. It counts in either case."""
        usual = self.usual(kind)
        self.note(kind, sender, size)
        if usual is None or size <= FACTOR * usual:
            return ""
        return f"tensor: its values are {size / usual:.0f} times as large as usual, expected at most {FACTOR:.0f} times"

    def usual(self, kind: Slot | str, middle: Callable[[Iterable[float]], float] = median_low) -> float | None:
        """The root mean square that is usual; None while too little has come. `middle`: of the senders' medians."""
        senders = self._seen.get(kind, OrderedDict())
        if sum(map(len, senders.values())) < LEAST:
            return None
        return float(middle(median_low(sizes) for sizes in senders.values()))

    def note(self, kind: Slot | str, sender: PeerId, size: float) -> None:
        """What it has sent, taken or not."""
        if size <= 0:
            return
        senders = self._seen.setdefault(kind, OrderedDict())
        sizes = senders.setdefault(sender, deque(maxlen=WINDOW))
        senders.move_to_end(sender)
        sizes.append(size)
        if len(senders) > MOST_SENDERS:
            senders.popitem(last=False)
