"""What does one hop cost? A tensor through our data plane against the same bytes over hivemind's bare RPC, in one run.

    python experiments/bench/hop.py [--rounds 60] [--kills 3] [--noise] [--json]

Two peers in two processes on loopback, each with its own p2pd, both on uvloop; ours and hivemind's share the two daemons and
their connection. One hop is tensor -> bytes -> libp2p -> tensor, from the start of the push until the sender knows that it
arrived. Of hivemind's ways (unary call; stream of 64 KiB, 256 KiB or 1 MiB messages) the quickest of each size counts, chosen
before; then the two alternate (ours, hivemind's, ours, ...), and medians are compared. `--kills` times a third peer is killed
with SIGKILL, and the time until `on_watch_broken` is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import uvloop
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto.runtime_pb2 import ExpertRequest, ExpertResponse

from gwtf_p2p.live.libp2p.daemon import Daemon, running_daemon
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Header, Rpc
from gwtf_p2p.protocol.ids import PeerId, RunId

KIB = 1 << 10
SIZES = (64 * KIB, 1 << 20, 4 << 20, 16 << 20)
BARE_CHUNKS = {"unary": 0, "stream of 64 KiB": 64 * KIB, "stream of 256 KiB": 256 * KIB, "stream of 1 MiB": 1 << 20}
UNARY_LIMIT = 2 << 20
RUN = RunId("bench-hop")
DEADLINE_S = 30.0

Hop = Callable[[torch.Tensor], Awaitable[None]]


class Receiver:
    """Takes every payload and makes a tensor of it."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0)
        self.broken: asyncio.Queue[float] = asyncio.Queue()

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": True}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        self.tensor = torch.frombuffer(payload, dtype=torch.float32)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        pass

    def on_message(self, sender: PeerId, header: Header) -> Header:
        return {}

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        self.broken.put_nowait(time.perf_counter())

    # hivemind's way: protobuf messages

    async def rpc_unary(self, request: ExpertRequest, context: P2PContext) -> ExpertResponse:
        self.tensor = torch.from_numpy(np.frombuffer(bytearray(request.metadata), np.float32))
        return ExpertResponse()

    async def rpc_stream(self, requests: AsyncIterator[ExpertRequest], context: P2PContext) -> AsyncIterator[ExpertResponse]:
        """Answers when all is there, and leaves the end to the client: a server that ends first can lose its answer."""
        pieces: list[bytes] = []
        due = None
        async for request in requests:
            due = int(request.uid) if due is None else due
            pieces.append(request.metadata)
            if sum(map(len, pieces)) == due:
                self.tensor = torch.from_numpy(np.frombuffer(bytearray().join(pieces), np.float32))
                yield ExpertResponse()


async def receive(options: P2POptions) -> None:
    """The other process: serves until its input ends."""
    async with running_daemon(options) as daemon:
        receiver, rpc = Receiver(), Rpc(daemon, RUN)
        await rpc.start(receiver)
        await daemon.p2p.add_protobuf_handler("unary", receiver.rpc_unary, ExpertRequest)
        await daemon.p2p.add_protobuf_handler(
            "stream", receiver.rpc_stream, ExpertRequest, stream_input=True, stream_output=True
        )
        print(json.dumps([daemon.peer_id, *await daemon.maddrs()]), flush=True)
        ended = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(ended), sys.stdin)
        await ended.read()
        await rpc.stop()


@dataclass(frozen=True)
class Row:
    """One size. Times are medians; `ratio` is ours / hivemind's."""

    size_bytes: int
    ours_ms: float
    ours_bytes_per_s: float
    bare_ms: float
    bare_bytes_per_s: float
    bare: str
    ratio: float


def hops(daemon: Daemon, rpc: Rpc, peer: PeerId) -> dict[str, Hop]:
    """Our way and hivemind's, each from a tensor here to a tensor there."""
    peer_id, p2p = PeerID.from_base58(peer), daemon.p2p

    async def ours(tensor: torch.Tensor) -> None:
        await rpc.push(peer, {"kind": "Forward"}, tensor.numpy().data.cast("B"), DEADLINE_S)

    async def unary(tensor: torch.Tensor) -> None:
        await p2p.call_protobuf_handler(peer_id, "unary", ExpertRequest(metadata=tensor.numpy().tobytes()), ExpertResponse)

    def stream(chunk: int) -> Hop:
        return lambda tensor: bare_stream(p2p, peer_id, tensor, chunk)

    return {"ours": ours, "unary": unary, **{name: stream(chunk) for name, chunk in BARE_CHUNKS.items() if chunk}}


async def bare_stream(p2p: P2P, peer: PeerID, tensor: torch.Tensor, chunk: int) -> None:
    data = tensor.numpy().data.cast("B")
    answered = asyncio.Event()

    async def messages() -> AsyncIterator[ExpertRequest]:
        for start in range(0, len(data), chunk):
            yield ExpertRequest(uid=str(len(data)), metadata=bytes(data[start : start + chunk]))
        await answered.wait()

    responses = await p2p.iterate_protobuf_handler(peer, "stream", messages(), ExpertResponse)
    await anext(responses)
    answered.set()
    async for _ in responses:
        pass


async def seconds_of(hop: Hop, tensor: torch.Tensor) -> float:
    start_s = time.perf_counter()
    await hop(tensor)
    return time.perf_counter() - start_s


async def compare(ways: dict[str, Hop], size: int, rounds: int) -> Row:
    tensor = torch.randn(size // 4, generator=torch.Generator().manual_seed(size))
    trials = {}
    for name in BARE_CHUNKS:
        if name != "unary" or size <= UNARY_LIMIT:
            trials[name] = statistics.median([await seconds_of(ways[name], tensor) for _ in range(8)])
    bare = min(trials, key=lambda name: trials[name])
    await ways["ours"](tensor)
    times: dict[str, list[float]] = {"ours": [], bare: []}
    for _ in range(rounds):
        for name, samples in times.items():
            samples.append(await seconds_of(ways[name], tensor))
    ours_s, bare_s = statistics.median(times["ours"]), statistics.median(times[bare])
    return Row(size, ours_s * 1e3, size / ours_s, bare_s * 1e3, size / bare_s, bare, ours_s / bare_s)


async def compare_calls(daemon: Daemon, rpc: Rpc, peer: PeerId, rounds: int) -> tuple[float, float]:
    """Milliseconds of a call without content: ours, hivemind's unary."""
    peer_id = PeerID.from_base58(peer)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        start_s = time.perf_counter()
        await rpc.call(peer, {}, DEADLINE_S)
        middle_s = time.perf_counter()
        await daemon.p2p.call_protobuf_handler(peer_id, "unary", ExpertRequest(), ExpertResponse)
        times[0].append(middle_s - start_s)
        times[1].append(time.perf_counter() - middle_s)
    return statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3


def start_receiver(arguments: list[str]) -> tuple[subprocess.Popen[str], PeerId, list[str]]:
    command = [sys.executable, __file__, "--receive", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    peer, *maddrs = json.loads(process.stdout.readline())
    return process, PeerId(peer), maddrs


async def time_to_notice(rpc: Rpc, receiver: Receiver, arguments: list[str]) -> float:
    """Milliseconds from SIGKILL of a peer's process to the callback."""
    process, peer, _ = await asyncio.to_thread(start_receiver, arguments)
    rpc.watch(peer)
    for _ in range(3):  # the watch opens meanwhile
        await rpc.call(peer, {}, DEADLINE_S)
    start_s = time.perf_counter()
    process.kill()
    noticed_s = await receiver.broken.get()
    process.communicate()
    return (noticed_s - start_s) * 1e3


async def send(arguments: argparse.Namespace) -> dict[str, Any]:
    noise = ["--noise"] if arguments.noise else []
    process, peer, maddrs = await asyncio.to_thread(start_receiver, noise)
    try:
        async with running_daemon(options_of(maddrs, arguments.noise)) as daemon:
            receiver, rpc = Receiver(), Rpc(daemon, RUN)
            await rpc.start(receiver)
            ways = hops(daemon, rpc, peer)
            rows = [await compare(ways, size, max(10, arguments.rounds // (1 + size // (4 << 20)))) for size in SIZES]
            ours_ms, bare_ms = await compare_calls(daemon, rpc, peer, 5 * arguments.rounds)
            own = [*noise, "--initial_peer", (await daemon.maddrs())[0]]
            notices = [await time_to_notice(rpc, receiver, own) for _ in range(arguments.kills)]
            await rpc.stop()
    finally:
        process.communicate()
    calls = {"ours_ms": ours_ms, "bare_ms": bare_ms}
    return {"hops": [asdict(row) for row in rows], "call": calls, "kill_to_notice_ms": notices}


def options_of(initial: list[str], noise: bool) -> P2POptions:
    return replace(P2POptions.on_this_machine(*initial), noise=noise)


def report(result: dict[str, Any]) -> None:
    print(f"{'bytes':>9} {'ours ms':>9} {'MB/s':>7} {'bare ms':>9} {'MB/s':>7} {'ratio':>6}  quickest bare RPC")
    for row in result["hops"]:
        ours, bare = row["ours_bytes_per_s"] / 1e6, row["bare_bytes_per_s"] / 1e6
        figures = f"{row['ours_ms']:9.2f} {ours:7.0f} {row['bare_ms']:9.2f} {bare:7.0f} {row['ratio']:6.2f}"
        print(f"{row['size_bytes']:>9} {figures}  {row['bare']}")
    print(f"empty call: ours {result['call']['ours_ms']:.3f} ms, hivemind's unary {result['call']['bare_ms']:.3f} ms")
    if result["kill_to_notice_ms"]:
        print("SIGKILL to on_watch_broken, ms:", " ".join(f"{ms:.1f}" for ms in result["kill_to_notice_ms"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="hops of each kind for the smaller sizes")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--noise", action="store_true", help="noise instead of TLS, as hivemind has it by default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--initial_peer", action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.receive:
        uvloop.run(receive(options_of(arguments.initial_peer, arguments.noise)))
        return
    result = uvloop.run(send(arguments))
    print(json.dumps(result)) if arguments.json else report(result)


if __name__ == "__main__":
    main()
