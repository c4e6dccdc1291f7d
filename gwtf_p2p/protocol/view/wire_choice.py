"""`wire = "auto"`: in which formats a run's tensors travel, decided once, when it is published, from the lines that are stated.

The record says what was decided, so all peers agree. The slowest line decides, since every hop over it waits for it: from
1.25 GB/s (10 Gbit/s) on nothing is rounded, from 125 MB/s on values go as 16 bits, below as blockwise 8 bits, which cost no
loss that could be seen (`experiments/wire_loss`). Where no line is stated, volunteers' home lines are meant. A subspace and
int4 are for people to choose: they change the model, or its loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from gwtf_p2p.protocol.wire.run_parts import WireSpec

_STEPS = (
    (1.25e9, WireSpec("float32", "float32", "float32")),
    (1.25e8, WireSpec("bfloat16", "bfloat16", "float16")),
    (0.0, WireSpec("int8", "int8", "int8")),
)
_MEGABIT = 125_000


def chosen_wire(lines_bytes_per_s: Sequence[float]) -> tuple[WireSpec, str]:
    """The formats, and why; lines of 0 or less are not known."""
    known = [line for line in lines_bytes_per_s if line > 0]
    slowest = min(known, default=0.0)
    wire = next(spec for least, spec in _STEPS if slowest >= least)
    what = f"the slowest line that is stated carries {slowest / _MEGABIT:.6g} Mbit/s" if known else "no line is stated"
    return wire, f"{wire.activations}, averages {wire.averages}: {what}"
