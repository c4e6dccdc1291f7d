"""Contributions are part of a data peer's state: they step, are written, read and handed on with its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.peer.assembly import Place, make_compute
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.state.manifest import Snapshot
from gwtf_p2p.protocol.effects import Step
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.receipts import Receipt, ReceiptLine
from gwtf_p2p.training.compute.values import HeldGradient
from gwtf_p2p.training.state.checkpoint import load_checkpoint, save_checkpoint
from gwtf_p2p.training.state.tensors import CONTRIBUTIONS, WEIGHTS, export_state

ME, WORKER = PeerId("me"), PeerId("worker")
RUN = SmallRun().record()
RECEIPT = Receipt(ME, 0, 0, (ReceiptLine(DATA_STAGE, ME, 3, 30), ReceiptLine(Stage(1), WORKER, 3, 45, 1)))


def data_peer() -> Compute:
    return make_compute(PeerConfig("data"), RUN, Place(DATA_STAGE, 0))


async def after_one_step(compute: Compute) -> Compute:
    gradient = {name: parameter.detach() * 0.01 for name, parameter in compute.executor.part.parameters.items()}
    await compute.step(HeldGradient(gradient), Step(0, 1, 1.0, (RECEIPT,)))
    return compute


async def test_they_come_back_with_the_checkpoint_of_their_version(tmp_path: Path) -> None:
    first, second = await after_one_step(data_peer()), data_peer()
    try:
        reading = await first.read()
        save_checkpoint(tmp_path, RUN, DATA_STAGE, reading.state)
        await second.load(load_checkpoint(tmp_path, RUN, DATA_STAGE, 1))
        assert second.contributions == first.contributions and second.contributions.of[Stage(1), WORKER].microbatches == 3
    finally:
        first.close()
        second.close()


async def test_they_go_back_with_the_weights() -> None:
    compute = data_peer()
    try:
        before = export_state(compute.executor.part.parameters, compute.optimizer)
        await after_one_step(compute)
        assert compute.contributions.of
        await compute.load(before)
        assert not compute.contributions.of
    finally:
        compute.close()


async def test_a_newcomer_downloads_them_and_takes_none_that_are_not_whole(tmp_path: Path) -> None:
    donor, newcomer = await after_one_step(data_peer()), data_peer()
    try:
        snapshot = Snapshot(await donor.read(), tmp_path)
        downloaded = dict(snapshot.manifest.state_in(snapshot._scratch))
        wrong = {**downloaded, CONTRIBUTIONS: downloaded[CONTRIBUTIONS][:-1]}
        with pytest.raises(RemoteProtocolError, match="contributions"):
            await newcomer.load(wrong)
        weight = next(name for name in downloaded if name.startswith(WEIGHTS))
        with pytest.raises(RemoteProtocolError, match=weight):
            await newcomer.load({**downloaded, weight: downloaded[weight][:-1]}, only="weights")
        assert newcomer.optimizer.steps == 0 and not newcomer.contributions.of
        await newcomer.load(downloaded)
        assert newcomer.contributions == donor.contributions
    finally:
        donor.close()
        newcomer.close()
