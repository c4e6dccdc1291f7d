"""What do a stage's weights and moments shrink to without loss, and what of them is still the same some steps later?

    python -m experiments.bytes.state [--sizes demo 20M] [--steps 30] [--after 1 5 20] [--json]

A model is trained in this process; then its states (weights and AdamW's moments of all parts) are cut into chunks as downloads
cut them. Told are, for each way to pack a chunk: bytes against those of the chunk, and MB of state a second each way, one
thread. `plain` packs the state; `xor` packs the difference (bit by bit) to the state so many steps before, which a peer may
have on its disk. `equal` is the share of chunks that are the same in both. From bytes and speeds follows what a chunk takes
over a line: packing, sending and unpacking beside each other take as long as the slowest of the three (`lines`, against a chunk
as it is). `experiments.bytes.download` fetches such states over lines.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from experiments.wire_loss import Settings, Swarm
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes
from gwtf_p2p.training.state.tensors import export_state

PLAIN: dict[str, Any] = {
    "stages": 2, "dataset": "stdlib", "sequence_length": 128, "microbatch_size": 2, "microbatches_per_data_peer": 2,
    "total_iterations": 10_000, "optimizer": {"learning_rate": 1.5e-3, "warmup_iterations": 10},
}  # fmt: skip
SIZES: dict[str, Any] = {
    "demo": "tiny-llama",
    "20M": {
        "model_type": "llama", "vocab_size": 257, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1408, "max_position_embeddings": 256, "tie_word_embeddings": False,
    },
}  # fmt: skip
LINES_MBIT = (10, 50, 100, 1000)
MOST_CHUNKS = 24
"""So many of a state's are packed, evenly drawn."""


def planes(data: bytes) -> bytes:
    """The first bytes of all 4-byte words, then the second ones, and so on."""
    whole = len(data) // 4 * 4
    words = np.frombuffer(data, np.uint8, whole).reshape(-1, 4)
    return words.T.tobytes() + data[whole:]


def words(data: bytes) -> bytes:
    """Takes `planes` back."""
    whole = len(data) // 4 * 4
    return np.frombuffer(data, np.uint8, whole).reshape(4, -1).T.tobytes() + data[whole:]


Way = tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]


def ways() -> dict[str, Way]:
    """To pack and to unpack; a library that is not there is left out."""
    found: dict[str, Way] = {}
    packers: dict[str, Way] = {
        "zlib 1": (lambda data: zlib.compress(data, 1), lambda data, size: zlib.decompress(data)),
        "zlib 6": (lambda data: zlib.compress(data, 6), lambda data, size: zlib.decompress(data)),
        "lzma 0": (lambda data: lzma.compress(data, preset=0), lambda data, size: lzma.decompress(data)),
    }
    import pyarrow

    for level in (1, 3, 9):
        codec = pyarrow.Codec("zstd", compression_level=level)
        packers[f"zstd {level}"] = (
            lambda data, codec=codec: codec.compress(data, asbytes=True),
            lambda data, size, codec=codec: codec.decompress(data, decompressed_size=size, asbytes=True),
        )
    for name, (pack, unpack) in packers.items():
        found[name] = pack, unpack
        found[f"planes, {name}"] = (
            lambda data, pack=pack: pack(planes(data)),
            lambda data, size, unpack=unpack: words(unpack(data, size)),
        )
    return found


def chunks_of(state: Mapping[str, torch.Tensor]) -> list[bytes]:
    """As a donor cuts them (`live/state/manifest`)."""
    data = b"".join(bytes(tensor_bytes(state[name])) for name in sorted(state))
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


def states(model: Any, steps: int, after: Sequence[int]) -> Iterator[tuple[int, list[bytes]]]:
    """(0, the chunks after so many steps), then those of so many steps later."""
    swarm = Swarm(Settings("float32", 0, steps, 1, {**PLAIN, "model": model}))
    for step in range(steps + max(after) + 1):
        if step - steps in (0, *after):
            parts = zip(swarm.parts, swarm.optimizers, strict=True)
            yield step - steps, [chunk for part, own in parts for chunk in chunks_of(export_state(part.part.parameters, own))]
        swarm.step(step)


def packed(chunks: Sequence[bytes], way: Way) -> dict[str, Any]:
    """Ratio and speeds of one way."""
    pack, unpack = way
    began = time.process_time()
    small = [pack(chunk) for chunk in chunks]
    middle = time.process_time()
    back = [unpack(data, len(chunk)) for data, chunk in zip(small, chunks, strict=True)]
    ended = time.process_time()
    assert back == list(chunks), "without loss"
    size = sum(map(len, chunks))
    ratio, pack_rate, unpack_rate = sum(map(len, small)) / size, size / (middle - began), size / (ended - middle)
    lines = {}
    for mbit in LINES_MBIT:
        rate = mbit * 1e6 / 8
        lines[mbit] = max(ratio / rate, 1 / pack_rate, 1 / unpack_rate) * rate
    return {"ratio": ratio, "pack_mb_s": pack_rate / 1e6, "unpack_mb_s": unpack_rate / 1e6, "lines": lines}


def drawn(chunks: Sequence[bytes]) -> list[int]:
    """Which ones are packed."""
    return sorted({round(i) for i in np.linspace(0, len(chunks) - 1, min(MOST_CHUNKS, len(chunks)))})


def rows(name: str, steps: int, after: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Of one model."""
    found = states(SIZES[name], steps, after)
    _, first = next(found)
    chosen = drawn(first)
    about = {"model": name, "state_mb": sum(map(len, first)) / 1e6, "chunks": len(first)}
    for way, how in ways().items():
        yield {**about, "what": "plain", "way": way, **packed([first[i] for i in chosen], how)}
    for later, chunks in found:
        equal = sum(a == b for a, b in zip(first, chunks, strict=True)) / len(first)
        pairs = [(np.frombuffer(first[i], np.uint8), np.frombuffer(chunks[i], np.uint8)) for i in chosen]
        xors = [(a ^ b).tobytes() for a, b in pairs]
        for way, how in ways().items():
            if "planes, z" in way:
                yield {**about, "what": f"xor, {later} steps", "way": way, "equal": equal, **packed(xors, how)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=["demo", "20M"])
    parser.add_argument("--steps", type=int, default=30, help="before the first state (default 30)")
    parser.add_argument("--after", type=int, nargs="*", default=[1, 5, 20], help="steps to the later ones (default 1 5 20)")
    parser.add_argument("--json", action="store_true", help="one JSON line a row")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in args.sizes:
        for row in rows(name, args.steps, args.after):
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            lines = " ".join(f"{mbit} Mbit/s {share:.2f}" for mbit, share in row["lines"].items())
            equal = f", {row['equal']:.0%} of chunks equal" if "equal" in row else ""
            print(
                f"{row['model']:5} {row['state_mb']:6.1f} MB {row['what']:14} {row['way']:16} {row['ratio']:.3f} "
                f"{row['pack_mb_s']:6.0f} {row['unpack_mb_s']:6.0f} MB/s  {lines}{equal}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
