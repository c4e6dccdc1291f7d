"""Compares the arms in a file of `run`: paired by seed, median and 95 % interval.

    python -m experiments.compare results.jsonl --baseline swarm*

Arms are compared with all arms that fit the same memory: activations kept up to the capacity (limited, strict), recomputed, or
both (adaptive). Only "unlimited" is apart. For each scenario the baseline is the arm of least median iteration among those
that match (so SWARM is given its best; that the choice is made on the same seeds is in its favour). A ratio is an arm's mean
iteration over the baseline's of the same seed: below 1 is faster. The interval is the percentile bootstrap of the median over
the seeds, 10,000 draws, fixed seed. Prints a Markdown table with the commit and the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

from gwtf_p2p.ab.report.statistics import FEWEST_SEEDS, interval

__all__ = ["compare", "interval", "main", "markdown"]

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm against the baseline in one scenario; ratios are paired by seed. `over_clairvoyant`: its iteration over what the
    stage peers that it could count on would have taken at least, known in advance; None where lines do not say."""

    scenario: str
    arm: str
    baseline: str
    seeds: tuple[int, ...]
    iteration_s: float
    ratio: float
    low: float
    high: float
    of_bound: float
    over_clairvoyant: float | None
    waste: float
    lost: int
    double_counted: int
    cpu_ratio: float


def group(line: Line) -> str:
    """What is compared with each other: the scenario, and those with unlimited memory apart."""
    return str(line["scenario"]) + (" (unlimited)" if line["memory"] == "unlimited" else "")


def compare(lines: Sequence[Line], baseline: str) -> list[Comparison]:
    """Raises ValueError when no arm of a scenario matches the baseline."""
    by_scenario: dict[str, dict[str, dict[int, Line]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        by_scenario[group(line)][line["arm"]][line["seed"]] = line
    found: list[Comparison] = []
    for scenario, arms in sorted(by_scenario.items()):
        able = [arm for arm in arms if fnmatch(arm, baseline)]
        if not able:
            raise ValueError(f"{scenario}: no arm matches {baseline!r}, there are {', '.join(sorted(arms))}")
        best = min(able, key=lambda arm: median(line["mean_iteration_seconds"] for line in arms[arm].values()))
        found += [_one(scenario, arm, best, arms) for arm in sorted(arms, key=lambda a: (a != best, a))]
    return found


def _one(scenario: str, arm: str, best: str, arms: dict[str, dict[int, Line]]) -> Comparison:
    seeds = tuple(sorted(set(arms[arm]) & set(arms[best])))
    if not seeds:
        raise ValueError(f"{scenario}: {arm} and {best} have no seed in common")
    mine = [arms[arm][seed] for seed in seeds]
    ratios = [line["mean_iteration_seconds"] / arms[best][line["seed"]]["mean_iteration_seconds"] for line in mine]
    low, high = interval(ratios)
    return Comparison(
        scenario=scenario,
        arm=arm,
        baseline=best,
        seeds=seeds,
        iteration_s=median(line["mean_iteration_seconds"] for line in mine),
        ratio=median(ratios),
        low=low,
        high=high,
        of_bound=median(line["bound_iteration_seconds"] / line["mean_iteration_seconds"] for line in mine),
        over_clairvoyant=_over_clairvoyant(mine),
        waste=median(line["wasted_compute_fraction"] for line in mine),
        lost=sum(line["microbatches_lost"] for line in mine),
        double_counted=sum(line["double_counted"] for line in mine),
        cpu_ratio=median(line["virtual_seconds"] / line["cpu_seconds"] for line in mine),
    )


def _over_clairvoyant(lines: Sequence[Line]) -> float | None:
    known = [line for line in lines if line.get("mean_clairvoyant_seconds")]
    return median(line["mean_iteration_seconds"] / line["mean_clairvoyant_seconds"] for line in known) if known else None


def _span(c: Comparison) -> str:
    """Nothing that two seeds would not bear."""
    return f"{c.low:.3f}-{c.high:.3f}" if len(c.seeds) >= FEWEST_SEEDS else "too few seeds"


def markdown(comparisons: Sequence[Comparison]) -> str:
    """One table; the first row of a scenario is its baseline."""
    rows = [
        "| scenario | arm | seeds | iteration s | over baseline | 95 % | bound / it | it / clairvoyant "
        "| waste | lost | twice | x real time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        clairvoyant = "" if c.over_clairvoyant is None else f"{c.over_clairvoyant:.2f}"
        name = f"**{c.arm}**" if c.arm == c.baseline else c.arm
        rows.append(
            f"| {c.scenario} | {name} | {len(c.seeds)} | {c.iteration_s:.2f} | {c.ratio:.3f} | {_span(c)} "
            f"| {c.of_bound:.2f} | {clairvoyant} | {c.waste:.1%} | {c.lost} | {c.double_counted} | {c.cpu_ratio:.0f} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--baseline", default="swarm*", help="arms among which the best is the baseline; * and ? match")
    flags = parser.parse_args(arguments)
    lines = [json.loads(line) for line in flags.results.read_text().splitlines()]
    try:
        comparisons = compare(lines, flags.baseline)
    except ValueError as error:
        print(f"{flags.results}: {error}", file=sys.stderr)
        return 2
    print(markdown(comparisons))
    commits = sorted({line["commit"] for line in lines})
    seeds = sorted({line["seed"] for line in lines})
    print(f"\ncommit {', '.join(commits)}; seeds {', '.join(map(str, seeds))}; paired by seed, bold: baseline")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
