"""How many bytes a run has sent, by what they were for. Pure: reports in, figures out.

Kinds: `activations` and `gradients` between stages, `averages` within them, `state` (downloads and copies of checkpoints),
`records` (what peers have published in the DHT and read from it; what the DHT itself adds is not counted), `control` (small
messages, headers and frames of everything, measurements of lines).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOLD = ("bytes", "arrived", "arrived_bytes", "direct")
"""What a report holds: bytes sent, and number and bytes of the transfers that arrived, each by kind; and the bytes of payloads
that went over direct streams."""

KINDS = ("activations", "gradients", "averages", "state", "records", "control")


@dataclass
class TrafficFigures:
    """Of one run; what a peer sent before it started again counts too, as far as it has told."""

    _now: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    _earlier: dict[str, Counter[str]] = field(default_factory=lambda: {what: Counter() for what in TOLD})

    def hear(self, peer: str, report: Mapping[str, Any]) -> None:
        """A `figures` report holds everything since the peer's start; `started` begins a new count."""
        if report["name"] == "started":
            for what, counts in self._now.pop(peer, {}).items():
                self._earlier[what].update(counts)
        elif report["name"] == "figures" and "bytes" in report:
            self._now[peer] = {what: Counter({k: int(n) for k, n in report.get(what, {}).items()}) for what in TOLD}

    def _total(self, what: str) -> Counter[str]:
        return sum((counts[what] for counts in self._now.values()), self._earlier[what])

    @property
    def totals(self) -> dict[str, int]:
        """Bytes by kind, over all peers."""
        total = self._total("bytes")
        return {kind: total[kind] for kind in KINDS}

    @property
    def per_hop(self) -> int | None:
        """Mean bytes of a microbatch over one hop, forwards and back; None before there were both."""
        arrived, sizes = self._total("arrived"), self._total("arrived_bytes")
        if not arrived["activations"] or not arrived["gradients"]:
            return None
        return round(sum(sizes[kind] / arrived[kind] for kind in ("activations", "gradients")))

    def plain(self) -> dict[str, int | None]:
        """For the JSON summary."""
        return {"per_hop": self.per_hop, **self.totals, "direct": self._total("direct")["payloads"]}

    def lines(self) -> list[str]:
        """The same for people."""
        if self.per_hop is None:
            return []
        parts = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in self.totals.items())
        return [f"MB sent: {parts}; {self.per_hop / 1e3:.1f} kB for a microbatch over a hop, both ways"]
