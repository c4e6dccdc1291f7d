"""The checks that a device is tried with pass on the CPU, and see a difference."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from experiments.support import gpu_check
from gwtf_p2p.training.model.preflight import Result

SCRIPT = Path(gpu_check.__file__).parents[1] / "gpu_check.sh"


def test_the_checks_of_a_device_hold_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu_check.main(["--device", "cpu", "--size", "tiny", "--families", "llama,mixtral", "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0, found
    kinds = {line["name"].partition(" ")[0] for line in found}
    assert kinds == {"split", "parity", "bfloat16", "trains", "speed"}
    assert all(line["figure"] == 0 for line in found if line["name"].startswith(("split", "parity"))), "one machine, one kernel"


def test_a_moved_gradient_is_seen() -> None:
    one = Result(1.0, {"weight": torch.tensor([1.0, 2.0])})
    other = Result(1.0, {"weight": torch.tensor([1.0, 2.1])})
    assert gpu_check.worst(one, other) == pytest.approx(0.05)
    assert not gpu_check.Check("split", 0.05, gpu_check.SPLIT_BOUND).holds


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--device", "cuda:99"])
    assert ended.value.code == 2 and "cuda:99" in capsys.readouterr().err


def test_the_script_is_a_shell_script_and_can_be_run() -> None:
    assert subprocess.run(["sh", "-n", str(SCRIPT)], check=False).returncode == 0
    assert SCRIPT.stat().st_mode & 0o111
