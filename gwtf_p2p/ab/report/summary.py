"""The comparison on one printed page: what came out, in words and one table, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from gwtf_p2p.ab.report.checklist import checklist
from gwtf_p2p.ab.report.document import Block, Code, Heading, Paragraph, Table
from gwtf_p2p.ab.report.statistics import ArmSummary, Estimate, summaries
from gwtf_p2p.ab.trials.result import LIVE, RunResult

MOST_ROWS = 24
"""More would not be one page: of each comparison the best arms are shown, and the baseline."""

MOST_COMMAND = 400


def summary_blocks(results: Sequence[RunResult], failures: Sequence[tuple[str, str]], command: str) -> list[Block]:
    """All of the page."""
    found = summaries(results)
    groups = dict.fromkeys((s.backend, s.scenario) for s in found)
    each = max(2, MOST_ROWS // max(1, len(groups)))
    rows: list[tuple[str, ...]] = []
    bold: set[int] = set()
    verdicts = []
    for backend, scenario in groups:
        arms = sorted((s for s in found if (s.backend, s.scenario) == (backend, scenario)), key=lambda s: s.iteration_s.middle)
        verdicts.append(verdict(arms))
        shown = [s for i, s in enumerate(arms) if i < each or s.arm == s.baseline]
        bold |= {len(rows) + i for i, s in enumerate(shown) if s.arm == s.baseline}
        rows += [_row(s) for s in shown]
    cut = len(found) - len(rows)
    head = ("scenario", "arm", "seeds", "iteration, s", "over best SWARM", "interval", "microbatches/s", "lost, counted twice")
    blocks: list[Block] = [Heading(1, "Routers compared: summary"), *(Paragraph(text) for text in verdicts[:MOST_ROWS])]
    blocks.append(Table(head, tuple(rows), bold=frozenset(bold)))
    if cut > 0:
        blocks.append(Paragraph(f"{cut} slower arms are in the report only."))
    if failures:
        blocks.append(Paragraph(f"{len(failures)} runs failed and are in no figure; the report names them."))
    commits = ", ".join(dict.fromkeys(r.commit for r in results))
    told = command if len(command) <= MOST_COMMAND else command[: MOST_COMMAND - 1] + "…"
    points = len(checklist(results, ""))
    rests = (
        f"{len(results)} runs of commit {commits}. {points} points of fairness, and every line, are in report.html. Made by:"
    )
    return [*blocks, Paragraph(rests), Code(told)]


def verdict(arms: Sequence[ArmSummary]) -> str:
    """One sentence on a scenario: what the fastest arm is, by how much, and whether that is more than chance."""
    best = arms[0]
    where = f"{'Live' if best.backend == LIVE else 'Simulated'}, {best.scenario}: "
    if best.baseline is None:
        return f"{where}{best.arm} is the fastest of {len(arms)} arms; there is no SWARM arm to compare with."
    ours = next((s for s in arms if s.arm != s.baseline and not s.arm.startswith("swarm")), None)
    if ours is None or ours.ratio is None:
        return f"{where}{best.arm} is the fastest of {len(arms)} arms; only SWARM was run."
    ratio = ours.ratio
    found = ratio.interval
    if found is not None and found.low <= 1 <= found.high:
        told = f"the ratio paired by seed is {ratio.middle:.3f}, and its interval, {found.low:.3f} to {found.high:.3f}, holds 1"
        return f"{where}no difference is shown between {ours.arm} and the best SWARM ({ours.baseline}): {told}."
    change = abs(1 - ratio.middle)
    words = f"{change:.0%} {'less' if ratio.middle < 1 else 'more'} time than the best SWARM ({ours.baseline})"
    return f"{where}an iteration of {ours.arm} takes {words}; {_certainty(ratio)}."


def _certainty(ratio: Estimate) -> str:
    found = ratio.interval
    if found is None:
        return f"{len(ratio.values)} seeds are too few to say that it is not chance"
    return f"the ratio's interval is {found.low:.3f} to {found.high:.3f} and covers {found.covers:.0%}"


def _row(s: ArmSummary) -> tuple[str, ...]:
    span = s.ratio.interval if s.ratio is not None else None
    return (
        s.scenario,
        s.arm,
        str(len(s.runs)),
        f"{s.iteration_s.middle:.2f}",
        f"{s.ratio.middle:.3f}" if s.ratio is not None else "",
        f"{span.low:.3f}-{span.high:.3f} ({span.covers:.0%})" if span is not None else "too few seeds",
        f"{s.middle(lambda r: r.microbatches_per_s):.3f}",
        f"{sum(r.microbatches_lost for r in s.runs)}, {sum(r.double_counted for r in s.runs)}",
    )
