"""The report of a comparison: report.md, report.html (one file, its pictures inside), summary.html (one printed page) and
figures/*.svg. Every row of a table leads to the lines of runs.jsonl that it is made of.

It is written from the finished runs alone, so it can be written again at any time, also while a comparison is not complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from gwtf_p2p.ab.report.checklist import checklist
from gwtf_p2p.ab.report.document import Block, Code, Figure, Heading, Paragraph, Raw, Table, html, markdown
from gwtf_p2p.ab.report.environment import environment
from gwtf_p2p.ab.report.equivalence import equivalence
from gwtf_p2p.ab.report.plots import LOSS_OVER, flows, gantt, iteration_times, loss_curves
from gwtf_p2p.ab.report.statistics import ArmSummary, summaries
from gwtf_p2p.ab.report.summary import summary_blocks
from gwtf_p2p.ab.report.tables import anchor_of, bytes_table, cost_table, emulation_table, loss_table, main_table, side_by_side
from gwtf_p2p.ab.trials.controls import read_controls
from gwtf_p2p.ab.trials.gantt import read_rows
from gwtf_p2p.ab.trials.result import LIVE, SIM, RunResult
from gwtf_p2p.ab.trials.task import in_file_names, slug_of

NAMES = {SIM: "Simulated", LIVE: "Live"}
LONG = ("bytes_by_path", "routes")
BYTES = (
    "What is sent, by kind; what was sent again and again is counted each time. Records and control (small messages, headers) "
    "are real bytes, as live peers count them, beside what the lines are charged with. An arm whose name ends in /FORMAT sends "
    "its tensors in that format, and is held against the SWARM arms of the same format."
)
EMULATED = (
    "Live runs are real processes with real libp2p, transfers, computing and averaging on one machine. Links and devices that "
    "it does not have are imposed at the edge of each peer (`live/emulation`): every transfer (activations, gradients, "
    "averages, state downloads, probes) waits for its share of the two peers' lines, shared max-min by the simulator's own "
    "code in real time; every message takes its latency; every computation of the small model is waited out to the "
    "scenario's seconds; a transfer is charged as many bytes as the scenario's model would send. In `swarm-hub` the detour "
    "over the data peer is charged to the lines, the bytes themselves go directly. Records and connections are real."
)


def write_report(out: Path, results: Sequence[RunResult], failures: Sequence[tuple[str, str]], command: str) -> None:
    """All of it, from the runs that are finished."""
    blocks = _blocks(out, results, failures, command)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Figure):
            (out / block.file).write_text(block.svg, encoding="utf-8")
    (out / "report.md").write_text(markdown(blocks), encoding="utf-8")
    (out / "report.html").write_text(html("gwtf ab", blocks), encoding="utf-8")
    (out / "summary.html").write_text(html("gwtf ab: summary", summary_blocks(results, failures, command)), encoding="utf-8")


def _blocks(out: Path, results: Sequence[RunResult], failures: Sequence[tuple[str, str]], command: str) -> list[Block]:
    found = summaries(results)
    blocks: list[Block] = [Heading(1, "Routers compared"), Code(command), Paragraph(_about(results))]
    if failures:
        rows = tuple((key, why) for key, why in failures)
        blocks += [Heading(2, "Runs that failed"), Table(("run", "reason"), rows, wordy=True)]
    for backend in (LIVE, SIM):
        own = [s for s in found if s.backend == backend]
        if own:
            blocks += _backend_blocks(out, backend, own)
    table = side_by_side(results)
    if table is not None:
        blocks += [Heading(2, "Simulated and live, same seeds"), table]
    equal = equivalence(results, read_controls(out))
    if equal is not None:
        blocks += [Heading(2, "The same training in all arms"), Paragraph(f"Losses: {equal}.")]
    told = checklist(results, str(equal) if equal is not None else "")
    blocks += [Heading(2, "Fairness checklist"), Table(("", "asked", "done"), told, wordy=True)]
    machine = tuple(environment().items())
    blocks += [Heading(2, "Environment"), Table(("what", "which"), machine, wordy=True)]
    return [*blocks, Heading(2, "The runs, line by line"), *_raw(found)]


def _raw(found: Sequence[ArmSummary]) -> list[Block]:
    """What runs.jsonl says of each arm, without the bytes of single paths, of which there are thousands."""
    blocks: list[Block] = [Paragraph("As in `runs.jsonl`, without bytes by path and routes; one line per seed.")]
    for s in found:
        lines = tuple(json.dumps({k: v for k, v in r.to_json().items() if k not in LONG}) for r in s.runs)
        blocks.append(Raw(anchor_of(s.backend, s.scenario, s.arm), f"{NAMES[s.backend]}: {s.scenario}, {s.arm}", lines))
    return blocks


def _about(results: Sequence[RunResult]) -> str:
    commits = ", ".join(dict.fromkeys(r.commit for r in results))
    scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys(r.time_scale for r in results))
    iterations = ", ".join(dict.fromkeys(f"{len(r.iteration_s)} ({r.warmup_iterations} of them warm-up)" for r in results))
    return (
        f"{len(results)} runs; commit {commits}; written {time.strftime('%Y-%m-%d %H:%M')}. Iterations per run: {iterations}. "
        f"All times are seconds of the scenario; live seconds per second of it: {scales} (the simulator runs the same shrunk "
        "scenario). Medians over seeds; ratios are paired by seed. An interval is from one seed to another and takes no "
        "distribution for granted; how often such an interval holds the true median is told beside it. Fewer than three seeds "
        "give none. Bold: the best SWARM arm. Each row leads to its lines."
    )


def _backend_blocks(out: Path, backend: str, own: Sequence[ArmSummary]) -> list[Block]:
    runs = [run for s in own for run in s.runs]
    blocks: list[Block] = [Heading(2, NAMES[backend])]
    if backend == LIVE:
        blocks.append(Paragraph(EMULATED))
    times = "Iteration time: a dot per seed, bar the median, line its interval, ring the bound; right: over best SWARM."
    blocks += [main_table(own), Figure(f"figures/{backend}_iteration_times.svg", iteration_times(own), times)]
    blocks += [Heading(3, "What it cost"), cost_table(own), Paragraph(BYTES)]
    blocks += [bytes_table(own, per_microbatch=True), bytes_table(own, per_microbatch=False)]
    losses = loss_table(runs)
    if losses is not None:
        blocks += [Heading(3, "Tokens and time to a loss"), losses, *_loss_figures(runs)]
    machine = emulation_table(runs)
    if machine is not None:
        blocks += [Heading(3, "What it cost this machine"), machine]
    return [*blocks, *_pictures(out, backend, own)]


def _loss_figures(runs: Sequence[RunResult]) -> list[Block]:
    found: list[Block] = []
    for scenario in dict.fromkeys(r.scenario for r in runs):
        seed = min(r.seed for r in runs if r.scenario == scenario)
        shown = [r for r in runs if (r.scenario, r.seed) == (scenario, seed) and r.losses]
        for name, over in LOSS_OVER.items():
            drawing = loss_curves(shown, f"{scenario}, seed {seed}: loss over {name}", over)
            found.append(Figure(f"figures/loss_{name}_{scenario}.svg", drawing, f"Loss over {name}, {scenario}, seed {seed}."))
    return found


def _pictures(out: Path, backend: str, own: Sequence[ArmSummary]) -> list[Block]:
    """Per scenario, of its first seed: the last iteration of each arm on one time axis, and the flows."""
    found: list[Block] = []
    for scenario in dict.fromkeys(s.scenario for s in own):
        arms = [s for s in own if s.scenario == scenario]
        seed = min(seed for s in arms for seed in s.seeds)
        shown = [run for s in arms for run in s.runs if run.seed == seed]
        charts = [(run, read_rows(out / "gantt" / f"{slug_of(run.key)}.json")) for run in shown]
        whole = [(run, chart) for run, chart in charts if chart is not None]
        if not whole:
            continue
        found.append(Heading(3, f"{NAMES[backend]}: one iteration of each arm, {scenario}, seed {seed}"))
        most_s = max(seconds for _, (seconds, _) in whole)
        for run, (seconds, rows) in whole:
            name = in_file_names(f"{run.scenario}_{run.arm}")
            title = f"{run.arm}: the last iteration, {seconds:.1f} s"
            drawing = gantt(seconds, rows, title, most_s)
            found.append(Figure(f"figures/{backend}_gantt_{name}.svg", drawing, f"{run.arm}, {scenario}."))
            if run.routes:
                drawing = flows(run, f"{run.arm}: microbatches by hop, whole run")
                found.append(Figure(f"figures/{backend}_flows_{name}.svg", drawing, f"Flows of {run.arm}, {scenario}."))
    return found
