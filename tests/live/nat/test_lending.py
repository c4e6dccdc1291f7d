"""What a public peer lends to strangers is what its user said, and is told to its user."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.live.libp2p.options import Lending
from gwtf_p2p.live.nat.circuit_relay import granted, start_public_relay
from tests.live.conftest import LOCAL

PUBLIC = replace(LOCAL, is_public=True)


def test_what_is_lent_is_said_in_words() -> None:
    assert Lending().words == (
        "it lends circuits to any libp2p program, of this run or not: 256 slots, 64 GiB each way and 24 h per circuit"
    )
    assert Lending(slots=0).words == "it lends no circuits"


@pytest.mark.live
async def test_a_stranger_gets_a_circuit_within_the_limits_and_none_where_none_is_lent() -> None:
    """p2pd does not ask who takes part in a run: whoever speaks libp2p gets a slot, so these limits are all that there is."""
    lender = await start_public_relay(replace(PUBLIC, lending=Lending(circuit_bytes=3 << 20)))
    budget = await granted(lender)
    await lender.stop()
    assert budget is not None and (budget.circuit_bytes, budget.circuit_s) == (3 << 20, 24 * 3600)
    other = await start_public_relay(replace(PUBLIC, lending=Lending(slots=0)))
    assert await granted(other) is None
    await other.stop()
