"""A run file is judged before anything heavy is loaded: a wrong setting is one line with file, field and what was expected."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgpack
import pydantic
import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.shared.run_file import FIELDS, SECTIONS, check_settings, read_run_file
from gwtf_p2p.cli.shared.run_report import report_of
from gwtf_p2p.cli.shared.run_schema import run_file_model, run_file_schema
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.wire.codec import to_plain
from gwtf_p2p.protocol.wire.dataset import DatasetSpec, parts_of
from gwtf_p2p.protocol.wire.ranges import Matches, described_fields
from gwtf_p2p.protocol.wire.records import (
    AdapterSpec,
    BoundarySpec,
    EvaluationSpec,
    LossSpec,
    OptimizerSpec,
    RunRecord,
    ToleranceSpec,
    WeightsSpec,
    decode_run,
    encode,
)
from tests.cli.test_cli import RUN_FILE, refusal
from tests.training.data.tokenizers_for_tests import with_a_gap

SMALLEST = """run_id = "smallest"
seed = 0
stages = 1
model = "tiny-llama"
dataset = "stdlib"
sequence_length = 32
microbatch_size = 1
microbatches_per_data_peer = 2
total_iterations = 4"""
PLAIN = tomllib.loads(RUN_FILE)

KINDS = {
    "": RunRecord,
    "optimizer.": OptimizerSpec,
    "loss.": LossSpec,
    "evaluation.": EvaluationSpec,
    "weights.": WeightsSpec,
    "adapters.": AdapterSpec,
    "boundary.": BoundarySpec,
    "audit_tolerance.": ToleranceSpec,
    "dataset.": DatasetSpec,
}
OUTSIDE = {
    Gt: lambda limit: [limit, limit - 1],
    Ge: lambda limit: [limit - 1, -(10**30) if isinstance(limit, int) else -1e30],
    Lt: lambda limit: [limit],
    Le: lambda limit: [limit + 1 if isinstance(limit, int) else limit * 1.01],
    MinLen: lambda length: ["x" * (length - 1)],
    MaxLen: lambda length: ["x" * (length + 1)],
}


def outside() -> list[tuple[str, Any]]:
    """For every setting values just outside each of its bounds, of wrong type, and what is no number at all."""
    found: list[tuple[str, Any]] = []
    for prefix, kind in KINDS.items():
        for name, known in described_fields(kind).items():
            if prefix == "" and (name not in FIELDS or name in ("optimizer", "dataset", "layer_split")):
                continue
            found.append((prefix + name, {"a": "table"}))
            if known.kind is float:
                found += [(prefix + name, math.nan), (prefix + name, math.inf), (prefix + name, "1")]
            if known.kind is int:
                found += [(prefix + name, 1.5), (prefix + name, True), (prefix + name, 2**70)]
            if known.choices:
                found.append((prefix + name, "none of these"))
            for bound in known.bounds:
                if not isinstance(bound, Matches) and known.kind in (int, float, str):
                    limit = next(getattr(bound, f.name) for f in dataclasses.fields(bound))
                    found += [(prefix + name, value) for value in OUTSIDE[type(bound)](limit)]
    return found


def changed(field: str, value: Any) -> dict[str, Any]:
    plain = json.loads(json.dumps(PLAIN))
    prefix, _, name = field.rpartition(".")
    table = plain.setdefault(prefix, {}) if prefix else plain
    if prefix == "dataset":
        table = plain["dataset"] = {"path": "stdlib"}
    if prefix == "weights":
        table = plain["weights"] = {"source": "./model"}
    table[name] = value
    return dict(plain)


@pytest.mark.parametrize(("field", "value"), outside())
def test_every_setting_out_of_range_is_refused_by_name_and_by_the_schema(field: str, value: Any) -> None:
    plain = changed(field, value)
    with pytest.raises(InputError) as caught:
        check_settings(plain, "my.run.toml")
    line = str(caught.value)
    assert line.startswith(f"my.run.toml: {field}") and "expected" in line and "\n" not in line
    with pytest.raises(pydantic.ValidationError):
        run_file_model().model_validate(plain)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_split": []}, "layer_split: expected a list, of at least 1"),
        ({"layer_split": [[0, 2], [2, 2]]}, "layer_split"),
        ({"layer_split": [[0, 2, 4]]}, "layer_split: expected 2 items, got"),
        ({"layer_split": [[0, 6]], "stages": 2}, "stages: expected 1, as layer_split has"),
        ({"run_id": "a.b"}, "run_id: expected a text, .* without dots"),
        ({"router": "gwft"}, "router: expected one of gwtf, .*got 'gwft'"),
        ({"sede": 1}, "sede: unknown field; did you mean seed?"),
        ({"dataset": {"path": "stdlib", "colour": 1}}, "dataset.colour: unknown field"),
        ({"dataset": {"split": "train"}}, "dataset.path: expected, but missing"),
        ({"dataset": {"path": "./a", "text_column": "a", "messages": "b"}}, "dataset.messages: expected it alone"),
        ({"dataset": {"path": "stdlib", "text_column": "a"}}, "dataset.text_column: expected nothing: stdlib is files of text"),
        ({"dataset": [{"path": "a"}, {"path": "b", "weight": 0.0}]}, r"dataset\[1\].weight: expected a number, above 0"),
        ({"dataset": []}, "dataset: expected a list, of at least 1|dataset: expected 1 to 32 datasets"),
        ({"dataset": 5}, "dataset: expected a table"),
        ({"optimizer": []}, "optimizer: expected a table"),
        ({"optimizer": {"schedule": "linear", "warmup_iterations": 9, "total_iterations": 9}}, "optimizer.total_iterations"),
        ({"data_peers_before": [[25, 1], [20, 2]]}, "data_peers_before: expected pairs"),
        ({"data_peers_before": [[25, 0]]}, "data_peers_before: expected pairs"),
        ({"data_peers": 2, "elastic_shares": [1, 9]}, "elastic_shares: expected 2 numbers from . to . with the sum"),
        ({"elastic_shares": [2, 2]}, "elastic_shares: expected 1 numbers"),
        ({"delay_optimizer_step": True, "audit": 0.1}, "audit: expected 0 with delay_optimizer_step"),
        ({"replica_sync": 1}, "replica_sync: expected 0 .*, or at least 2"),
        ({"replica_sync": 4}, "checkpoint_every: expected a multiple of replica_sync = 4, .* got 10"),
        ({"replica_sync": 5, "wire": {"averages": "int8"}}, "wire.averages: expected float32 with replica_sync = 5"),
        ({"replica_sync": 5, "optimizer": {"kind": "adamw_8bit"}}, "optimizer.kind: expected adamw or adafactor with"),
        ({"replica_sync": 5, "audit": 0.1}, "audit: expected 0 with replica_sync"),
        (
            {"replica_sync": 5, "evaluation": {"every": 5, "held_out": 0.1, "patience": 2}},
            "evaluation.patience: expected 0 with replica_sync",
        ),
        (
            {"replica_sync": 5, "evaluation": {"every": 7, "held_out": 0.1, "keep_best": True}},
            "evaluation.every: expected a multiple of replica_sync = 5",
        ),
        ({"replica_sync": 5, "delay_optimizer_step": True}, "delay_optimizer_step: expected false with replica_sync"),
        ({"model": 5}, "model: expected a name, or a table"),
        ({"weights": {"revision": "abc"}}, "weights.source: expected, but missing"),
        ({"weights": 5}, "weights.source: expected, but missing|weights: expected a table"),
        ({"adapters": {"rank": 4, "targets": ["q_proj"]}}, "adapters.rank: expected weights, too"),
        ({"weights": "./m", "adapters": {"rank": 4}}, "adapters.targets: expected names of modules"),
        ({"evaluation": {"every": 5}}, "evaluation.held_out: expected a share"),
        ({"optimizer": {"warmup_tokens": 9, "warmup_iterations": 9}}, "optimizer.warmup_iterations: expected it alone"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^my.run.toml: ({named})"):
        check_settings({**PLAIN, **change}, "my.run.toml")


def test_a_record_from_the_network_is_held_to_the_same_ranges() -> None:
    run = dataclasses.replace(check_settings(PLAIN, "my.run.toml"), layer_split=((0, 3), (3, 6)))
    assert decode_run(encode(run)) == run
    record = to_plain(run)
    for field, value in outside():
        prefix, _, name = field.removeprefix("boundary.").rpartition(".")  # a record has that section's fields by themselves
        if prefix == "dataset" or (isinstance(value, int) and abs(value) >= 2**63):
            continue  # msgpack has no such numbers; datasets are below
        if isinstance(value, dict) and field in (*SECTIONS, "weights"):
            continue  # a newer peer may add fields: they are left out
        inner = {**record[prefix], name: value} if prefix else None
        plain = {**record, prefix: inner} if prefix else {**record, name: value}
        with pytest.raises(RemoteProtocolError, match=name):
            decode_run(msgpack.packb(plain))
    for dataset in ([], [{"weight": -1.0}], [{"path": "x", "encoding": "y" * 99}], [{"path": "stdlib", "messages": "m"}], 7):
        with pytest.raises(RemoteProtocolError, match="dataset"):
            decode_run(msgpack.packb({**record, "dataset": dataset}))
    part = {"path": "./a", "data_files": ["x"], "streaming": None, "weight": 2.0}
    assert decode_run(msgpack.packb({**record, "dataset": [part]})).dataset == (
        DatasetSpec("./a", data_files=("x",), weight=2.0),
    )


def test_datasets_in_a_run_file_are_tables_and_mixtures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "body": "one"}\n')
    table = f'{{ path = "{tmp_path}/a.jsonl", text_column = "body", weight = 3 }}'
    (tmp_path / "run.toml").write_text(RUN_FILE + f'dataset = [{table}, {{ path = "text:{tmp_path}/*.jsonl" }}]\n')
    run = read_run_file(tmp_path / "run.toml")
    assert [part.weight for part in parts_of(run.dataset)] == [3.0, 1.0]
    assert decode_run(encode(run)) == run
    (tmp_path / "run.toml").write_text(RUN_FILE + f'dataset = "{tmp_path}/a.jsonl"\n')
    with pytest.raises(InputError, match=r"run.toml: dataset: .*a.jsonl: which column is the text is not certain"):
        read_run_file(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("dataset", "path", "config"),
    [
        ("OWNER/NAME", "OWNER/NAME", ""),
        ("OWNER/NAME:CONFIG", "OWNER/NAME", "CONFIG"),
        ("text:/a/*.txt", "text:/a/*.txt", ""),
        ("./a:b", "./a:b", ""),
        ("hf://datasets/a", "hf://datasets/a", ""),
    ],
)
def test_the_short_form_of_a_dataset(dataset: str, path: str, config: str) -> None:
    assert parts_of(dataset) == (DatasetSpec(path, name=config),)


# ---- the command line


def test_the_schema_is_printed_with_every_setting_and_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == run_file_schema()
    assert set(schema["properties"]) == FIELDS
    assert schema["properties"]["seed"]["exclusiveMaximum"] == 2**63
    assert schema["$defs"]["Optimizer"]["properties"]["beta1"]["exclusiveMaximum"] == 1
    assert "gwtf" in schema["properties"]["router"]["enum"]
    described = [*schema["properties"].values(), *schema["$defs"]["Dataset"]["properties"].values()]
    assert all(setting.get("description") for setting in described)
    run_file_model().model_validate(PLAIN)


def test_a_right_run_is_checked_and_its_needs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    (tmp_path / "a.jsonl").write_text('{"id": 7, "body": "one"}\n')
    path.write_text(RUN_FILE + f'dataset = "{tmp_path}/a.jsonl"\n')
    assert main(["run", "check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "stage 1 (layers 0-2)" in printed and "column 'body'" in printed and "a hop carries" in printed
    assert main(["run", "check", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    run = read_run_file(path)
    assert [stage["layers"] for stage in report["stages"][1:]] == [[0, 3], [3, 6]]
    assert report["hop_bytes"] == run.activation_bytes == 2 * 32 * 128 * 4
    assert sum(stage["parameters"] for stage in report["stages"]) == report["parameters"]
    for stage in report["stages"]:
        assert stage["state_bytes"] == 16 * stage["parameters"] and stage["average_bytes"] == 4 * stage["parameters"]
    assert report["tokens_per_iteration"] == 2 * 2 * 32
    assert report["left_out"] == []


def test_an_average_is_told_in_the_bytes_of_its_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "body": "one"}\n')
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE + f'dataset = "{tmp_path}/a.jsonl"\nwire = {{ averages = "int8" }}\n')
    for stage in report_of(read_run_file(path), str(path))["stages"]:
        blocks = -(-stage["parameters"] // 64)
        assert stage["average_bytes"] == blocks * (64 + 2)


def test_an_average_of_copies_is_told_with_all_that_goes_with_it_and_what_then_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "body": "one"}\n')
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE + f'dataset = "{tmp_path}/a.jsonl"\nreplica_sync = 5\n')
    assert main(["run", "check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "copies of a stage are averaged every 5 iterations and differ in between" in printed
    assert "per average of two of copies" in printed and "per iteration" in printed
    for stage in report_of(read_run_file(path), str(path))["stages"]:
        assert stage["average_bytes"] == stage["state_bytes"] == 16 * stage["parameters"]


def test_what_is_left_out_of_a_mixtures_loss_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    model = 'model_type = "mixtral", vocab_size = 257, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 2, '
    model += "num_attention_heads = 2, num_key_value_heads = 2, num_local_experts = 4, max_position_embeddings = 64, "
    model += "router_aux_loss_coef = 0.02"
    (tmp_path / "a.txt").write_text("one")
    sizes = "sequence_length = 8\nmicrobatch_size = 1\nmicrobatches_per_data_peer = 1\n"
    path.write_text(f'run_id = "r"\nseed = 0\n{sizes}model = {{ {model} }}\ndataset = "text:{tmp_path}/a.txt"\n')
    assert main(["run", "check", str(path)]) == 0
    assert "left out: router_aux_loss_coef = 0.02: the experts' balance loss" in capsys.readouterr().out
    path.write_text(path.read_text() + "loss = { balance = 0.01 }\n")
    assert main(["run", "check", str(path)]) == 0
    assert "loss.balance = 0.01 adds each layer's own instead" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["run", "check"], ["data", "--new_run"]])
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("learning_rate = 1e-3", "beta1 = 1.0", "optimizer.beta1: expected a number, at least 0 and below 1, got 1.0"),
        ("seed = 0", f"seed = {2**70}", "seed: expected a whole number"),
        ("stages = 2", 'stages = 2\ndataset = "text:/nowhere/*.txt"', "dataset: text:/nowhere/*.txt: expected at least"),
        ("stages = 2", 'stages = 2\ndataset = "/nowhere"', "dataset: /nowhere: no such file or folder"),
        ('"tiny-llama"', '{ model_type = "nonsense" }', "model_config"),
    ],
)
def test_a_wrong_run_is_one_line_and_code_2(
    verb: list[str], old: str, new: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.replace(old, new))
    peer = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    flags = ["--initial_peers", peer] if verb[0] == "data" else []
    line = refusal(capsys, *verb, str(path), *flags)
    assert f"{path}: {named}" in line


def test_what_needs_no_model_is_judged_before_torch_and_hivemind_are_loaded(tmp_path: Path) -> None:
    """So a typing error costs a tenth of a second, and p2pd is not started for it."""
    path = tmp_path / "run.toml"
    heavy = "{'torch', 'hivemind'} & set(sys.modules)"
    code = f"import sys; from gwtf_p2p.cli.main import main; print(main(sys.argv[1:]), *{heavy})"
    for old, new in [("seed = 0", "seed = -1"), ("stages = 2", 'stages = 2\nrouter = "gwft"'), ("stages = 2", "sede = 2")]:
        path.write_text(RUN_FILE.replace(old, new))
        for verb in (["run", "check", str(path)], ["data", "--new_run", str(path)]):
            done = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True, check=True)
            assert done.stdout.split() == ["2"], done
            assert str(path) in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (
            "optimizer = { learning_rate = 1e-3, beta1 = 1.0 }",
            "optimizer.beta1: expected a number, at least 0 and below 1, got 1.0",
        ),
        (f"seed = {2**70}", "seed: expected a whole number, at least 0 and below 9223372036854775808"),
        ('router = "gwft"', "router: expected one of gwtf"),
        ("data_peers = 0", "data_peers: expected a whole number, at least 1"),
        ("total_iterations = -1", "total_iterations: expected a whole number, at least 0"),
        ("peers_per_stage = 0", "peers_per_stage: expected a whole number, at least 1"),
        ("optimizer = { epsilon = 0.0 }", "optimizer.epsilon: expected a number, above 0"),
        ("optimizer = { weight_decay = -1.0 }", "optimizer.weight_decay: expected a number, at least 0"),
        ("optimizer = { gradient_clip = -1.0 }", "optimizer.gradient_clip: expected a number, at least 0"),
        ("optimizer = { warmup_iterations = -1 }", "optimizer.warmup_iterations: expected a whole number, at least 0"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_before_a_p2pd_or_an_initial_peer_is_wanted(
    wrong: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run file of a public bug report has it; without an initial peer, so that what is outside is not even asked for."""
    lines = {line.split(" = ")[0]: line for line in SMALLEST.splitlines()}
    lines[wrong.split(" = ")[0]] = wrong
    path = tmp_path / "run.toml"
    path.write_text("\n".join(lines.values()))
    assert f"{path}: {named}" in refusal(capsys, "data", "--new_run", str(path))


def test_a_vocabulary_that_is_too_small_for_the_tokenizers_ids_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "hidden_size = 16, intermediate_size = 40, num_hidden_layers = 2, num_attention_heads = 4"
    sizes += ", max_position_embeddings = 64"
    model = f'{{ model_type = "llama", vocab_size = 30, {sizes} }}'
    text = RUN_FILE.replace('"tiny-llama"', model) + f'tokenizer = "{with_a_gap(tmp_path / "tokenizer", 90)}"\n'
    (tmp_path / "run.toml").write_text(text)
    line = refusal(capsys, "run", "check", str(tmp_path / "run.toml"))
    assert "vocab_size" in line and "91" in line and "got 30" in line
