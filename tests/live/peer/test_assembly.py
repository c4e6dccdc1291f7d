"""What a peer is put together from is checked before it joins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.compute.tensor_store import MemoryLimit
from gwtf_p2p.live.peer.assembly import Place, check_config, make_compute, peer_settings
from gwtf_p2p.live.peer.config import PeerConfig, RunMismatch
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.training.data.files import refuse_unasked

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
    refuse_unasked(run.dataset, (path,))
    refuse_unasked((DatasetSpec(), DatasetSpec("owner/name")), ())
