"""A run record on the disk is the one that was published; what is none, or is damaged, counts as none and ends nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gwtf_p2p.live.discovery.kept_runs import KeptRuns
from gwtf_p2p.live.discovery.signing import own
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from tests.protocol.wire.golden import sample

RUN: RunRecord = sample(RunRecord)


def test_a_run_is_found_beside_the_identity_and_beside_the_checkpoints(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "a.key")
    run = own(create_identity(tmp_path / "owner.key"), RUN)
    KeptRuns(identity, tmp_path / "disk").keep(run)
    assert KeptRuns(identity, None).read(RUN.run_id) == run, "without the checkpoints"
    other = create_identity(tmp_path / "b.key")
    assert KeptRuns(other, tmp_path / "disk").read(RUN.run_id) == run, "with a new identity"
    assert KeptRuns(other, None).read(RUN.run_id) is None
    assert KeptRuns(other, tmp_path / "disk").read(RunId("another")) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 60_000,
        lambda text: json.dumps({**json.loads(text), "wire_version": 99}),
        lambda text: json.dumps({**json.loads(text), "microbatch_size": -1}),
        lambda text: json.dumps({**json.loads(text), "signed": "AAAA"}),
        lambda text: json.dumps([text]),
    ],
)
def test_a_damaged_record_counts_as_none(change: object, tmp_path: Path) -> None:
    kept = KeptRuns(create_identity(tmp_path / "a.key"), tmp_path / "disk")
    run = own(create_identity(tmp_path / "owner.key"), RUN)
    kept.keep(run)
    for path in (tmp_path / "disk" / "run.json", tmp_path / "a.runs" / "run.json"):
        path.write_text(change(path.read_text()))  # type: ignore[operator]
    assert kept.read(RUN.run_id) is None
    kept.keep(run)
    assert kept.read(RUN.run_id) == run, "and the next peer that takes part mends it"
