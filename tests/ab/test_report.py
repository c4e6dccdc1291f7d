"""The report tells what was measured and no more: exact intervals, spelled units, rows that lead to their lines, one page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from math import comb
from pathlib import Path

import pytest

from gwtf_p2p.ab.report.report import write_report
from gwtf_p2p.ab.report.statistics import Estimate, exact_interval, summaries
from gwtf_p2p.ab.report.summary import verdict
from gwtf_p2p.ab.report.tables import bytes_table, loss_table
from gwtf_p2p.ab.trials.result import RunResult
from gwtf_p2p.ab.trials.simulated import run_simulated
from gwtf_p2p.drawing.svg import Drawing
from tests.ab.test_ab import tasks
from tests.monitor.page.chromium import Chromium, needs_axe, needs_browser
from tests.simulation.stories import story

BLOCK_BYTES = 64 + 2
"""64 values of int8 and their scale."""

LONG = "swarm-official-bans:in_flight=4@recomputed"


@pytest.mark.parametrize(("count", "covers"), [(3, 0.75), (4, 0.875), (5, 0.9375), (6, 0.96875)])
def test_an_interval_of_few_seeds_is_their_range_and_says_what_it_covers(count: int, covers: float) -> None:
    values = [float(n) for n in range(count, 0, -1)]
    found = exact_interval(values)
    assert found is not None and (found.low, found.high) == (1.0, float(count))
    # By counting: of all ways in which the values can lie about the true median, those with some on either side.
    ways = list(product((False, True), repeat=count))
    assert found.covers == pytest.approx(sum(any(w) and not all(w) for w in ways) / len(ways)) == pytest.approx(covers)


def test_an_interval_of_many_seeds_is_the_narrowest_that_covers_enough() -> None:
    found = exact_interval([float(n) for n in range(1, 21)])
    assert found is not None and (found.low, found.high) == (6.0, 15.0)  # as in tables of the sign test
    assert found.covers == pytest.approx(1 - 2 * sum(comb(20, k) for k in range(6)) / 2**20) and found.covers >= 0.95


@pytest.mark.parametrize("values", [(1.0,), (1.0, 2.0)])
def test_fewer_than_three_seeds_have_no_interval(values: tuple[float, ...]) -> None:
    assert Estimate.of(values).interval is None


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[RunResult]:
    """Three seeds of two arms, one of them with a long name."""
    folder = tmp_path_factory.mktemp("runs")
    run = [run_simulated(task) for task in tasks(story(folder), folder)]
    third = [replace(r, seed=2, iteration_s=tuple(1.1 * s for s in r.iteration_s)) for r in run if r.seed == 0]
    return [replace(r, arm=LONG if r.arm == "swarm" else r.arm) for r in [*run, *third]]


def test_bytes_are_told_by_kind_and_formats_send_what_they_say(tmp_path: Path) -> None:
    scenario = story(tmp_path, forward_s=0.5, iterations=2)
    plain, int8 = (run_simulated(replace(tasks(scenario, tmp_path)[0], arm_text=arm)) for arm in ("gwtf", "gwtf/int8"))
    blocks = -(-scenario.model.microbatch_bytes // 4 // 64)
    for kind in ("forward", "backward"):
        assert plain.bytes_by_kind[kind] % scenario.model.microbatch_bytes == 0
        assert int8.bytes_by_kind[kind] % (blocks * BLOCK_BYTES) == 0
    assert 0.25 < int8.bytes_by_kind["average"] / plain.bytes_by_kind["average"] < 0.26
    (row, other) = bytes_table(summaries([plain, int8]), per_microbatch=True).rows
    assert float(row[2]) >= scenario.model.microbatch_bytes * (scenario.model.stages + 1) / 1000
    assert 0.25 < float(other[2]) / float(row[2]) < 0.27


def test_bytes_of_every_kind_are_told_of_a_microbatch_and_of_an_iteration(results: list[RunResult]) -> None:
    [some, *_] = results
    iterations, microbatches = len(some.iteration_s), some.microbatches_per_iteration
    kinds = {"forward": 9e6, "backward": 6e6, "average": 30e6, "state_chunk": 3e6, "probe": 1.5e6}
    charged = {kind: int(size * iterations) for kind, size in kinds.items()}
    peers = {"records": int(2e6 * iterations), "control": int(4e6 * iterations)}
    live = replace(some, backend="live", bytes_by_kind={**charged, "all": sum(charged.values()), **peers})
    figures = {}
    for per_microbatch in (True, False):
        table = bytes_table(summaries([live]), per_microbatch)
        figures[per_microbatch] = dict(zip((name.split(",")[0] for name in table.head), table.rows[0], strict=True))
    per_iteration = {
        "activations": "9.0", "gradients": "6.0", "averages": "30.0", "state": "3.0", "everything else": "1.5",
        "records": "2.0", "control": "4.0",
    }  # fmt: skip
    assert {kind: figures[False][kind] for kind in per_iteration} == per_iteration
    for kind, figure in per_iteration.items():
        assert float(figures[True][kind]) == pytest.approx(1000 * float(figure) / microbatches, abs=0.06)
    simulated = bytes_table(summaries([some]), per_microbatch=False).rows[0]
    assert simulated[-2:] == ("", ""), "the simulator counts no bytes of records"


def test_loss_is_told_over_tokens_and_over_time(results: list[RunResult], tmp_path: Path) -> None:
    """An arm whose iterations take half the time reads the same tokens to a loss."""
    own = [r for r in results if r.seed == 0]
    losses = tuple(4.0 - 0.5 * n for n in range(len(own[0].iteration_s)))
    live = [replace(r, backend="live", losses=losses, iteration_s=tuple(s for s in r.iteration_s)) for r in own]
    live[1] = replace(live[1], iteration_s=tuple(s / 2 for s in live[0].iteration_s))
    table = loss_table(live)
    assert table is not None and table.head[-2:] == ("tokens to it", "seconds to it")
    first, second = table.rows
    tokens = len(losses) * own[0].microbatches_per_iteration * own[0].tokens_per_microbatch
    assert first[-2] == second[-2] == str(tokens)
    assert float(second[-1]) == pytest.approx(float(first[-1]) / 2, abs=0.06)
    write_report(tmp_path, live, [], "gwtf ab story.toml")
    for name, unit in (("time", " s<"), ("tokens", " tokens<")):
        drawing = (tmp_path / "figures" / f"loss_{name}_story.svg").read_text()
        assert f"loss over {name}" in drawing and unit in drawing


def test_an_arm_is_held_against_the_best_swarm_of_its_own_format(results: list[RunResult]) -> None:
    swarm, gwtf = ([r for r in results if r.arm == arm] for arm in (LONG, "gwtf"))
    named = [replace(r, arm=f"{r.arm}/int8", iteration_s=tuple(s / 2 for s in r.iteration_s)) for r in (*swarm, *gwtf)]
    baselines = {s.arm: s.baseline for s in summaries([*swarm, *gwtf, *named])}
    assert baselines == {LONG: LONG, "gwtf": LONG, f"{LONG}/int8": f"{LONG}/int8", "gwtf/int8": f"{LONG}/int8"}


def times(results: list[RunResult], arm: str, factors: tuple[float, ...]) -> list[RunResult]:
    """The runs of one arm with other times."""
    changed = []
    for r in results:
        base = next(b for b in results if b.arm == LONG and b.seed == r.seed)
        changed.append(replace(r, iteration_s=tuple(factors[r.seed] * s for s in base.iteration_s)) if r.arm == arm else r)
    return changed


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ((0.8, 0.7, 0.9), "takes 20% less time than the best SWARM"),
        ((0.8, 0.7, 0.9), "covers 75%"),
        ((1.3, 1.2, 1.1), "takes 20% more time"),
        ((0.9, 1.1, 0.8), "no difference is shown between"),
    ],
)
def test_a_verdict_says_how_much_and_how_sure(factors: tuple[float, ...], told: str, results: list[RunResult]) -> None:
    found = sorted(summaries(times(results, "gwtf", factors)), key=lambda s: s.iteration_s.middle)
    assert told in verdict(found)


def test_two_seeds_are_said_to_be_too_few(results: list[RunResult]) -> None:
    few = [r for r in results if r.seed < 2]
    assert "2 seeds are too few" in verdict(sorted(summaries(few), key=lambda s: s.iteration_s.middle))


def test_the_lines_under_a_row_are_those_of_its_runs(results: list[RunResult], tmp_path: Path) -> None:
    write_report(tmp_path, results, [], "gwtf ab story.toml")
    section = re.search(r"#### Simulated: story, gwtf\n\n```\n(.*?)\n```", (tmp_path / "report.md").read_text(), re.DOTALL)
    assert section is not None
    lines = [json.loads(line) for line in section[1].splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2] and {line["arm"] for line in lines} == {"gwtf"}
    assert lines[0]["iteration_s"] == list(next(r for r in results if r.arm == "gwtf" and r.seed == 0).iteration_s)


def test_arms_of_any_name_have_their_pictures(tmp_path: Path) -> None:
    task = replace(tasks(story(tmp_path), tmp_path)[0], arm_text="gwtf/int8")
    write_report(tmp_path, [run_simulated(task)], [], "gwtf ab story.toml")
    drawn = [path.name for path in (tmp_path / "figures").iterdir()]
    assert {"sim_gantt_story_gwtf_int8.svg", "sim_flows_story_gwtf_int8.svg"} <= set(drawn)
    assert all(f"figures/{name}" in (tmp_path / "report.md").read_text() for name in drawn)


def test_a_long_word_is_cut_in_the_middle_and_told_whole() -> None:
    drawing = Drawing(100, 20)
    drawing.text((0, 10), LONG, room=90)
    drawing.text((0, 10), "short", room=90)
    assert f"<title>{LONG}</title>" in drawing.parts[0] and "…" in drawing.parts[0]
    assert ">short</text>" in drawing.parts[1]


@pytest.mark.browser
@needs_browser
def test_nothing_runs_out_of_the_page_and_the_summary_prints_on_one(results: list[RunResult], tmp_path: Path) -> None:
    results = [replace(r, scenario="heterogeneous_compute_churn_20") for r in results]
    write_report(tmp_path, results, [("story seed 9", "why " * 40)], "gwtf ab " + "story.toml " * 60)
    browser = Chromium(tmp_path / "profile")
    try:
        for name, width in (("report", 1200), ("report", 360), ("summary", 360)):
            browser.driver.get(f"file://{tmp_path / name}.html")
            browser.show(width, "light")
            assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), (name, width)
        browser.driver.get(f"file://{tmp_path / 'report'}.html")
        browser.show(1200, "light")
        outside = """[...document.querySelectorAll('svg text')].filter((text) => {
            const box = text.getBBox(), page = text.ownerSVGElement.viewBox.baseVal;
            return box.x < 0 || box.y < 0 || box.x + box.width > page.width || box.y + box.height > page.height;
        }).map((text) => text.textContent)"""
        assert browser.ask(outside) == []
        wide = "[...document.querySelectorAll('.wide')].filter((d) => d.scrollWidth > d.clientWidth).length"
        assert browser.ask(wide) == 0, "at a desk no table has to be scrolled"
        browser.driver.get(f"file://{tmp_path / 'summary'}.html")
        assert len(re.findall(rb"/Type\s*/Page\b", browser.printed())) == 1
        assert browser.errors() == []
    finally:
        browser.driver.quit()


@pytest.mark.browser
@needs_browser
@needs_axe
def test_axe_finds_nothing_serious_in_the_report(results: list[RunResult], tmp_path: Path) -> None:
    write_report(tmp_path, results, [("story seed 9", "why")], "gwtf ab story.toml")
    browser = Chromium(tmp_path / "profile")
    try:
        for name in ("report", "summary"):
            browser.driver.get(f"file://{tmp_path / name}.html")
            for scheme, width in (("light", 1440), ("dark", 1440), ("light", 360), ("dark", 360)):
                browser.show(width, scheme)
                assert browser.barriers() == [], f"{name}, {scheme}, {width} px"
    finally:
        browser.close()
