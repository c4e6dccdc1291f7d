"""`gwtf ab` from the command line to the report: simulated, stopped and resumed, and once live."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.ab.live.plan import LivePlan
from gwtf_p2p.ab.trials.arms import NAMED, parse_arm, written_out
from gwtf_p2p.ab.trials.result import RunFile, RunResult
from gwtf_p2p.ab.trials.scaling import scaled
from gwtf_p2p.ab.trials.schedule import Schedule, interleaved
from gwtf_p2p.ab.trials.simulated import run_simulated
from gwtf_p2p.ab.trials.task import RunTask
from gwtf_p2p.cli.main import main
from gwtf_p2p.protocol.ids import DATA_STAGE, RunId
from gwtf_p2p.protocol.wire.records import RunRecord, WireSpec
from gwtf_p2p.simulation.scenario.scenario import Scenario, load_scenario
from gwtf_p2p.simulation.scenario.sizes import Sizes
from tests.simulation.stories import TEXT, USUAL, story

RUN = SmallRun(stages=1)
CHURN = "[churn]\ncrash_probability_per_iteration = 0.3\nrejoin_probability_per_iteration = 0.5\n"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    story(tmp_path)
    return tmp_path / "story.toml"


def tasks(scenario: Scenario, out: Path, arms: tuple[str, ...] = ("gwtf", "swarm")) -> list[RunTask]:
    record = RunRecord(RunId("ab"), {}, ((0, 1),), 0, 8, 1, 1)
    return interleaved([RunTask(scenario, arm, seed, "sim", 1.0, record, out, "c0") for arm in arms for seed in (0, 1)])


def test_the_report_holds_what_was_run(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["ab", str(scenario), "--routers", "gwtf,swarm,random", "--seeds", "0-1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    report = (out / "report.md").read_text()
    assert all(f"| [{arm}](#raw-" in report.replace("**", "") for arm in ("gwtf", "swarm", "random"))
    assert len(re.findall(r"^\| \d+ \|", report, re.MULTILINE)) == 10, "the fairness checklist has ten points"
    html = (out / "report.html").read_text()
    assert "http-equiv" not in html and not re.search(r"""(src|href)=["'](?!#)""", html), "one self-contained file"
    assert "mb/s" not in html and "microbatches/s" in html
    assert "too few seeds" in html and not re.search(r"\(\d+%\)</", html), "two seeds give no interval"
    anchors = set(re.findall(r'id="(raw-[^"]+)"', html))
    assert set(re.findall(r'href="#([^"]+)"', html)) == anchors and len(anchors) == 3, "every row leads to its lines"
    assert set(re.findall(r"\]\(#([^)]+)\)", report)) == set(re.findall(r'<a id="([^"]+)">', report)) == anchors
    for figure in (out / "figures").iterdir():
        ElementTree.parse(figure)
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["arm"]) for line in lines] == [(s, a) for s in (0, 1) for a in ("gwtf", "swarm", "random")]
    assert all(line["planning_s"] > 0 and line["messages"] > 0 and line["bytes_by_path"] for line in lines)


def test_a_live_arm_with_a_subspace_is_charged_for_fewer_bytes(scenario: Path, tmp_path: Path) -> None:
    """The model is small and the same in all arms; what is charged for its boundaries is what the simulator charges."""
    record = replace(RUN.record(), seed=0)
    factors, named = {}, set()
    for arm in ("gwtf/int8", "gwtf/int8-subspace50"):
        task = RunTask(load_scenario(scenario), arm, 0, "live", 1.0, record, tmp_path, "c0")
        plan = LivePlan.of(task, tmp_path)
        factors[arm] = plan.config("data_0", DATA_STAGE, tmp_path / "wire", "").emulation.bytes_factor  # type: ignore[union-attr]
        assert plan.record.wire == WireSpec("int8", "int8", "int8")
        named.add(plan.record.run_id)
    assert len(named) == 2, "peers keep their keys, and refuse another record of a run that they know"
    plain, fewer = factors.values()
    sizes = [Sizes.of(load_scenario(scenario).model, WireSpec("int8", "int8", "int8"), subspace) for subspace in (0, 50)]
    assert fewer["microbatch"] / plain["microbatch"] == pytest.approx(sizes[1].both_bytes / sizes[0].both_bytes)
    assert (fewer["average"], fewer["state"]) == (plain["average"], plain["state"])


def test_a_stopped_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    """The second of four runs is interrupted, and its line cut off in the middle."""
    all_tasks, file = tasks(story(tmp_path), tmp_path), RunFile(tmp_path / "runs.jsonl")
    ran: list[str] = []

    def stopping(task: RunTask) -> RunResult:
        ran.append(str(task.key))
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run_simulated(task)

    with pytest.raises(KeyboardInterrupt):
        Schedule(all_tasks, file, stopping, lambda text: None).work(RuntimeError)
    with file.path.open("a") as broken:
        broken.write('{"scenario": "sto')
    schedule = Schedule(all_tasks, file, run_simulated, lambda text: None)
    assert [t.key for t in schedule.pending()] == [t.key for t in all_tasks[1:]]
    schedule.work(RuntimeError)
    assert set(file.read()) == {t.key for t in all_tasks} and not schedule.pending()


def test_other_settings_are_run_again(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    Schedule(tasks(story(tmp_path), tmp_path), file, run_simulated, lambda text: None).work(RuntimeError)
    longer = tasks(story(tmp_path, iterations=6), tmp_path)
    assert len(Schedule(longer, file, run_simulated, lambda text: None).pending()) == len(longer)


def test_a_run_that_fails_is_tried_again_and_told(tmp_path: Path) -> None:
    told: list[str] = []

    def failing(task: RunTask) -> RunResult:
        raise RuntimeError("broken")

    schedule = Schedule(tasks(story(tmp_path), tmp_path, ("gwtf",))[:1], RunFile(tmp_path / "r.jsonl"), failing, told.append)
    schedule.work(RuntimeError)
    assert [why for _, why in schedule.failures] == ["broken"] and len(told) == 2


def test_time_is_scaled_and_proportions_are_not(tmp_path: Path) -> None:
    scenario = story(tmp_path)
    quarter = scaled(scenario, 0.25)
    link, slow = quarter.links.between("any", "any"), scenario.links.between("any", "any")
    assert link.latency_s == slow.latency_s / 4
    assert link.bandwidth_bytes_per_s == 4 * slow.bandwidth_bytes_per_s
    assert quarter.groups[1].forward_s == tuple(s / 4 for s in scenario.groups[1].forward_s)


def test_results_are_in_seconds_of_the_scenario(tmp_path: Path) -> None:
    """Without what does not shrink with it (the protocol's periods), a shrunk run would be equal; it is near."""
    task = tasks(story(tmp_path, forward_s=0.5, iterations=3), tmp_path)[0]
    whole = run_simulated(task)
    half = run_simulated(RunTask(task.scenario, task.arm_text, 0, "sim", 0.5, task.record, tmp_path, "c0"))
    assert half.mean_iteration_s == pytest.approx(whole.mean_iteration_s, rel=0.1)
    assert half.bound_iteration_s == pytest.approx(whole.bound_iteration_s, rel=1e-3)


def test_named_arms_can_be_run_and_changed() -> None:
    for name in NAMED:
        if not name.startswith("negotiated"):
            parse_arm(name)
    assert parse_arm("swarm-official:in_flight=4@strict").config.in_flight == 4
    assert written_out("gwtf-paper") == "gwtf:cost=paper"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--routers", "magic"], "expected one of"),
        (["--routers", "gwtf,gwtf"], "each once"),
        (["--backend", "dream"], "--backend"),
        (["--iterations", "1"], "--iterations"),
    ],
)
def test_a_mistake_is_one_line(
    scenario: Path, tmp_path: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ab", str(scenario), "--out", str(tmp_path / "out"), *flags]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and len(printed.err.splitlines()) == 1 and not printed.out


@pytest.mark.live
@pytest.mark.slow
def test_live_arms_train_alike_with_churn(tmp_path: Path) -> None:
    """Real peers over emulated links; stage peers are killed and come back; all arms and the single process have equal
    losses."""
    fields = {**USUAL, "iterations": 3, "stages": 1, "microbatches": 4, "stage_peers": 3, "forward_s": 0.05, "capacity": 4}
    path = tmp_path / "story.toml"
    path.write_text(TEXT.format(**fields) + CHURN)
    out, flags = tmp_path / "out", ["--routers", "gwtf,swarm", "--backend", "sim,live", "--seeds", "0"]
    assert main(["ab", str(path), *flags, "--out", str(out)]) == 0
    live = [r for r in RunFile(out / "runs.jsonl").read().values() if r.backend == "live"]
    assert {r.arm for r in live} == {"gwtf", "swarm"}
    assert all((r.microbatches_lost, r.double_counted) == (0, 0) and len(r.losses) == 3 for r in live)
    assert sum(r.crashes for r in live) >= 1, "the script must have fired"
    assert all(r.bytes_by_kind[kind] > 0 for r in live for kind in ("forward", "backward", "average", "records", "control"))
    report = (out / "report.md").read_text()
    assert "under 0.001" in report and "Simulated and live" in report
