"""Who is measured: a peer that may work, and nobody's line while it may not."""

from __future__ import annotations

import pytest

from gwtf_p2p.live.measure.bandwidth import measure_speed, serve_speed
from gwtf_p2p.protocol.core.line_cap import Line
from tests.live.conftest import DEADLINE_S, StartPeer

pytestmark = pytest.mark.live


async def test_a_peer_that_may_not_work_lets_nobody_spend_its_line(start_peer: StartPeer) -> None:
    """What is left is libp2p's echo, which p2pd answers by itself."""
    stranger, peer = await start_peer(), await start_peer()
    line, may = Line(), [False]
    await serve_speed(peer.daemon, line, lambda: may[0])
    assert (await measure_speed(stranger.daemon, peer.id, DEADLINE_S)).echoed
    assert line.total_bytes == 0
    may[0] = True
    assert not (await measure_speed(stranger.daemon, peer.id, DEADLINE_S)).echoed
    assert line.total_bytes > 0
