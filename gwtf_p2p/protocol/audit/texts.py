"""The texts that are signed: each names its kind and everything that it says, so that a signature counts for nothing else.

Whoever signs and checks puts the run's name before them (`effects.Sign`).
"""

from __future__ import annotations

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.audit_messages import Finding, Testimony


def draw_text(epoch: int, microbatch: MicrobatchId) -> str:
    """Of the data peer: draws which stages' work on this microbatch is done again."""
    return f"draw {epoch} {_name(microbatch)}"


def testimony_text(testimony: Testimony) -> str:
    """Of the worker."""
    hop, digests = testimony.hop, testimony.digests
    peers = f"{hop.worker} {hop.before} {hop.after}"
    tensors = f"{digests.input} {digests.output} {digests.output_gradient} {digests.input_gradient}"
    return f"testimony {hop.epoch} {_name(hop.microbatch)} {hop.stage} {peers} {tensors}"


def finding_text(finding: Finding) -> str:
    """Of the auditor, about what the worker has testified."""
    said = f"{finding.auditor} {finding.agrees} {finding.output!r} {finding.gradient!r}"
    return f"finding {said} of {testimony_text(finding.testimony)}"


def _name(microbatch: MicrobatchId) -> str:
    return f"{PeerId(microbatch.data_peer)}/{microbatch.iteration}/{microbatch.index}"
