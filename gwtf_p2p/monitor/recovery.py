"""What crashes cost in a run: recoveries by kind, how long they took, seconds computed for nothing, bytes sent twice.

Pure: reports in, figures out. Reports carry `at`, the seconds of a clock that all peers of one machine share, so the delay of
a recovery runs from the very moment of the kill to the moment at which the microbatch moved on: the next peer has it.
A *hop* is what it takes a microbatch to get one stage further: transfer, queue and forward, as the peers measure it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Report = Mapping[str, Any]


@dataclass
class RecoveryFigures:
    """Of one run. `delays_s` are from the fault to the microbatch moving on, `missed_s` from when the lost peer was missed.

    `computed_s`, `resent_bytes` and `kept_bytes` are by peer (for one that started again: of all its lives).
    """

    kinds: Counter[str] = field(default_factory=Counter)
    delays_s: list[float] = field(default_factory=list)
    missed_s: list[float] = field(default_factory=list)
    hops_s: dict[str, float] = field(default_factory=dict)
    useful_by_iteration_s: dict[int, float] = field(default_factory=dict)
    most_kept_bytes: int = 0
    most_spilled_bytes: int = 0
    kept_bytes: dict[str, int] = field(default_factory=dict)
    resident_bytes: dict[str, int] = field(default_factory=dict)
    _computed_s: dict[str, float] = field(default_factory=dict)
    _resent_bytes: dict[str, int] = field(default_factory=dict)
    _earlier_computed_s: float = 0.0
    _earlier_resent_bytes: int = 0
    _fault_at: dict[str, float] = field(default_factory=dict)
    _lost: dict[tuple[str, str], str] = field(default_factory=dict)

    def hear(self, peer: str, report: Report, names: Mapping[str, str]) -> None:
        """`names` by peer id."""
        match report["name"]:
            case "fault":
                self._fault_at[peer] = float(report["at"])
                self._computed_s[peer] = max(self._computed_s.get(peer, 0.0), float(report.get("computed_s", 0.0)))
            case "started":
                self._earlier_computed_s += self._computed_s.pop(peer, 0.0)
                self._earlier_resent_bytes += self._resent_bytes.pop(peer, 0)
            case "online":
                self._fault_at.pop(peer, None)  # whoever misses it from now on does not miss it because of that fault
            case "recovery":
                self.kinds[str(report["kind"])] += 1
                lost = str(report["lost"])
                self._lost[peer, str(report["microbatch"])] = names.get(lost, lost)
            case "recovered":
                self._recovered(peer, report)
            case "stepped":
                iteration = int(report["iteration"])
                useful_s = self.useful_by_iteration_s.get(iteration, 0.0) + float(report["useful_s"])
                self.useful_by_iteration_s[iteration] = useful_s
                self._computed_s[peer] = max(self._computed_s.get(peer, 0.0), float(report["computed_s"]))
                if report.get("hop_s"):
                    self.hops_s[peer] = float(report["hop_s"])
            case "figures":
                self._computed_s[peer] = max(self._computed_s.get(peer, 0.0), float(report["computed_s"]))
                self._resent_bytes[peer] = int(report["resent_bytes"])
                self.kept_bytes[peer] = int(report["kept_bytes"])
                self.most_kept_bytes = max(self.most_kept_bytes, int(report["most_kept_bytes"]))
                self.most_spilled_bytes = max(self.most_spilled_bytes, int(report.get("spilled_bytes", 0)))
                self.resident_bytes[peer] = int(report["resident_bytes"])
            case "going_back":
                done_again = [i for i in self.useful_by_iteration_s if i >= int(report["version"])]
                for iteration in done_again:
                    del self.useful_by_iteration_s[iteration]
            case _:
                pass

    def _recovered(self, peer: str, report: Report) -> None:
        self.missed_s.append(float(report["seconds"]))
        fault_at = self._fault_at.get(self._lost.pop((peer, str(report["microbatch"])), ""))
        if fault_at is not None and "at" in report:
            self.delays_s.append(float(report["at"]) - fault_at)

    @property
    def computed_s(self) -> float:
        return self._earlier_computed_s + sum(self._computed_s.values())

    @property
    def useful_s(self) -> float:
        """Seconds computed for committed gradients."""
        return sum(self.useful_by_iteration_s.values())

    @property
    def wasted_s(self) -> float:
        """Seconds computed that entered no committed gradient; of a killed peer as far as it has told."""
        return max(0.0, self.computed_s - self.useful_s)

    @property
    def wasted_fraction(self) -> float:
        return self.wasted_s / self.computed_s if self.computed_s else 0.0

    @property
    def resent_bytes(self) -> int:
        """Bytes of tensors that a peer sent more than once."""
        return self._earlier_resent_bytes + sum(self._resent_bytes.values())

    @property
    def hop_s(self) -> float:
        """Median over the peers; 0.0 while nothing is measured."""
        return median(self.hops_s.values()) if self.hops_s else 0.0

    @property
    def delay_s(self) -> float | None:
        """Median; None when there was no recovery from a fault."""
        return median(self.delays_s) if self.delays_s else None

    @property
    def delay_hops(self) -> float | None:
        """The median delay in hops."""
        return self.delay_s / self.hop_s if self.delay_s is not None and self.hop_s else None

    def plain(self) -> dict[str, Any]:
        """For the JSON summary; times in milliseconds."""
        return {
            "delay_ms": None if self.delay_s is None else round(1000 * self.delay_s, 1),
            "delay_max_ms": round(1000 * max(self.delays_s), 1) if self.delays_s else None,
            "delay_count": len(self.delays_s),
            "hop_ms": round(1000 * self.hop_s, 1),
            "delay_hops": None if self.delay_hops is None else round(self.delay_hops, 2),
            "computed_s": round(self.computed_s, 3),
            "wasted_s": round(self.wasted_s, 3),
            "wasted_fraction": round(self.wasted_fraction, 4),
            "resent_bytes": self.resent_bytes,
            "most_kept_bytes": self.most_kept_bytes,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        said = [f"computed {self.computed_s:.1f} s, {self.wasted_s:.1f} s of it for nothing ({self.wasted_fraction:.1%})"]
        if self.delay_s is not None:
            hops = f", {self.delay_hops:.1f} hops" if self.delay_hops is not None else ""
            said.append(
                f"from a fault to the microbatch moving on: median {1000 * self.delay_s:.0f} ms{hops} "
                f"(a hop takes {1000 * self.hop_s:.0f} ms), longest {1000 * max(self.delays_s):.0f} ms, "
                f"of {len(self.delays_s)}"
            )
        if self.most_kept_bytes:
            said.append(
                f"{self.resent_bytes / 1e6:.1f} MB sent twice, at most {self.most_kept_bytes / 1e6:.1f} MB kept by a peer"
            )
        return said
