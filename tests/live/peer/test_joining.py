"""Getting into a swarm that is not there yet, or not whole, and not at all with a wrong clock."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.live.discovery import clock_skew as clock
from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.discovery.peer_cache import MOST, PeerCache
from gwtf_p2p.live.discovery.signing import own
from gwtf_p2p.live.libp2p.daemon import Daemon, DaemonFailed, NetworkUnreachable, start_daemon
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer import lifecycle
from gwtf_p2p.live.peer.config import ClockWrong, PeerConfig, RunMismatch, StartInterrupted
from gwtf_p2p.live.peer.join import join, keep_joined, unless_stopped
from gwtf_p2p.live.peer.lifecycle import run_peer
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.protocol.ids import RunId, Stage
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, PeerState, RunRecord, StageRecord
from tests.live.conftest import DEADLINE_S, LOCAL, daemons_in, sockets_in
from tests.live.peer.verbs import Peer, until

pytestmark = pytest.mark.live

RUN = RunId("joining")
NOBODY = "12D3KooWRahQcr9Awj8Jih9zivoS3f7A3W8RUsmXvj7cJ1NmQ4cK"
DEAD = f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}"


def identity_in(folder: Path, name: str) -> Identity:
    return create_identity(folder / f"{name}.key")


def options(*maddrs: str) -> P2POptions:
    return replace(LOCAL, initial_peers=parse_initial_peers(maddrs, {}))


def known(folder: Path, *maddrs: str) -> PeerCache:
    cache = PeerCache(identity_in(folder, "cached"), RUN)
    cache.note(maddrs)
    return cache


async def said(heard: asyncio.Queue[dict[str, Any]], name: str) -> dict[str, Any]:
    """The next report of this name; those of single steps stand between."""
    while (report := await heard.get())["name"] != name:
        assert report["name"] == "step"
    return report


async def joined(given: P2POptions, cache: PeerCache, timeout_s: float, heard: list[dict[str, Any]]) -> Any:
    return await join(start_daemon, given, cache, timeout_s, asyncio.Event(), heard.append)


async def test_peers_known_from_before_are_tried_when_no_initial_peer_answers(tmp_path: Path) -> None:
    other = await start_daemon(LOCAL)
    daemon = await joined(options(DEAD), known(tmp_path, *await other.maddrs()), 0.0, [])
    assert {peer.peer for peer in daemon.options.initial_peers} == {other.peer_id}
    await daemon.stop()
    await other.stop()


async def test_it_tries_on_until_somebody_answers_and_tells_the_reasons(tmp_path: Path) -> None:
    """The second try finds the peer that was not there at the first."""
    late: list[Any] = []
    heard: list[dict[str, Any]] = []

    async def start(given: P2POptions) -> Any:
        if not heard:
            return await start_daemon(given)
        late.append(await start_daemon(LOCAL))
        return await start_daemon(replace(given, initial_peers=parse_initial_peers(await late[0].maddrs(), {})))

    daemon = await join(start, options(DEAD), known(tmp_path), DEADLINE_S, asyncio.Event(), heard.append)
    [waiting] = heard
    assert waiting["name"] == "waiting"
    assert waiting["reasons"][0][0] == DEAD
    assert "Connection refused" in waiting["reasons"][0][1]
    await daemon.stop()
    await late[0].stop()


async def test_it_gives_up_when_its_time_is_over_or_it_is_told_to_stop(tmp_path: Path) -> None:
    cache = known(tmp_path)
    with pytest.raises(NetworkUnreachable, match="Connection refused"):
        await joined(options(DEAD), cache, 0.0, [])
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(NetworkUnreachable):
        await join(start_daemon, options(DEAD), cache, 3600.0, stop, lambda report: None)


def test_the_cache_keeps_the_newest_of_each_run_and_survives_a_broken_file(tmp_path: Path) -> None:
    mine = identity_in(tmp_path, "mine")
    cache = PeerCache(mine, RUN)
    cache.note(f"/ip4/127.0.0.1/tcp/{port}/p2p/{NOBODY}" for port in range(1, MOST + 9))
    cache.note([f"/ip4/127.0.0.1/tcp/9999/p2p/{mine.peer_id}"])
    again = PeerCache(mine, RUN)
    assert len(again.peers()) == MOST
    assert all(peer.peer == NOBODY for peer in again.peers())
    assert PeerCache(mine, RunId("other")).peers() == ()
    cache.path.write_text("{")
    assert PeerCache(mine, RUN).peers() == ()


async def test_two_halves_of_a_dht_are_one_when_somebody_knows_both(tmp_path: Path) -> None:
    """Two bootstraps started apart; records of one half are read in the other once a bootstrap pings its other one."""
    nodes = []
    for name, initial in (("a", None), ("b", None), ("writer", 0), ("reader", 1)):
        given = LOCAL if initial is None else options(*await nodes[initial][0].maddrs())
        identity = identity_in(tmp_path, name)
        daemon = await start_daemon(given, identity)
        nodes.append((daemon, await start_dht(daemon, identity, DhtOptions(RUN if initial is not None else None))))
    (a, _), (b, dht_b), (writer, dht_writer), (_, dht_reader) = nodes
    record = StageRecord(writer.peer_id, RUN, Stage(1), PeerState.ONLINE, 1)
    await dht_writer.publish_stage(record)
    assert await dht_reader.read_stages(RUN, [Stage(1)]) == []
    cache = known(tmp_path)
    healing = asyncio.ensure_future(keep_joined(b, dht_b, parse_initial_peers(await a.maddrs(), {}), cache))
    end = time.monotonic() + DEADLINE_S
    while not await dht_reader.read_stages(RUN, [Stage(1)]):
        assert time.monotonic() < end
        await dht_writer.publish_stage(record)
    assert {peer.peer for peer in cache.peers()} == {a.peer_id}
    healing.cancel()
    for daemon, dht in nodes:
        await dht.stop()
        await daemon.stop()


async def test_a_clock_that_is_a_minute_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        @staticmethod
        def time() -> float:
            return time.time() - 60.0

    monkeypatch.setattr(clock, "time", Wrong)
    other = await start_daemon(LOCAL, boot := identity_in(tmp_path, "boot"))
    dht = await start_dht(other, boot, DhtOptions())
    config = PeerConfig("peer", options(*await other.maddrs()), tmp_path / "peer.key", run_id=RUN)
    with pytest.raises(ClockWrong, match=r"clock is 60\.\d s behind") as error:
        await run_peer(config, lambda report: None, asyncio.Event())
    assert error.value.exit_code == 6
    await dht.stop()
    await other.stop()


async def test_a_run_of_another_wire_version_is_refused_by_both_numbers(tmp_path: Path) -> None:
    """It is there, so "no such run" would be wrong; the command line prints this line and ends with 5."""
    other = await start_daemon(LOCAL, boot := identity_in(tmp_path, "boot"))
    dht = await start_dht(other, boot, DhtOptions(RUN))
    record = RunRecord(RUN, {"hidden_size": 64}, ((0, 2),), 7, 32, 4, 8, wire_version=WIRE_VERSION + 1)
    assert await dht.publish_run(own(boot, record))
    config = PeerConfig("peer", options(*await other.maddrs()), tmp_path / "peer.key", run_id=RUN)
    both = f"run joining: .*this peer speaks {WIRE_VERSION}, the record says {WIRE_VERSION + 1}$"
    with pytest.raises(RunMismatch, match=both) as error:
        await run_peer(config, lambda report: None, asyncio.Event())
    assert error.value.exit_code == 5
    await dht.stop()
    await other.stop()


async def test_a_peer_whose_p2pd_dies_starts_again_with_another(tmp_path: Path) -> None:
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    stop = asyncio.Event()
    running = asyncio.ensure_future(run_peer(PeerConfig("bootstrap", LOCAL, tmp_path / "a.key"), heard.put_nowait, stop))
    async with asyncio.timeout(DEADLINE_S):
        first = await said(heard, "started")
        os.kill(first["p2pd"], signal.SIGKILL)
        await said(heard, "restarting")
        second = await said(heard, "started")
    assert second["peer"] == first["peer"]
    assert second["p2pd"] != first["p2pd"]
    stop.set()
    await running


async def test_a_start_that_waits_for_a_dead_p2pd_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for an answer of p2pd alone would wait for ever."""
    monkeypatch.setattr(lifecycle, "_ENDS_ITSELF_S", 0.1)
    other = await start_daemon(LOCAL, boot := identity_in(tmp_path, "boot"))
    dht = await start_dht(other, boot, DhtOptions())
    config = PeerConfig("peer", options(*await other.maddrs()), tmp_path / "peer.key", run_id=RUN)
    lives, heard = asyncio.Queue[int](), asyncio.Queue[dict[str, Any]]()

    async def wait_for_ever(config: PeerConfig, network: Network, *rest: object) -> None:
        lives.put_nowait(network.daemon.pid)
        await asyncio.Event().wait()

    running = asyncio.ensure_future(run_peer(config, heard.put_nowait, asyncio.Event(), take_part=wait_for_ever))
    async with asyncio.timeout(DEADLINE_S):
        os.kill(first := await lives.get(), signal.SIGKILL)
        while (await heard.get())["name"] != "restarting":
            pass
        assert await lives.get() != first
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await dht.stop()
    await other.stop()


async def test_a_bootstrap_serves_though_the_others_are_down_and_it_lists_itself(tmp_path: Path) -> None:
    """As when it restarts with the list that everybody has."""
    identity, heard, stop = identity_in(tmp_path, "boot"), asyncio.Queue[dict[str, Any]](), asyncio.Event()
    given = options(DEAD, f"/ip4/127.0.0.1/tcp/9/p2p/{identity.peer_id}")
    running = asyncio.ensure_future(run_peer(PeerConfig("bootstrap", given, identity.path), heard.put_nowait, stop))
    async with asyncio.timeout(DEADLINE_S):
        await said(heard, "started")
    stop.set()
    await running


@pytest.mark.parametrize("p2pd_ends_too", [True, False])
async def test_told_to_stop_while_p2pd_starts_is_no_failure_of_p2pd(p2pd_ends_too: bool) -> None:
    """Ctrl+C reaches p2pd as well as long as it has no process group of its own, and either may act on it first."""
    stop = asyncio.Event()

    async def start() -> Daemon:
        stop.set()
        if p2pd_ends_too:
            raise DaemonFailed("p2pd does not start")
        await asyncio.Event().wait()
        raise AssertionError("cancelled before")

    with pytest.raises(StartInterrupted) as error:
        await unless_stopped(start(), stop)
    assert error.value.exit_code == 130


async def test_a_start_that_is_interrupted_leaves_no_p2pd(tmp_path: Path, runtime_dir: Path) -> None:
    stop = asyncio.Event()
    config = PeerConfig("bootstrap", LOCAL, identity_in(tmp_path, "own").path)
    running = asyncio.ensure_future(run_peer(config, lambda report: None, stop))
    async with asyncio.timeout(DEADLINE_S):
        while not daemons_in(runtime_dir):  # noqa: ASYNC110 (a process of its own has no event to tell)
            await asyncio.sleep(0)
    stop.set()
    with pytest.raises(StartInterrupted):
        await running
    assert not sockets_in(runtime_dir)


# ---- where a newcomer goes

NEWCOMERS = """
run_id = "newcomers"
seed = 0
stages = 2
model = "tiny-llama"
dataset = "stdlib"
sequence_length = 32
microbatch_size = 1
microbatches_per_data_peer = 4
"""


@pytest.mark.slow  # half a minute on a free machine
def test_a_newcomer_does_not_count_peers_that_have_died_a_moment_ago(start: Callable[..., Peer], tmp_path: Path) -> None:
    """By their records, which live on for half a minute, stage 1 has two peers and stage 2 has one."""
    (tmp_path / "run.toml").write_text(NEWCOMERS)
    there = ["--initial_peers", until(start("bootstrap"), "started")["maddrs"][0]]
    data = start("data", "--new_run", str(tmp_path / "run.toml"), *there)
    until(data, "started")
    first, second, _ = (start("peer", "--run_id", "newcomers", "--stage", stage, *there) for stage in ("1", "1", "2"))
    for peer in (first, second):
        until(peer, "stepped")
    first.kill()
    second.kill()
    until(data, "peer_lost")
    until(data, "peer_lost")
    newcomer = start("peer", "--run_id", "newcomers", *there)
    assert until(newcomer, "memory")["stage"] == 1
