"""The command line as its users meet it: one clear line for a mistake, the documented exit code, never a traceback."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.shared.run_file import read_run_file, run_from_plain
from gwtf_p2p.cli.verbs import demo
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import WireSpec

PEER = "/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

RUN_FILE = """
run_id = "my-run"
seed = 0
stages = 2
model = "tiny-llama"
sequence_length = 32
microbatch_size = 2
microbatches_per_data_peer = 2
optimizer = { learning_rate = 1e-3 }
"""


STEPS_OF_A_START = ("gwtf demo: ", "reading the run's settings", "starts: ")
"""What needs the model's config, or the data, is checked after these have been said."""


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused call prints."""
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert [line for line in printed.out.splitlines() if not line.startswith(STEPS_OF_A_START)] == []
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["demo", "--stages", "40"], "got 40"),
        (["demo", "--stages", "0"], "--stages"),
        (["demo", "--steps", "many"], "--steps"),
        (["demo", "--router", "fastest"], "--router: expected one of gwtf"),
        (["demo", "--wire-dtype", "int3"], "--wire:"),
        (["demo", "--wire", "int3"], "--wire:"),
        (["demo", "--wire_averages", "int4"], "--wire_averages:"),
        (["demo", "--wire", "auto", "--wire_averages", "int8"], "--wire_averages: int8: expected it without --wire auto"),
        (["demo", "--wire", "auto", "--wire_rank", "4"], "--wire_rank: 4: expected it without --wire auto"),
        (["demo", "--dataset", "text:/nowhere/*.txt"], "/nowhere"),
        (["peer", "--initial_peers", PEER.format(port=1)], "--run_id"),
        (["peer", "--run_id", "r"], "--initial_peers"),
        (["peer", "--run_id", "r", "--initial_peers", "127.0.0.1:31337"], "127.0.0.1:31337"),
        (["peer", "--run_id", "r", "--initial_peers", "/ip4/127.0.0.1/tcp/1"], "peer id"),
        (["data", "--initial_peers", PEER.format(port=1)], "--new_run"),
        (["data", "--new_run", "/nowhere/run.toml", "--initial_peers", PEER.format(port=1)], "/nowhere/run.toml"),
        (["bootstrap", "-c", "/nowhere/peer.toml"], "/nowhere/peer.toml"),
        (["fly"], "fly"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"tiny-llama"', '{ model_type = "nonsense" }', "model_type"),
        ("stages = 2", "stages = 99", "stages"),
        ("seed = 0", 'seed = "zero"', "seed"),
        ("seed = 0", "", "seed"),
        ("seed = 0", "sede = 0", "sede"),
        ("learning_rate = 1e-3", "learning_rate = -1.0", "learning_rate"),
        ("learning_rate = 1e-3", "lr = 1.0", "optimizer.lr"),
        ("seed = 0", 'seed = 0\nwire = { activations = "int3" }', "wire.activations"),
        ("seed = 0", 'seed = 0\nwire = { forwards = "int8" }', "wire.forwards"),
        ("seed = 0", 'seed = 0\nwire = "int8"', "wire"),
        ("seed = 0", 'seed = 0\nwire_dtype = "int3"', "wire.activations"),
        ("seed = 0", 'seed = 0\nwire_dtype = "int8"\nwire = { averages = "int8" }', "wire_dtype"),
        ('"my-run"', '"my run"', "run_id"),
        ("stages = 2", "stages = ", "not TOML"),
    ],
)
def test_a_wrong_run_file_is_refused_by_field(old: str, new: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.replace(old, new))
    with pytest.raises(InputError, match=named) as error:
        read_run_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_right_run_file_says_everything(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE)
    run = read_run_file(path)
    assert run.layer_split == ((0, 3), (3, 6))
    assert run.optimizer.learning_rate == 1e-3
    assert run.router == "gwtf"


@pytest.mark.parametrize(
    ("line", "wire"),
    [
        ("", WireSpec("float32", "float32", "float32")),
        ('wire = { activations = "int4", gradients = "int8" }', WireSpec("int4", "int8", "float32")),
        ('wire = { averages = "int8" }', WireSpec("float32", "float32", "int8")),
        ('wire_dtype = "bfloat16"', WireSpec("bfloat16", "bfloat16", "float32")),
    ],
)
def test_a_run_file_says_how_tensors_travel(line: str, wire: WireSpec, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.replace("seed = 0", f"seed = 0\n{line}"))
    assert read_run_file(path).wire == wire


@pytest.mark.parametrize(
    ("flags", "wire"),
    [
        ([], WireSpec()),
        (["--wire", "int8"], WireSpec("int8", "int8")),
        (["--wire", "int4", "--wire_averages", "int8"], WireSpec("int4", "int8", "int8")),
        (["--wire_dtype", "bfloat16"], WireSpec("bfloat16", "bfloat16")),
    ],
)
def test_four_bits_in_a_demo_are_for_activations_alone(flags: list[str], wire: WireSpec) -> None:
    parser = argparse.ArgumentParser()
    demo.add_parser(parser.add_subparsers())
    assert run_from_plain(demo.plain_run(parser.parse_args(["demo", *flags])), "test").wire == wire


def test_flags_from_a_file_give_way_to_flags_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peer.toml"
    path.write_text('initial_peers = ["nonsense"]\nrun_id = "r"\ncapacity = 2\nuse_relay = false\n')
    assert "nonsense" in refusal(capsys, "peer", "-c", str(path))
    assert "elsewhere" in refusal(capsys, "peer", "-c", str(path), "--initial_peers", "elsewhere")
    path.write_text("colour = 3\n")
    assert "colour" in refusal(capsys, "peer", "-c", str(path))


def test_the_identity_is_made_once_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, copy = tmp_path / "identity.key", tmp_path / "copy.key"
    assert main(["id", "--identity-path", str(path)]) == 0
    first = capsys.readouterr().out.split()[0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["id", "--identity_path", str(path), "--backup", str(copy)]) == 0
    assert capsys.readouterr().out.split()[0] == first
    assert copy.read_bytes() == path.read_bytes()
    assert str(copy) in refusal(capsys, "id", "--identity_path", str(path), "--backup", str(copy))


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "gwtf_p2p", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("gwtf_p2p ")
