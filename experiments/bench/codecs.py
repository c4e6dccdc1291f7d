"""What does a codec save, and what does it cost? Bytes against float32, and CPU time against that of sending float32.

    python -m experiments.bench.codecs [--rows 1024] [--hidden 1024] [--rounds 20] [--json]

Two peers in two processes on loopback, each with its own p2pd. For each codec, in one run and in turns: the CPU time of
encoding and decoding (this process's own, one thread), and that of sending what it encodes, of both processes and both p2pd.
`codec_share` is encode + decode against sending the same tensor in float32; `hop_ratio` is all of a hop (encode, send, receive,
decode) against float32's. Other work on the machine changes the times, so read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import uvloop

from experiments.bench.hop import DEADLINE_S, RUN, Receiver, options_of, start_receiver
from experiments.bench.startup import descendants
from gwtf_p2p.live.libp2p.daemon import running_daemon
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.training.codecs.codec import Codec
from gwtf_p2p.training.codecs.table import CODECS

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
OUTLIERS = 8
"""Channels that are 20 times larger than the others, as a transformer's residual stream has some."""


@dataclass(frozen=True)
class Row:
    """One codec. Times in ms of CPU for one tensor; `relative_error` is the norm of the error against the tensor's."""

    codec: str
    bytes: int
    bytes_ratio: float
    relative_error: float
    encode_ms: float
    decode_ms: float
    send_ms: float
    codec_share: float
    hop_ratio: float


def activation(rows: int, hidden: int) -> torch.Tensor:
    """A made-up boundary tensor (rows x hidden)."""
    tensor = torch.randn(rows, hidden, generator=torch.Generator().manual_seed(0))
    tensor[:, :: max(1, hidden // OUTLIERS)] *= 20
    return tensor


def cpu_ms_of(work: Callable[[], object], rounds: int) -> float:
    """Median CPU time of this process."""
    work()
    samples = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        samples.append(time.process_time() - began)
    return 1e3 * statistics.median(samples)


def cpu_s_of(processes: Sequence[int]) -> float:
    """CPU time of these processes so far; it advances in ticks of the kernel, so it is read over many rounds."""
    ticks = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


async def measure(rows: int, hidden: int, rounds: int) -> list[Row]:
    """A row for each codec, float32 first."""
    tensor = activation(rows, hidden)
    encoded = {name: bytes(codec.encode(tensor)) for name, codec in CODECS.items()}
    send_ms = await _send_ms(encoded, rounds)
    return [_row(name, codec, tensor, send_ms, rounds) for name, codec in CODECS.items()]


def _row(name: str, codec: Codec, tensor: torch.Tensor, send_ms: dict[str, float], rounds: int) -> Row:
    shape, encoded = tuple(tensor.shape), bytearray(codec.encode(tensor))
    encode_ms = cpu_ms_of(lambda: codec.encode(tensor), rounds)
    decode_ms = cpu_ms_of(lambda: codec.decode(encoded, shape).float(), rounds)
    error = float((codec.decode(encoded, shape).float() - tensor).norm() / tensor.norm())
    plain_ms = send_ms["float32"]
    return Row(
        codec=name,
        bytes=len(encoded),
        bytes_ratio=len(encoded) / tensor.nbytes,
        relative_error=error,
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        send_ms=send_ms[name],
        codec_share=(encode_ms + decode_ms) / plain_ms,
        hop_ratio=(encode_ms + decode_ms + send_ms[name]) / plain_ms,
    )


async def _send_ms(encoded: dict[str, bytes], rounds: int) -> dict[str, float]:
    """CPU ms of one transfer of each payload, both ends and both p2pd."""
    process, peer, maddrs = await asyncio.to_thread(start_receiver, [])
    try:
        async with running_daemon(options_of(maddrs, noise=False)) as daemon:
            rpc = Rpc(daemon, RUN)
            await rpc.start(Receiver())
            others = [*descendants(os.getpid())]
            spent = dict.fromkeys(encoded, 0.0)
            for _ in range(2):  # in turns, so that none has the quiet minute
                for name, payload in encoded.items():
                    await rpc.push(peer, {"kind": "Forward"}, payload, DEADLINE_S)
                    began = cpu_s_of([os.getpid(), *others])
                    for _ in range(rounds):
                        await rpc.push(peer, {"kind": "Forward"}, payload, DEADLINE_S)
                    spent[name] += cpu_s_of([os.getpid(), *others]) - began
            await rpc.stop()
    finally:
        process.communicate()
    return {name: 1e3 * seconds / (2 * rounds) for name, seconds in spent.items()}


def report(rows: Sequence[Row]) -> None:
    heads = f"{'encode':>7} {'decode':>7} {'send':>7} {'codec/f32':>9} {'hop/f32':>8}"
    print(f"{'codec':>9} {'bytes':>10} {'ratio':>6} {'error':>8} {heads}")
    for row in rows:
        sizes = f"{row.codec:>9} {row.bytes:10} {row.bytes_ratio:6.3f} {row.relative_error:8.5f}"
        times = f"{row.encode_ms:7.2f} {row.decode_ms:7.2f} {row.send_ms:7.2f}"
        times += f" {row.codec_share:9.2f} {row.hop_ratio:8.2f}"
        print(f"{sizes} {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="microbatch size x sequence length (default 1024)")
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size (default 1024)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rows * arguments.hidden % 128:
        parser.error("--rows times --hidden: expected a multiple of 128, so that all payloads are whole 4-byte words")
    torch.set_num_threads(1)
    rows = uvloop.run(measure(arguments.rows, arguments.hidden, arguments.rounds))
    result: dict[str, Any] = {"rows": arguments.rows, "hidden": arguments.hidden, "codecs": [asdict(row) for row in rows]}
    print(json.dumps(result)) if arguments.json else report(rows)


if __name__ == "__main__":
    main()
