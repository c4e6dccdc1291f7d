"""The report's tables: what each arm took, what it cost, and how far the simulator is from the live swarm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, median

from gwtf_p2p.ab.report.document import Table
from gwtf_p2p.ab.report.statistics import ArmSummary, Estimate
from gwtf_p2p.ab.trials.result import LIVE, SIM, TOLD_BY_PEERS, RunResult

KILO, MEGA = 1e3, 1e6


def main_table(summaries: Sequence[ArmSummary]) -> Table:
    """Iteration time, its ratio over the best SWARM, throughput; the baseline is bold."""
    head = (
        "scenario", "arm", "seeds", "iteration, s", "interval", "over best SWARM", "interval", "microbatches/s", "tokens/s",
        "bound over iteration", "wasted computing", "lost", "counted twice",
    )  # fmt: skip
    rows, bold = [], set()
    for number, s in enumerate(summaries):
        if s.arm == s.baseline:
            bold.add(number)
        rows.append(
            (
                s.scenario,
                s.arm,
                str(len(s.runs)),
                f"{s.iteration_s.middle:.2f}",
                _span(s.iteration_s, 2),
                f"{s.ratio.middle:.3f}" if s.ratio else "",
                _span(s.ratio, 3) if s.ratio else "",
                f"{s.middle(lambda r: r.microbatches_per_s):.3f}",
                f"{s.middle(lambda r: r.tokens_per_s):.1f}",
                f"{s.middle(lambda r: r.bound_iteration_s / r.mean_iteration_s):.2f}",
                f"{s.middle(lambda r: r.wasted_compute_fraction):.1%}",
                str(sum(r.microbatches_lost for r in s.runs)),
                str(sum(r.double_counted for r in s.runs)),
            )
        )
    return Table(head, tuple(rows), bold=frozenset(bold), links=_links(summaries))


def _links(summaries: Sequence[ArmSummary]) -> tuple[str, ...]:
    """Each row to the lines that it is made of."""
    return tuple(anchor_of(s.backend, s.scenario, s.arm) for s in summaries)


def anchor_of(backend: str, scenario: str, arm: str) -> str:
    """Where the report shows the lines of an arm."""
    return "raw-" + re.sub(r"[^A-Za-z0-9]+", "-", f"{backend} {scenario} {arm}")


def cost_table(summaries: Sequence[ArmSummary]) -> Table:
    """Per iteration, medians over the seeds: what travelled, what was said, what planning took; and the recoveries."""
    head = (
        "scenario", "arm", "MB per iteration", "busiest path, MB per iteration", "messages per iteration",
        "planning, ms per iteration", "crashes", "recoveries: forward, backward, averaging", "a recovery, s", "moves",
    )  # fmt: skip
    return Table(head, tuple(_cost_row(s) for s in summaries), links=_links(summaries))


KINDS = {"activations": "forward", "gradients": "backward", "averages": "average", "state": "state_chunk"}
"""What is sent, by the names that runs count it under; the rest of what is charged to the lines are probes and audits."""

REST = "everything else"


def bytes_table(summaries: Sequence[ArmSummary], per_microbatch: bool) -> Table:
    """What travelled for each microbatch that was committed, in kB, or in each iteration, in MB, by kind; medians over the
    seeds. What a backend does not count is left empty."""
    unit = "kB per microbatch" if per_microbatch else "MB per iteration"
    head = ("scenario", "arm", *(f"{kind}, {unit}" for kind in (*KINDS, REST, *TOLD_BY_PEERS)))
    return Table(head, tuple(_bytes_row(s, per_microbatch) for s in summaries), links=_links(summaries))


def _bytes_row(s: ArmSummary, per_microbatch: bool) -> tuple[str, ...]:
    def of(kind: str, run: RunResult) -> float:
        size = run.bytes_by_kind.get(kind, 0) / max(1, len(run.iteration_s))
        return size / run.microbatches_per_iteration / KILO if per_microbatch else size / MEGA

    def rest(run: RunResult) -> float:
        return of("all", run) - sum(of(kind, run) for kind in KINDS.values())

    charged = [s.middle(lambda r, k=kind: of(k, r)) for kind in KINDS.values()]  # type: ignore[misc]
    told = [
        f"{s.middle(lambda r, k=kind: of(k, r)):.1f}" if all(kind in run.bytes_by_kind for run in s.runs) else ""  # type: ignore[misc]
        for kind in TOLD_BY_PEERS
    ]
    return (s.scenario, s.arm, *(f"{figure:.1f}" for figure in (*charged, s.middle(rest))), *told)


def _cost_row(s: ArmSummary) -> tuple[str, ...]:
    def each(value: float, run: RunResult) -> float:
        return value / max(1, len(run.iteration_s))

    kinds = ("forward", "backward", "aggregation")
    delays = [seconds for run in s.runs for seconds in run.recovery_s]
    return (
        s.scenario,
        s.arm,
        f"{s.middle(lambda r: each(r.bytes_by_kind.get('all', 0), r)) / MEGA:.0f}",
        f"{s.middle(lambda r: each(max(r.bytes_by_path.values(), default=0), r)) / MEGA:.0f}",
        f"{s.middle(lambda r: each(r.messages, r)):.0f}",
        f"{s.middle(lambda r: each(r.planning_s, r)) * 1000:.1f}",
        f"{s.middle(lambda r: r.crashes):g}",
        ", ".join(f"{s.middle(lambda r, k=kind: r.recoveries.get(k, 0)):g}" for kind in kinds),  # type: ignore[misc]
        f"{median(delays):.2f}" if delays else "",
        f"{s.middle(lambda r: r.moves):g}",
    )


def side_by_side(results: Sequence[RunResult]) -> Table | None:
    """Simulated and live runs of the same seeds; None when there are none."""
    known = {(r.scenario, r.arm, r.seed, r.backend): r for r in results}
    rows = []
    for scenario, arm in dict.fromkeys((r.scenario, r.arm) for r in results):
        seeds = [r.seed for r in results if (r.scenario, r.arm, r.backend) == (scenario, arm, LIVE)]
        both = [s for s in seeds if (scenario, arm, s, SIM) in known]
        pairs = [(known[scenario, arm, s, LIVE], known[scenario, arm, s, SIM]) for s in both]
        if not pairs:
            continue
        live, sim = (median(pair[i].mean_iteration_s for pair in pairs) for i in (0, 1))
        gap = Estimate.of(a.mean_iteration_s / b.mean_iteration_s - 1 for a, b in pairs)
        allowed = 0.25 if pairs[0][0].churn else 0.15
        told = "within" if abs(gap.middle) <= allowed else "OVER"
        differences = ", ".join(f"{value:+.1%}" for value in gap.values)
        rows.append((scenario, arm, str(len(pairs)), f"{sim:.2f}", f"{live:.2f}", f"{gap.middle:+.1%}", differences,
                     f"{told} {allowed:.0%}"))  # fmt: skip
    head = ("scenario", "arm", "seeds", "simulated, s", "live, s", "live over simulated", "by seed", "allowed")
    links = tuple(anchor_of(LIVE, scenario, arm) for scenario, arm, *_ in rows)
    return Table(head, tuple(rows), links=links) if rows else None


def emulation_table(results: Sequence[RunResult]) -> Table | None:
    """What the live runs really cost this machine, and whether its computing stayed below the emulated devices'."""
    live = [r for r in results if r.backend == LIVE and r.cpu]
    rows = []
    for scenario, arm in dict.fromkeys((r.scenario, r.arm) for r in live):
        runs = [r for r in live if (r.scenario, r.arm) == (scenario, arm)]
        late = sum(r.late for r in runs) / max(1, sum(r.computations for r in runs))
        rows.append(
            (
                scenario,
                arm,
                f"{mean(r.cpu['share'] for r in runs):.0%}",
                f"{mean(r.cpu['computing_wall_s'] / max(1e-9, r.cpu['device_s']) for r in runs):.0%}",
                f"{late:.1%}",
                f"{mean(r.cpu['compute_s'] / (r.cpu['peers_s'] + r.cpu['p2pd_s']) for r in runs):.0%}",
                "; ".join(dict.fromkeys(note for r in runs for note in r.notes)),
            )
        )
    head = ("scenario", "arm", "CPU of all cores", "real / emulated computing", "late", "model's part of CPU", "notes")
    links = tuple(anchor_of(LIVE, scenario, arm) for scenario, arm, *_ in rows)
    return Table(head, tuple(rows), links=links) if rows else None


def loss_table(results: Sequence[RunResult]) -> Table | None:
    """Tokens and seconds to a loss that all arms of a scenario and seed reached: the worst last loss, a little relaxed."""
    live = [r for r in results if r.backend == LIVE and r.losses]
    rows = []
    for scenario in dict.fromkeys(r.scenario for r in live):
        runs = [r for r in live if r.scenario == scenario]
        goals = {s: max(r.losses[-1] for r in runs if r.seed == s) * 1.0005 for s in {r.seed for r in runs}}
        for arm in dict.fromkeys(r.arm for r in runs):
            own = [r for r in runs if r.arm == arm]
            took = [t for r in own if (t := r.seconds_to_loss(goals[r.seed])) is not None]
            read = [n * r.tokens_per_iteration for r in own if (n := r.iterations_to_loss(goals[r.seed])) is not None]
            told = f"{min(goals.values()):.3f}-{max(goals.values()):.3f}"
            reached = (f"{median(read):.0f}", f"{median(took):.1f}") if took else ("not reached", "not reached")
            rows.append((scenario, arm, str(len(own)), told, *reached))
    links = tuple(anchor_of(LIVE, scenario, arm) for scenario, arm, *_ in rows)
    head = ("scenario", "arm", "seeds", "loss", "tokens to it", "seconds to it")
    return Table(head, tuple(rows), links=links) if rows else None


def _span(estimate: Estimate, digits: int) -> str:
    """The interval and what it covers; of too few seeds nothing."""
    found = estimate.interval
    return f"{found.low:.{digits}f}-{found.high:.{digits}f} ({found.covers:.0%})" if found is not None else "too few seeds"
