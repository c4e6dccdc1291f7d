"""What a public peer lends to strangers is what its user said, and is told to its user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.options import Lending
from gwtf_p2p.live.nat.circuit_relay import granted, is_generous, start_public_relay
from tests.live.conftest import LOCAL

PUBLIC = replace(LOCAL, is_public=True)


def test_what_is_lent_is_said_in_words() -> None:
    assert Lending().words == (
        "it lends circuits to any libp2p program, of this run or not: 256 slots, 64 GiB each way and 24 h per circuit"
    )
    assert Lending(slots=0).words == "it lends no circuits"


@pytest.mark.live
async def test_a_stranger_gets_a_circuit_within_the_limits_that_were_said() -> None:
    """p2pd does not ask who takes part in a run: whoever speaks libp2p gets a slot, so these limits are all that there is."""
    async with public_relay(Lending(circuit_bytes=3 << 20)) as lender:
        budget = await granted(lender)
    assert budget is not None and (budget.circuit_bytes, budget.circuit_s) == (3 << 20, 24 * 3600)


@pytest.mark.live
async def test_where_nothing_is_lent_a_stranger_gets_nothing_or_the_user_is_told_what(caplog: pytest.LogCaptureFixture) -> None:
    """Which of p2pd's two services answers is a race that a busy machine can lose at each of the starts; never in silence, and
    never for more than the stingy one grants."""
    async with public_relay(Lending(slots=0)) as other:
        budget = await granted(other)
    told = "this circuit relay ends circuits after" in caplog.text
    assert told == (budget is not None)
    assert budget is None or not is_generous(budget)


@asynccontextmanager
async def public_relay(lending: Lending) -> AsyncIterator[Daemon]:
    daemon = await start_public_relay(replace(PUBLIC, lending=lending))
    try:
        yield daemon
    finally:
        await daemon.stop()
