"""What a peer is put together from is checked before it joins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.compute.tensor_store import MemoryLimit
from gwtf_p2p.live.measure.join_times import JoinTimes
from gwtf_p2p.live.peer.assembly import Place, check_config, make_compute, peer_settings
from gwtf_p2p.live.peer.config import PeerConfig, RunMismatch
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.live.peer.reporting import Reporting
from gwtf_p2p.live.peer.running_peer import start_running
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.protocol.wire.records import EvaluationSpec, WeightsSpec
from gwtf_p2p.training.data.local_files import OF_DATA_PEERS, OF_STAGE_PEERS, local_names, refuse_unasked

ME = PeerId("me")
RUN = SmallRun().record()
ONE_MICROBATCH = 2 * (RUN.activation_bytes + RUN.gradient_bytes)


@pytest.mark.parametrize("name", ["activations", "gradients", "averages"])
def test_a_peer_that_does_not_know_a_codec_cannot_take_part(name: str) -> None:
    """A newer build may have others: the run is refused for the codec's name, not for what comes of its bytes."""
    run = replace(RUN, wire=replace(RUN.wire, **{name: "int2"}))
    with pytest.raises(RunMismatch, match=rf"wire\.{name}: .*'int2'") as refused:
        check_config(PeerConfig("peer"), run)
    assert refused.value.exit_code == 5


def test_a_run_whose_averages_of_copies_go_with_nothing_is_refused_by_whoever_joins() -> None:
    """Its record is a stranger's, who may have a newer build."""
    run = replace(RUN, replica_sync=2, checkpoint_every=2)
    check_config(PeerConfig("peer"), run)
    with pytest.raises(RunMismatch, match=r"wire\.averages: expected float32 with replica_sync = 2"):
        check_config(PeerConfig("peer"), replace(run, wire=replace(RUN.wire, averages="int8")))


def test_a_stage_peer_that_could_not_keep_one_microbatch_is_told_so(tmp_path: Path) -> None:
    """It would refuse everything. What it spills, it can keep; a data peer refuses nothing."""
    short, enough = MemoryLimit(ONE_MICROBATCH - 1), MemoryLimit(ONE_MICROBATCH)
    with pytest.raises(InputError, match="--max_kept_gb"):
        peer_settings(PeerConfig("peer", memory=short), RUN, Place(Stage(1)), ME)
    peer_settings(PeerConfig("peer", memory=enough), RUN, Place(Stage(1)), ME)
    peer_settings(PeerConfig("peer", memory=MemoryLimit(short.limit_bytes, tmp_path)), RUN, Place(Stage(1)), ME)
    peer_settings(PeerConfig("data", memory=short), RUN, Place(DATA_STAGE, 0), ME)


@pytest.mark.parametrize("path", ["text:/home/me/*.txt", "~/letters", "/etc"])
def test_files_of_this_machine_are_read_only_where_its_user_has_said_so(path: str) -> None:
    """The run record comes from a stranger."""
    run = replace(RUN, dataset=path)
    with pytest.raises(InputError, match="--dataset") as refused:
        make_compute(PeerConfig("data"), run, Place(DATA_STAGE, 0))
    assert path in str(refused.value)
    refuse_unasked(run, (path,), OF_DATA_PEERS)
    refuse_unasked(replace(RUN, dataset=(DatasetSpec(), DatasetSpec("owner/name"))), (), OF_DATA_PEERS)


@pytest.mark.parametrize(
    ("changes", "flag", "by_stage_peers"),
    [
        ({"weights": WeightsSpec("~/models/mine")}, "--allow_path", True),
        ({"weights": WeightsSpec("~nobody-here/models")}, "--allow_path", True),
        ({"tokenizer": "/home/me/tokenizer"}, "--allow_path", False),
        ({"dataset": (DatasetSpec("json", data_files=("letters/*.jsonl",)),)}, "--dataset", False),
        ({"evaluation": EvaluationSpec(every=1, dataset="text:/home/me/*.txt")}, "--dataset", False),
    ],
)
def test_whatever_a_run_names_is_read_here_only_where_the_user_has_said_so(
    changes: dict[str, Any], flag: str, by_stage_peers: bool
) -> None:
    """Weights, tokenizers and what is evaluated on as well; a stage peer reads weights alone."""
    run = replace(RUN, **changes)
    with pytest.raises(InputError, match=f"^{flag}: "):
        make_compute(PeerConfig("data"), run, Place(DATA_STAGE, 0))
    refuse_unasked(run, local_names(run), OF_DATA_PEERS)
    if by_stage_peers:
        with pytest.raises(InputError, match=f"^{flag}: "):
            make_compute(PeerConfig("peer"), run, Place(Stage(1)))
    else:
        refuse_unasked(run, (), OF_STAGE_PEERS)


@pytest.mark.parametrize(
    "pattern", ["/etc/*.json", "../letters.jsonl", "a/../../b.csv", "~/x.txt", "file:///etc/x.json", "C:/x.csv"]
)
def test_files_of_a_dataset_are_inside_it(pattern: str) -> None:
    with pytest.raises(InputError, match=r"data_files: expected patterns of files inside \./mine"):
        DatasetSpec("./mine", data_files=(pattern,)).validate("run.toml", "dataset")
    DatasetSpec("./mine", data_files=("a/*.jsonl", "**/b..c.csv")).validate("run.toml", "dataset")


async def test_a_model_that_this_installation_does_not_know_is_a_mismatch_whatever_its_memory() -> None:
    """How much memory it takes nobody can say here: what the peer is told is that the versions differ."""
    there = replace(RUN.fingerprint, versions={"transformers": "9.0.0", "torch": "9.0"})
    run = replace(RUN, model_config={**RUN.model_config, "model_type": "of-tomorrow"}, fingerprint=there)
    network = cast(Network, SimpleNamespace(orders=()))  # nothing of it is asked before the model is checked
    with pytest.raises(RunMismatch, match=r"transformers 9\.0\.0 there and .* here") as refused:
        await start_running(PeerConfig("peer", memory_bytes=10**12), run, network, Reporting(lambda report: None, JoinTimes()))
    assert refused.value.exit_code == 5
