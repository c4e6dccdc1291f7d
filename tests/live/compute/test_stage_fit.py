"""A stage that does not fit into the memory that its peer may take is not taken, and that is said before anything is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.compute import stage_fit
from gwtf_p2p.live.compute.memory_errors import OutOfMemory
from gwtf_p2p.live.compute.stage_fit import watch_memory
from gwtf_p2p.live.compute.tensor_store import MemoryLimit
from gwtf_p2p.live.peer.assembly import Place, choose_place, fitted, held_as, memory_report, peer_settings
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.training.model.memory import stage_memory
from tests.training.swarm import LLAMA

ME = PeerId("me")
LARGE = {**LLAMA, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
RUN = replace(SmallRun().record(), model_config=LARGE, layer_split=((0, 5), (5, 6)))
SMALL, LARGER = stage_memory(RUN, 2), stage_memory(RUN, 1)


def test_a_stage_that_does_not_fit_is_not_taken() -> None:
    """The first stage needs a peer as much as the second one, and has five layers."""
    view = NetworkView.of([], RUN.stages, RUN.activation_bytes)
    config, fitting = fitted(PeerConfig("peer", moves=True, memory_bytes=LARGER.least - 1), RUN)
    assert list(fitting) == [2] and choose_place(config, RUN, view, ME) == Place(Stage(2))
    settings = peer_settings(config, RUN, Place(Stage(2)), ME)
    assert settings.stage_peer is not None and settings.stage_peer.fits == (2,), "nor does it move there later"
    both, _ = fitted(replace(config, memory_bytes=LARGER.least), RUN)
    assert both.fits == (1, 2)


@pytest.mark.parametrize("config", [PeerConfig("peer"), PeerConfig("peer", stage=1), PeerConfig("data")])
def test_where_none_fits_what_is_needed_and_what_is_allowed_are_said(config: PeerConfig) -> None:
    with pytest.raises(OutOfMemory, match=r"needed 0\.\d+ GB at least, --memory_gb allows 0\.1$") as refused:
        fitted(replace(config, memory_bytes=100_000_000), RUN)
    assert refused.value.exit_code == 6 and "\n" not in str(refused.value)


def test_what_is_kept_of_microbatches_is_bounded_by_what_is_left(tmp_path: Path) -> None:
    config = PeerConfig("peer", stage=2, capacity=64, memory=MemoryLimit(0, tmp_path), memory_bytes=SMALL.needed(3))
    config, fitting = fitted(config, RUN)
    held = held_as(config, fitting[Stage(2)])
    assert held.capacity == 3 and held.memory == MemoryLimit(3 * SMALL.microbatch, tmp_path)
    report = memory_report(held, fitting[Stage(2)].memory, Place(Stage(2)))
    assert report["needed_bytes"] == SMALL.needed(3) == report["allowed_bytes"]


async def test_a_peer_that_takes_more_than_it_may_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_fit, "LOOK_S", 0.0)
    with pytest.raises(OutOfMemory, match=r"--memory_gb allows 0\.001"):
        await watch_memory(1_000_000)
