"""What follows from results: does an auditor agree with a worker, and who is alone when two auditors have looked.

Results of honest peers differ by rounding: how much depends on what they compute in. Between two of float32 it is the last
bits; if either computes in bfloat16, it is a thousand times more. So the tolerance is that of the coarser of the two, for
outputs and for gradients, as a share of what the stage *changes*: a stage adds little to what it gets, and a peer that hands on
its input would look right beside the whole of it.
"""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.audit_messages import Finding
from gwtf_p2p.protocol.wire.run_parts import ToleranceSpec

MOST_DIFFERENCE = 1e30
"""Stands for a difference that is not finite, which has no form on the wire."""


def difference(found: float) -> float:
    """As it travels."""
    return found if 0.0 <= found <= MOST_DIFFERENCE else MOST_DIFFERENCE


def agrees(output: float, gradient: float, precisions: tuple[str, str], tolerance: ToleranceSpec) -> bool:
    """The worker's precision and the auditor's; one that is not known counts as the coarsest."""
    fine = all(precision == "float32" for precision in precisions)
    most = tolerance.float32 if fine else tolerance.bfloat16
    most_gradient = tolerance.float32_gradients if fine else tolerance.bfloat16_gradients
    return output <= most and gradient <= most_gradient


def loser(first: Finding, second: Finding) -> PeerId | None:
    """Who is alone against two: the worker, or an auditor with whom neither worker nor the other auditor agrees.

    None when nobody is, or when the findings are not about the same bytes, or not by two peers beside the worker.
    """
    testimony = first.testimony
    same = (testimony.hop, testimony.digests) == (second.hop, second.testimony.digests)
    if not same or len({first.auditor, second.auditor, testimony.hop.worker}) < 3:
        return None
    if first.agrees and second.agrees:
        return None
    if not first.agrees and not second.agrees:
        return testimony.hop.worker
    return second.auditor if first.agrees else first.auditor
