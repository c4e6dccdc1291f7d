"""Are the arms the same training? Their losses at equal tokens, against each other and against one process alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gwtf_p2p.ab.trials.result import LIVE, RunResult

ALLOWED = 1e-3


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Largest differences of an iteration's mean loss. `control`: None when there is none to compare with."""

    between_arms: float
    control: float | None
    runs: int
    control_runs: int

    def __str__(self) -> str:
        told = f"largest difference between arms at equal tokens {self.between_arms:.1e} ({self.runs} runs)"
        if self.control is None:
            return f"{told}; not compared with a single process"
        judged = "under" if max(self.between_arms, self.control) < ALLOWED else "NOT under"
        return f"{told}, to the single process {self.control:.1e} ({self.control_runs} runs); {judged} {ALLOWED:g}"


def equivalence(results: Sequence[RunResult], controls: dict[str, tuple[float, ...]]) -> Equivalence | None:
    """`controls` by `settings/seed`. None without live losses."""
    live = [r for r in results if r.backend == LIVE and r.losses]
    groups: dict[tuple[str, int], list[RunResult]] = {}
    for run in live:
        groups.setdefault((run.scenario, run.seed), []).append(run)
    if not groups:
        return None
    between = max(_spread([run.losses for run in runs]) for runs in groups.values())
    known = [(run.losses, controls[key]) for run in live if (key := f"{run.settings}/{run.seed}") in controls]
    control = max((_spread([own, alone]) for own, alone in known), default=None)
    return Equivalence(between, control, len(live), len(known))


def _spread(curves: Sequence[Sequence[float]]) -> float:
    length = min(len(curve) for curve in curves)
    return max(max(c[i] for c in curves) - min(c[i] for c in curves) for i in range(length))
