"""How long does a state take over a line, packed and as it is? Two real peers on loopback, whose lines are capped.

    python -m experiments.bytes.download [--mbit 10 50 100] [--megabytes 8] [--rounds 2] [--json]

The state is the beginning of a trained one (`experiments.bytes.state`). Packed and plain downloads alternate; told are seconds,
bytes that have travelled, and CPU seconds of this process, which holds both ends (each peer has its own p2pd beside).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import torch
import uvloop

from experiments.bench.hop import RUN, Receiver
from experiments.bytes.state import SIZES, states
from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.libp2p.daemon import running_daemon
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.live.state.donor import StateDonor
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.live.state.transfer import StateDownload
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.ids import Stage

STAGE, VERSION = Stage(1), 30


class Held:
    """One state of one stage."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._tensors = {f"weights/{i:04d}": torch.frombuffer(bytearray(c), dtype=torch.float32) for i, c in enumerate(chunks)}

    async def state_of(self, stage: Stage, version: int) -> Reading | None:
        return Reading(version, self._tensors) if (stage, version) == (STAGE, VERSION) else None

    async def kept_of(self, stage: Stage) -> tuple[int, tuple[int, ...]]:
        return 0, ()


async def timed(mbit: float, packs: bool, chunks: Sequence[bytes]) -> tuple[float, float, int]:
    """(seconds, CPU seconds, bytes that have travelled) of one download by a peer that is new."""
    async with AsyncExitStack() as stack:
        giver = await stack.enter_async_context(running_daemon(P2POptions.on_this_machine()))
        options = P2POptions.on_this_machine(*await giver.maddrs())
        taker = await stack.enter_async_context(running_daemon(options))
        bytes_per_s = mbit * 1e6 / 8
        sender = Rpc(giver, RUN, line=Line(upload_bytes_per_s=bytes_per_s, download_bytes_per_s=bytes_per_s))
        receiver = Rpc(taker, RUN, line=Line(upload_bytes_per_s=bytes_per_s, download_bytes_per_s=bytes_per_s))
        for rpc in (sender, receiver):
            await rpc.start(Receiver())
        donor = StateDonor(sender, Held(chunks), STAGE)
        donor.may_have = lambda peer, stage, now: (None, True)
        download = StateDownload(receiver, packs=packs)
        await download._manifest(giver.peer_id, {"version": VERSION})  # it is made, and the connection is there
        began, cpu, before = time.perf_counter(), time.process_time(), sender.line.up.total_bytes
        state = await download.fetch(VERSION, [giver.peer_id])
        found = time.perf_counter() - began, time.process_time() - cpu, sender.line.up.total_bytes - before
        assert b"".join(state[name].numpy().tobytes() for name in state) == b"".join(chunks)
        donor.stop()
        for rpc in (sender, receiver):
            await rpc.stop()
    return found


async def compared(mbit: float, chunks: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """A row of medians."""
    found: dict[bool, list[tuple[float, float, int]]] = {True: [], False: []}
    for _ in range(rounds):
        for packs, times in found.items():
            times.append(await timed(mbit, packs, chunks))
    plain, packed = ([statistics.median(column) for column in zip(*found[packs], strict=True)] for packs in (False, True))
    return {
        "mbit_s": mbit,
        "megabytes": sum(map(len, chunks)) / 1e6,
        **{f"{name}_plain": value for name, value in zip(("seconds", "cpu_s", "bytes"), plain, strict=True)},
        **{f"{name}_packed": value for name, value in zip(("seconds", "cpu_s", "bytes"), packed, strict=True)},
        "seconds_ratio": packed[0] / plain[0],
        "bytes_ratio": packed[2] / plain[2],
    }


async def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each line."""
    _, chunks = next(states(SIZES["demo"], args.steps, [0]))
    whole = [chunk for chunk in chunks if len(chunk) == CHUNK_BYTES][: max(1, round(args.megabytes))]
    return [await compared(mbit, whole, args.rounds) for mbit in args.mbit]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, nargs="*", default=[10.0, 50.0, 100.0], help="of both lines (default 10 50 100)")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of the state (default 8)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of training before (default 10)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for row in uvloop.run(measured(args)):
        if args.json:
            print(json.dumps(row))
            continue
        seconds = f"{row['seconds_plain']:.2f} s plain, {row['seconds_packed']:.2f} s packed: {row['seconds_ratio']:.3f}"
        cpu = f"CPU {row['cpu_s_plain']:.2f} and {row['cpu_s_packed']:.2f} s"
        print(f"{row['mbit_s']:g} Mbit/s, {row['megabytes']:.1f} MB: {seconds}; bytes {row['bytes_ratio']:.3f}; {cpu}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
