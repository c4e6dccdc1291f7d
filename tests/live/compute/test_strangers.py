"""What those that are no members of an average say to it."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from gwtf_p2p.live.compute.all_reduce import KIND, Averager, AveragingFailed, AveragingGroup
from gwtf_p2p.live.rpc.api import FailureKind, Header, PushFailed
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.training.compute.values import HeldGradient

ME, OTHER, OUTSIDER = PeerId("me"), PeerId("other"), PeerId("outsider")


class Unreachable:
    """A data plane on which every push fails."""

    peer_id = ME

    def add_service(self, kind: str, service: Any) -> None: ...

    async def push(self, to: PeerId, header: Header, payload: bytes, deadline_s: float, **how: Any) -> None:
        raise PushFailed(to, FailureKind.UNREACHABLE, "nobody is there")


async def test_an_offer_of_an_outsider_does_not_end_the_average_that_it_names() -> None:
    averager = Averager(cast(Any, Unreachable()))
    refused = averager.on_offer(OUTSIDER, {"kind": KIND, "group": "g", "phase": "part", "batch": 0}, 64)
    assert not refused["accepted"]
    group = AveragingGroup("g", (ME, OTHER), (1.0, 1.0))
    with pytest.raises(AveragingFailed):  # nobody is there: an ordinary failure, of which the outsider is no part
        await averager.average(group, HeldGradient({"w": torch.ones(8)}), 0.1)
