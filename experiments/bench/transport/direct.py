"""Direct streams against p2pd's, in one run: CPU per GB and of a hop with its codec, goodput, and how long a hop takes.

    python -m experiments.bench.transport.direct [--gigabytes 1] [--rounds 200] [--json]

Two peers in two processes on loopback, each with its own p2pd. One data plane of theirs has direct streams, the other has not;
raw TLS is the same certificates on blocking sockets in threads. CPU is that of both processes and both p2pds. The ways take
turns. Exit code 1 when a bound is missed: CPU at most half of p2pd's, goodput at least 0.8 of raw TLS, hops no slower than
p2pd's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop

from experiments.bench.codecs import activation, cpu_ms_of
from gwtf_p2p.live.direct.certificate import context_for
from gwtf_p2p.live.direct.direct import DirectOptions, DirectStreams
from gwtf_p2p.live.libp2p.daemon import Daemon, running_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Header, Rpc
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.training.codecs.codec import Codec
from gwtf_p2p.training.codecs.table import CODECS

P2PD, DIRECT, RAW = "p2pd", "direct", "raw TLS"
STREAMS = (1, 2, 4)
PAYLOAD_BYTES, HOP_BYTES, PIECE_BYTES = 16 << 20, 64 << 10, 1 << 19
HOPS_A_TURN = 10
ROWS = HIDDEN = 1024
HOP_CODECS = ("float32", "bfloat16", "int8")
DEADLINE_S = 60.0
SILENT = b"\x00"


class Receiver:
    """Takes every payload and drops it."""

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": True}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        pass

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        pass

    def on_message(self, sender: PeerId, header: Header) -> Header:
        return {}

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        pass


@dataclass
class Peer:
    """One process: its p2pd, a data plane of each kind, and its certificate for raw TLS."""

    daemon: Daemon
    direct: DirectStreams
    planes: dict[str, Rpc]


async def start(stack: AsyncExitStack, initial: Sequence[str]) -> Peer:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gwtf-bench-"))
    identity = create_identity(Path(folder) / "identity.key")
    daemon = await stack.enter_async_context(running_daemon(P2POptions.on_this_machine(*initial), identity))
    direct = DirectStreams(identity, daemon.control_path, DirectOptions())
    planes = {P2PD: Rpc(daemon, RunId("bench-p2pd")), DIRECT: Rpc(daemon, RunId("bench-direct"), direct=direct)}
    for rpc in planes.values():
        await rpc.start(Receiver())
        stack.push_async_callback(rpc.stop)
    return Peer(daemon, direct, planes)


async def receive(initial: str) -> None:
    """The other process: serves until its input ends. Each line that comes is a certificate to serve raw TLS to."""
    async with AsyncExitStack() as stack:
        peer = await start(stack, [initial] if initial else [])
        said = {"peer": peer.daemon.peer_id, "maddrs": await peer.daemon.maddrs(), "p2pd": peer.daemon.pid}
        print(json.dumps({**said, "certificate": peer.direct._own.der.hex()}), flush=True)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            listening = socket.create_server(("127.0.0.1", 0))
            other = bytes.fromhex(line.decode())
            threading.Thread(target=serve_raw, args=(peer, other, listening), daemon=True).start()
            print(listening.getsockname()[1], flush=True)


def serve_raw(peer: Peer, other: bytes, listening: socket.socket) -> None:
    """Takes payloads on each connection, and answers each with a byte."""
    context = context_for(peer.direct._own, other, is_server=True)

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as stream:
            while True:
                left = np.empty(PAYLOAD_BYTES, np.uint8).data
                while len(left):
                    count = stream.recv_into(left)
                    if not count:
                        return
                    left = left[count:]
                stream.sendall(SILENT)

    while True:
        threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds that these processes have computed so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


Carry = Callable[[int, int], Awaitable[None]]
"""Carry payloads on so many streams, so many on each."""


def by_plane(rpc: Rpc, to: PeerId, payload: memoryview) -> Carry:
    async def one(count: int) -> None:
        for _ in range(count):
            await rpc.push(to, {"kind": "Forward"}, payload, DEADLINE_S)

    async def carry(streams: int, count: int) -> None:
        await asyncio.gather(*(one(count) for _ in range(streams)))

    return carry


def by_raw_tls(peer: Peer, other: bytes, port: int, payload: memoryview) -> Carry:
    context = context_for(peer.direct._own, other, is_server=False)

    def one(count: int) -> None:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as stream:
            for _ in range(count):
                for at in range(0, len(payload), PIECE_BYTES):
                    stream.sendall(payload[at : at + PIECE_BYTES])
                stream.recv(1)

    async def carry(streams: int, count: int) -> None:
        await asyncio.gather(*(asyncio.to_thread(one, count) for _ in range(streams)))

    return carry


async def compare(ways: dict[str, Carry], pids: Sequence[int], streams: int, total: int, turns: int = 4) -> dict[str, Any]:
    """CPU seconds per GB and GB/s of each way, which take turns."""
    count = max(1, total // PAYLOAD_BYTES // streams // turns)
    cpu, seconds = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for turn in range(turns + 1):
        for name, carry in ways.items():
            before_s, began_s = cpu_s(pids), time.perf_counter()
            await carry(streams, count if turn else 1)  # the first turn opens the streams
            if turn:
                cpu[name] += cpu_s(pids) - before_s
                seconds[name] += time.perf_counter() - began_s
    gigabytes = count * streams * turns * PAYLOAD_BYTES / 1e9
    found = {name: {"cpu_s_per_gb": cpu[name] / gigabytes, "gb_per_s": gigabytes / seconds[name]} for name in ways}
    return {
        "streams": streams,
        "ways": found,
        "cpu_ratio": cpu[DIRECT] / cpu[P2PD],
        "goodput_ratio": seconds[RAW] / seconds[DIRECT],
    }


async def hops(planes: dict[str, Rpc], to: PeerId, rounds: int, *, beside: bool) -> dict[str, Any]:
    """Median milliseconds of a gradient of 64 KiB; `beside`: while payloads of averages go to the same peer without a pause."""
    small, large = bytes(HOP_BYTES), bytes(PAYLOAD_BYTES)
    times: dict[str, list[float]] = {name: [] for name in planes}

    async def bulk(rpc: Rpc) -> None:
        while True:
            await rpc.push(to, {"kind": "average"}, large, DEADLINE_S)

    of_a_turn = HOPS_A_TURN if beside else 1  # alone they take turns hop by hop
    for turn in range(rounds // of_a_turn + 1):
        for name, rpc in planes.items():
            busy = [asyncio.ensure_future(bulk(rpc)) for _ in range(2 if beside else 0)]
            for at in range(of_a_turn + (2 if beside else 0)):
                began_s = time.perf_counter()
                await rpc.push(to, {"kind": "Backward"}, small, DEADLINE_S)
                if turn and (at > 1 or not beside):
                    times[name].append(time.perf_counter() - began_s)
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
    found = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
    return {"beside_bulk": beside, "ms": found, "ratio": found[DIRECT] / found[P2PD]}


def start_receiver(initial: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.bench.transport.direct", "--receive", initial]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def codec_hops(planes: dict[str, Rpc], to: PeerId, pids: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """CPU ms per MB of a tensor in float32: encoded, sent, received (both ends and both p2pds) and decoded."""
    tensor = activation(ROWS, HIDDEN)
    rows = []
    for name in HOP_CODECS:
        codec, megabytes = CODECS[name], tensor.nbytes / 1e6
        encoded = bytearray(codec.encode(tensor))
        ms = cpu_ms_of(partial(codec.encode, tensor), 10) + cpu_ms_of(partial(decoded, codec, encoded, tensor), 10)
        sent = dict.fromkeys(planes, 0.0)
        for _ in range(2):
            for plane, rpc in planes.items():
                began_s = cpu_s(pids)
                for _ in range(rounds):
                    await rpc.push(to, {"kind": "Forward"}, encoded, DEADLINE_S)
                sent[plane] += 1e3 * (cpu_s(pids) - began_s) / (2 * rounds)
        hop = {plane: (ms + sent[plane]) / megabytes for plane in planes}
        rows.append({"codec": name, "codec_ms_per_mb": ms / megabytes, "hop_ms_per_mb": hop, "ratio": hop[DIRECT] / hop[P2PD]})
    return rows


def decoded(codec: Codec, encoded: bytearray, like: torch.Tensor) -> torch.Tensor:
    return codec.decode(encoded, tuple(like.shape)).float()


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        peer = await start(stack, [])
        own = (await peer.daemon.maddrs())[0]
        process = start_receiver(own)
        stack.callback(process.communicate)
        assert process.stdout is not None
        assert process.stdin is not None
        other = json.loads(await asyncio.to_thread(process.stdout.readline))
        process.stdin.write(peer.direct._own.der.hex() + "\n")
        process.stdin.flush()
        port = int(await asyncio.to_thread(process.stdout.readline))
        to, payload = PeerId(other["peer"]), memoryview(np.random.default_rng(0).bytes(PAYLOAD_BYTES))
        async with asyncio.timeout(DEADLINE_S):
            while not peer.direct.is_open(to):
                await peer.planes[DIRECT].push(to, {"kind": "Forward"}, b"knock", DEADLINE_S)
        ways = {name: by_plane(rpc, to, payload) for name, rpc in peer.planes.items()}
        ways[RAW] = by_raw_tls(peer, bytes.fromhex(other["certificate"]), port, payload)
        pids = (os.getpid(), process.pid, peer.daemon.pid, other["p2pd"])
        total = int(arguments.gigabytes * 1e9)
        before = peer.planes[DIRECT].meter.direct_bytes
        rows = [await compare(ways, pids, streams, total) for streams in STREAMS]
        assert peer.planes[DIRECT].meter.direct_bytes > before, "the direct streams were not used"
        latency = [await hops(peer.planes, to, arguments.rounds, beside=beside) for beside in (False, True)]
        codecs = await codec_hops(peer.planes, to, pids, arguments.rounds)
    return {"streams": rows, "hops": latency, "codecs": codecs, "load": os.getloadavg()[0]}


def report(result: dict[str, Any]) -> None:
    for row in result["streams"]:
        for name, way in row["ways"].items():
            print(f"{row['streams']} streams, {name:7}: {way['cpu_s_per_gb']:.2f} CPU s/GB, {way['gb_per_s']:.2f} GB/s")
        print(f"  CPU direct / p2pd {row['cpu_ratio']:.2f}, goodput direct / raw TLS {row['goodput_ratio']:.2f}")
    for row in result["hops"]:
        where = "beside two bulk payloads" if row["beside_bulk"] else "alone"
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in row["ms"].items())
        print(f"64 KiB {where}: {times}; direct / p2pd {row['ratio']:.2f}")
    for row in result["codecs"]:
        hop = ", ".join(f"{name} {ms:.2f}" for name, ms in row["hop_ms_per_mb"].items())
        print(f"{row['codec']:8}: a hop takes {hop} CPU ms per MB of float32, of which the codec {row['codec_ms_per_mb']:.2f}")
    print(f"load average {result['load']:.1f}")


def holds(result: dict[str, Any]) -> bool:
    """All bounds of the head."""
    streams = all(row["cpu_ratio"] <= 0.5 and row["goodput_ratio"] >= 0.8 for row in result["streams"])
    return streams and all(row["ratio"] <= 1.0 for row in result["hops"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each way and number of streams")
    parser.add_argument("--rounds", type=int, default=200, help="hops of each way")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.receive is not None:
        uvloop.run(receive(flags.receive))
        return 0
    torch.set_num_threads(1)
    result = uvloop.run(measure(flags))
    print(json.dumps(result)) if flags.json else report(result)
    return 0 if holds(result) else 1


if __name__ == "__main__":
    raise SystemExit(main())
