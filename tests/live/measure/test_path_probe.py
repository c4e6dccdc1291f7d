"""A new path is measured with megabytes, also when it comes soon after another one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gwtf_p2p.live.measure import path_probe as link_probe
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.measure.path_probe import LinkProbe
from gwtf_p2p.protocol.wire.records import LinkSource, PathType
from tests.live.conftest import DEADLINE_S, StartPeer

pytestmark = pytest.mark.live


async def test_a_path_that_improves_right_after_its_probe_is_probed_again(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_probe, "LEAST_PAUSE_S", 0.5)
    one, other = await start_peer(), await start_peer()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    probes = LinkProbes(time.monotonic)
    prober = LinkProbe(one.rpc, probes, heard.put_nowait)
    LinkProbe(other.rpc, LinkProbes(time.monotonic), lambda report: None)  # takes them
    running = asyncio.ensure_future(prober.run())
    async with asyncio.timeout(DEADLINE_S):
        for path in (PathType.RELAYED, PathType.PUNCHED):
            probes.path_changed(other.id, path)
            assert probes.measurements() == []
            prober.path_changed(other.id, path, 0)
            assert (await heard.get())["path"] == path.value
            [link] = probes.measurements()
            assert (link.path, link.source, link.to) == (path, LinkSource.PROBE, other.id)
    running.cancel()
