"""What `gwtf sim` says of a run is what happened in it; the same seed gives the same run; a trace can be looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from gwtf_p2p.protocol.effects import Report
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.measure.metrics import Metrics
from gwtf_p2p.simulation.measure.trace import Trace, check_trace_path
from gwtf_p2p.simulation.run import Simulation, simulate
from gwtf_p2p.simulation.swarm.build import Arm
from tests.protocol.commit.participating import M0, M1, counted, prepare, prepared
from tests.protocol.peers import D
from tests.simulation.stories import simulation, story

SWARM = Arm("swarm", default_config("swarm"))
DIGEST = """
import sys
from pathlib import Path
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.swarm.build import Arm
from gwtf_p2p.simulation.run import simulate
from gwtf_p2p.simulation.scenario.scenario import load_scenario
print(simulate(load_scenario(Path(sys.argv[1])), Arm("swarm", default_config("swarm")), 7).trace_sha256)
"""


def test_the_json_object_has_every_field_of_the_contract(tmp_path: Path) -> None:
    line = simulate(story(tmp_path), SWARM, 0).to_json()
    assert {
        "scenario", "router", "recovery", "seed", "iterations", "iteration_seconds", "microbatches_done", "microbatches_lost",
        "double_counted", "wasted_compute_fraction", "microbatches_per_second", "bound_microbatches_per_second", "recoveries",
        "trace_sha256",
    } <= set(line)  # fmt: skip
    assert (line["iterations"], line["microbatches_done"], line["microbatches_lost"], line["double_counted"]) == (4, 32, 0, 0)
    assert len(line["iteration_seconds"]) == 4  # type: ignore[arg-type]
    assert line["recoveries"] == {"forward": 0, "backward": 0, "aggregation": 0}
    assert line["wasted_compute_fraction"] == 0.0
    json.dumps(line)


def test_means_leave_out_the_warm_up(tmp_path: Path) -> None:
    outcome = simulate(story(tmp_path), SWARM, 0)
    assert outcome.mean_iteration_s == pytest.approx(sum(outcome.iteration_seconds[1:]) / 3)
    assert outcome.microbatches_per_second == pytest.approx(8 / outcome.mean_iteration_s)


def test_iteration_times_add_up_to_the_run(tmp_path: Path) -> None:
    run = simulation(story(tmp_path))
    outcome = run.run()
    assert run.metrics.began_at is not None
    assert run.metrics.began_at + sum(outcome.iteration_seconds) == pytest.approx(run.world.kernel.now, abs=0.1)


def test_the_same_seed_gives_the_same_run_in_another_process(tmp_path: Path) -> None:
    """Sets of strings are ordered by a hash that differs from process to process; nothing may depend on it."""
    story(tmp_path, data_peers=2)
    digests = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", DIGEST, str(tmp_path / "story.toml")]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_revised_plans_are_in_the_digest_by_what_they_say(tmp_path: Path) -> None:
    """And not by where their forecast lies in memory, which no two runs have in common."""
    scenario = story(tmp_path, stage_peers=3, microbatches=6, forward_s=0.1)
    run = Simulation(scenario, Arm("gwtf", default_config("gwtf")), 0, Trace(keep=True))
    run.listeners.append(partial(_kill_in_the_second_iteration, run, []))
    run.run()
    run.trace.write(tmp_path / "trace.jsonl")
    told = (tmp_path / "trace.jsonl").read_text()
    assert "revised" in told, "the crash has led to a revised plan"
    assert " object at 0x" not in told


def _kill_in_the_second_iteration(run: Simulation, injected: list[float], _: PeerId, report: Report, now: float) -> None:
    if report.name == "injected":
        injected.append(now)
        if len(injected) == 9:
            run.world.kernel.after(0.15, lambda: run.world.kill(PeerId("relay_2_1")))


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    scenario = story(tmp_path, forward_s=[0.01, 0.02])
    assert simulate(scenario, SWARM, 0).trace_sha256 != simulate(scenario, SWARM, 1).trace_sha256


def test_keeping_a_trace_changes_nothing(tmp_path: Path) -> None:
    scenario = story(tmp_path)
    assert simulate(scenario, SWARM, 0).trace_sha256 == simulate(scenario, SWARM, 0, Trace(keep=True)).trace_sha256


def test_a_chrome_trace_shows_every_computation_and_transfer_once(tmp_path: Path) -> None:
    """32 microbatches, three stage peers and a data peer each way: 6 + 3 computations and 8 transfers per microbatch."""
    trace = Trace(keep=True)
    simulate(story(tmp_path), SWARM, 0, trace)
    trace.write(tmp_path / "run.json")
    events = [e for e in json.loads((tmp_path / "run.json").read_text())["traceEvents"] if e["ph"] == "X"]
    compute = [e for e in events if e["cat"] == "compute" and not e["name"].startswith("average")]
    transfers = [e for e in events if e["cat"] == "transfer"]
    assert (len(compute), len(transfers)) == (32 * 9, 32 * 8)
    rows = defaultdict(list)
    for event in events:
        rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        spans.sort()
        assert all(end <= begin + 1e-3 for (_, end), (begin, _) in pairwise(spans)), "spans overlap in a row"


def test_a_jsonl_trace_has_events_reports_and_spans_in_order_of_time(tmp_path: Path) -> None:
    trace = Trace(keep=True)
    simulate(story(tmp_path), SWARM, 0, trace)
    trace.write(tmp_path / "run.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert {"event", "report", "span"} <= {key for line in lines for key in line}
    assert [line["at_s"] for line in lines] == sorted(line["at_s"] for line in lines)


def test_a_trace_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "run.txt", tmp_path / "none" / "run.json"):
        with pytest.raises(InputError):
            check_trace_path(path)


def test_what_crashes_cost_is_told(tmp_path: Path) -> None:
    """Against the moment of the crash and one hop; what died with the crashed is part of the waste."""
    run = simulation(story(tmp_path, iterations=6, stage_peers=3, microbatches=8), "gwtf")
    run.world.kernel.at(2.2, lambda: run.world.kill(PeerId("relay_2_1")))
    outcome = run.run().to_json()
    assert outcome["recovery_count"] and outcome["bytes_resent"]
    delay_s, hop_s = float(str(outcome["recovery_delay_seconds"])), float(str(outcome["hop_seconds"]))
    assert 0.0 < delay_s <= 3 * hop_s
    wasted, with_crashes = (float(str(outcome[f"wasted_{name}_fraction"])) for name in ("compute", "with_crashes"))
    assert 0.0 < with_crashes <= wasted + 1e-9


def test_nothing_is_wasted_but_what_dies_with_the_crashed(tmp_path: Path) -> None:
    """Plans are revised after each crash; repairs lead to the peers that have the microbatch all the same."""
    changes = {"iterations": 3, "stages": 4, "stage_peers": 4, "microbatches": 16, "data_peers": 2}
    run = simulation(story(tmp_path, forward_s=0.3, capacity=2, **changes), "gwtf", seed=1)
    for n, name in enumerate(("relay_2_0", "relay_3_1", "relay_1_0", "relay_3_0", "relay_2_1", "relay_4_2")):
        run.world.kernel.at(10.0 + 5.1 * n, partial(run.world.kill, PeerId(name)))
    outcome = run.run().to_json()
    wasted, with_crashes = (float(str(outcome[f"wasted_{name}_fraction"])) for name in ("compute", "with_crashes"))
    assert outcome["recovery_count"] and with_crashes > 0.0 and wasted - with_crashes < 1e-6


def test_what_a_run_goes_back_before_does_not_count_twice() -> None:
    for goes_back in (False, True):
        metrics = Metrics(expected=2, stages=2)
        for attempt, done in enumerate(((M0,), (M0, M1)), 1):
            driven = counted(*done)
            prepared(driven, prepare(attempt, share=done))
            metrics.stepping(driven.machine.participant, Stage(1), 0, float(attempt))
            if goes_back and attempt == 1:
                metrics.report(D, Report("going_back", {"version": 0, "iteration": 1, "epoch": 1}), 1.5)
        assert metrics.double_counted() == (0 if goes_back else 1)
