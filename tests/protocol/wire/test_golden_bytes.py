"""The bytes of every message and record are those of the wire version: who changes one raises the other (`golden`)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from gwtf_p2p.protocol.wire import records
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, RunRecord
from tests.protocol.wire import golden

WRITTEN = golden.written()
COMMAND = "raise WIRE_VERSION, then run `python -m tests.protocol.wire.golden`"


def test_the_golden_bytes_are_of_this_wire_version() -> None:
    assert WRITTEN[golden.VERSION] == str(WIRE_VERSION), f"run `python -m {golden.__name__}`"


def test_every_message_and_record_kind_has_a_golden_line_and_no_line_is_left_over() -> None:
    kinds = {kind.__name__ for kind in (*golden.MESSAGES, *golden.RECORDS)} | {"Verdict", golden.VERSION}
    assert WRITTEN.keys() == kinds


@pytest.mark.parametrize("name", golden.lines())
def test_the_bytes_of_a_kind_change_only_with_the_wire_version(name: str) -> None:
    assert golden.lines()[name] == WRITTEN.get(name), f"the bytes of {name} have changed: {COMMAND}"


@pytest.mark.parametrize("kind", [*golden.MESSAGES, *golden.RECORDS], ids=lambda kind: kind.__name__)
def test_golden_bytes_read_back_as_what_was_written(kind: type) -> None:
    assert golden.read_back(kind.__name__, bytes.fromhex(WRITTEN[kind.__name__])) == golden.sample(kind)


def test_the_golden_run_record_leaves_no_field_at_its_default() -> None:
    """A field that is added must be given a value in `golden`, or a change of how it is written would not be seen."""
    sample, versions = golden.sample(RunRecord), ("schema_version", "wire_version")
    for settings in (sample, sample.wire, sample.optimizer):
        for f in fields(settings):
            assert f.name in versions or getattr(settings, f.name) != f.default, f.name


def test_the_command_refuses_to_change_bytes_under_a_version_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "FILE", tmp_path / "golden.txt")
    assert golden.write() == ""
    (tmp_path / "golden.txt").write_text((tmp_path / "golden.txt").read_text().replace("\nCommit ", "\nCommit 00"))
    assert golden.write() == f"raise WIRE_VERSION above {WIRE_VERSION} first: the bytes of Commit have changed"
    for module in (golden, records):
        monkeypatch.setattr(module, "WIRE_VERSION", WIRE_VERSION + 1)
    assert golden.write() == ""
    assert golden.written()[golden.VERSION] == str(WIRE_VERSION + 1)
