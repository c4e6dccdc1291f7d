"""Records survive the wire, and what strangers send is checked field by field."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.peer.own_record import TOP_LINKS
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import (
    MAX_RECORD_BYTES,
    LinkMeasurement,
    LinkSource,
    OptimizerSpec,
    PathType,
    PeerState,
    RunRecord,
    StageRecord,
    Timing,
    WireSpec,
    decode_run,
    decode_stage,
    encode,
)

RUN = RunRecord(
    run_id=RunId("r"),
    model_config={"model_type": "llama", "hidden_size": 64},
    layer_split=((0, 2), (2, 4)),
    seed=1,
    sequence_length=16,
    microbatch_size=2,
    microbatches_per_data_peer=4,
)

seconds = st.floats(0, 1e6)
links = st.builds(
    LinkMeasurement,
    to=st.text(min_size=1, max_size=52).map(PeerId),
    round_trip_s=seconds,
    bandwidth_bytes_per_s=seconds,
    source=st.sampled_from(LinkSource),
    samples=st.integers(0, 1000),
    age_s=seconds,
    path=st.sampled_from(PathType),
)
records = st.builds(
    StageRecord,
    peer=st.text(min_size=1, max_size=52).map(PeerId),
    run_id=st.just(RunId("r")),
    stage=st.integers(0, 64).map(Stage),
    state=st.sampled_from(PeerState),
    capacity=st.integers(0, 1000),
    forward=st.none() | st.builds(Timing, seconds, st.integers(0, 100), seconds),
    links=st.lists(links, max_size=4).map(tuple),
    flows_held=st.dictionaries(st.text(max_size=8), st.integers(0, 9), max_size=3),
    sequence_number=st.integers(0, 2**40),
)


@given(records)
def test_a_stage_record_survives_the_wire(record: StageRecord) -> None:
    assert decode_stage(encode(record)) == record


def test_a_run_record_survives_the_wire() -> None:
    run = dataclasses.replace(RUN, optimizer=OptimizerSpec(learning_rate=0.5, schedule="cosine", total_iterations=9))
    assert decode_run(encode(run)) == run


def test_unknown_fields_are_ignored() -> None:
    plain = msgpack.unpackb(encode(RUN))
    assert decode_run(msgpack.packb({**plain, "colour": "green"})) == RUN


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": "one"}, "seed"),
        ({"seed": True}, "seed"),
        ({"layer_split": [[0, 2, 3]]}, r"layer_split\[0\]"),
        ({"optimizer": 5}, "optimizer"),
        ({"wire_version": 99}, "wire_version"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], named: str) -> None:
    plain = msgpack.unpackb(encode(RUN))
    with pytest.raises(RemoteProtocolError, match=named):
        decode_run(msgpack.packb({**plain, **change}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb({}), b"x" * (MAX_RECORD_BYTES + 1)])
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_stage(data)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        decode_stage(data)


def test_a_record_with_the_most_links_is_under_the_bound() -> None:
    link = LinkMeasurement(PeerId("Q" * 52), 0.123456789, 123456789.123, LinkSource.TRAFFIC, 16, 12.345)
    record = StageRecord(
        peer=PeerId("Q" * 52),
        run_id=RunId("r" * 64),
        stage=Stage(12),
        state=PeerState.ONLINE,
        capacity=4,
        links=(link,) * TOP_LINKS,
        flows_held={"Q" * 52: 4},
    )
    assert len(encode(record)) <= MAX_RECORD_BYTES


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"microbatch_size": 0}, "microbatch_size"),
        ({"run_id": "has a space"}, "run_id"),
        ({"layer_split": ()}, "layer_split"),
        ({"wire": WireSpec(gradients="")}, "wire.gradients"),
        ({"recovery": "none"}, "recovery"),
        ({"optimizer": OptimizerSpec(learning_rate=0)}, "learning_rate"),
    ],
)
def test_a_run_out_of_range_is_refused_by_field(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        dataclasses.replace(RUN, **change).validate()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wire", "named"),
    [(WireSpec(activations="int3"), "wire.activations"), (WireSpec(averages="int4"), "wire.averages")],
)
def test_a_format_that_this_version_does_not_know_is_no_fault_of_the_record(wire: WireSpec, named: str) -> None:
    """A newer peer may know it: the record is read, and whoever is to take part says what it lacks."""
    run = dataclasses.replace(RUN, wire=wire)
    assert decode_run(encode(run)) == run
    with pytest.raises(InputError, match=named):
        wire.validate("my.run.toml")


def test_each_direction_has_the_bytes_of_its_format() -> None:
    values = RUN.boundary_values
    assert values % 64 == 0, "whole blocks"
    run = dataclasses.replace(RUN, wire=WireSpec("int4", "int8"))
    assert run.activation_bytes == values // 2 + 2 * values // 64
    assert run.gradient_bytes == values + 2 * values // 64


def test_runs_that_cannot_train_together_have_different_hashes() -> None:
    assert RUN.model_hash == dataclasses.replace(RUN, dataset="other").model_hash
    assert RUN.model_hash != dataclasses.replace(RUN, seed=2).model_hash
    assert RUN.model_hash != dataclasses.replace(RUN, layer_split=((0, 1), (1, 4))).model_hash


def test_of_several_records_of_a_peer_the_newest_counts() -> None:
    old = StageRecord(PeerId("a"), RunId("r"), Stage(1), PeerState.ONLINE, 1, sequence_number=1)
    new = dataclasses.replace(old, state=PeerState.DRAINING, sequence_number=2)
    assert NetworkView.of([new, old], 1, 1000).peers_of_stage(Stage(1)) == ()
    assert NetworkView.of([old], 1, 1000).peers_of_stage(Stage(1)) == (PeerId("a"),)


@pytest.mark.parametrize(
    ("before", "data_peers", "iteration", "expected"),
    [
        ((), 3, 10, ((10, 3),)),
        ((), 3, 0, ()),
        (((25, 1),), 2, 10, ((10, 1),)),
        (((25, 1),), 2, 25, ((25, 1),)),
        (((25, 1),), 2, 40, ((25, 1), (40, 2))),
        (((25, 2),), 2, 40, ((40, 2),)),
        (((5, 1), (9, 3)), 2, 12, ((5, 1), (9, 3), (12, 2))),
    ],
)
def test_how_many_data_peers_there_were_until_an_iteration(
    before: tuple[tuple[int, int], ...], data_peers: int, iteration: int, expected: tuple[tuple[int, int], ...]
) -> None:
    run = dataclasses.replace(RUN, data_peers_before=before, data_peers=data_peers)
    assert run.data_peers_until(iteration) == expected
