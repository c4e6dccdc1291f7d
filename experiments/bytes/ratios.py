"""What does a hop, and an average, take in each format, as a share of float32's bytes? Of a llama of a given width.

    python -m experiments.bytes.ratios [--hidden 1024] [--tokens 256] [--json]

Hops: the embedding of a batch crosses a boundary forwards, and its gradient backwards, as the bytes that peers push. Averages:
two real peers on loopback average the gradient of a stage of one layer; counted is what both have pushed. A row holds where it
is within what was asked for (`MOST`). Exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import torch
import uvloop

from experiments.bench.hop import RUN, Receiver
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.live.compute.all_reduce import Averager, AveragingGroup
from gwtf_p2p.live.compute.boundary import BoundaryCodecs
from gwtf_p2p.live.libp2p.daemon import running_daemon
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.codecs.payload import encode_gradient, encode_payload
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.values import HeldGradient
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.model.split import PartSpec, build_data_part, parameter_shapes

HOPS: dict[str, dict[str, Any]] = {
    **{name: {"wire": {"activations": name, "gradients": name}} for name in ("float32", "bfloat16", "int8", "fp8")},
    "int4": {"wire": {"activations": "int4", "gradients": "int4"}},
    "int4, int8 back": {"wire": {"activations": "int4", "gradients": "int8"}},
    "subspace 50": {"boundary": {"subspace": 50}},
    "subspace 50, int8": {"boundary": {"subspace": 50}, "wire": {"activations": "int8", "gradients": "int8"}},
}
AVERAGES = {"float32": 32, "float16": 32, "int8": 32, "powersgd": 32}
"""Formats of averages, each with powersgd's rank."""

MOST = {"hop int8": 0.27, "hop int4": 0.145, "hop subspace 50, int8": 0.008, "average int8": 0.27, "average powersgd": 0.08}
DEADLINE_S = 120.0


def record(hidden: int, tokens: int, changes: dict[str, Any]) -> RunRecord:
    """A run of two stages of a layer each. Raises InputError."""
    model = {
        "model_type": "llama", "vocab_size": 257, "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 4 * hidden, "max_position_embeddings": tokens,
        "tie_word_embeddings": False,
    }  # fmt: skip
    plain = {"run_id": "ratios", "stages": 2, "model": model, "dataset": "stdlib", "total_iterations": 1, "seed": 0}
    batch = {"sequence_length": tokens, "microbatch_size": 1, "microbatches_per_data_peer": 1}
    return run_from_plain({**plain, **batch, **changes}, "ratios")


def hop_bytes(run: RunRecord) -> tuple[int, int]:
    """(forwards, backwards) of one microbatch, as they are encoded."""
    data, codecs = DataExecutor(build_data_part(PartSpec.of(run, 0)), ExecutorConfig()), BoundaryCodecs.of(run)
    tokens_BT, _ = open_data(run)[0].batch(0, 0, 0, 1)
    payload, boundary = data.evaluate_embedding(tokens_BT), data.part.boundaries.output
    gradient = [
        value if each.is_integer else torch.randn(each.shape) * 1e-3 for value, each in zip(payload, boundary, strict=True)
    ]
    forth, back = encode_payload(payload, boundary, codecs.activations), encode_gradient(gradient, boundary, codecs.gradients)
    assert (forth.nbytes, back.nbytes) == (run.activation_bytes, run.gradient_bytes), "what planners go by"
    return forth.nbytes, back.nbytes


async def average_bytes(run: RunRecord, averages: str, rank: int) -> int:
    """What both of two peers have pushed in one average of a stage's gradient."""
    shapes = parameter_shapes(PartSpec.of(run, 1))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_daemon(P2POptions.on_this_machine()))
        options = P2POptions.on_this_machine(*await first.maddrs())
        second = await stack.enter_async_context(running_daemon(options))
        rpcs = [Rpc(daemon, RUN) for daemon in (first, second)]
        for rpc in rpcs:
            await rpc.start(Receiver())
        averagers = [Averager(rpc, averages, rank) for rpc in rpcs]
        group = AveragingGroup(f"ratios {averages}", (first.peer_id, second.peer_id), (1.0, 1.0))
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        inputs = [HeldGradient({n: torch.randn(s, generator=each) for n, s in shapes.items()}) for each in generators]
        work = [averager.average(group, own, DEADLINE_S) for averager, own in zip(averagers, inputs, strict=True)]
        results = await asyncio.gather(*work)
        for rpc in rpcs:
            await rpc.stop()
    assert len({result.digest for result in results}) == 1, "both have the same bits"
    return sum(result.sent_bytes for result in results)


async def rows(hidden: int, tokens: int) -> list[dict[str, Any]]:
    """All of them, hops first."""
    sizes = {name: sum(hop_bytes(record(hidden, tokens, changes))) for name, changes in HOPS.items()}
    found = [("hop", name, size, size / sizes["float32"]) for name, size in sizes.items()]
    run = record(hidden, tokens, {})
    averaged = {name: await average_bytes(run, name, rank) for name, rank in AVERAGES.items()}
    found += [("average", name, size, size / averaged["float32"]) for name, size in averaged.items()]
    most = [MOST.get(f"{what} {name}", math.inf) for what, name, *_ in found]
    return [
        {"what": what, "format": name, "bytes": size, "ratio": ratio, "most": limit if limit < math.inf else None,
         "holds": ratio <= limit}
        for (what, name, size, ratio), limit in zip(found, most, strict=True)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024, help="width of the model (default 1024)")
    parser.add_argument("--tokens", type=int, default=256, help="in a microbatch (default 256)")
    parser.add_argument("--json", action="store_true", help="one JSON line a row")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = uvloop.run(rows(args.hidden, args.tokens))
    for row in found:
        limit = "" if row["most"] is None else f", at most {row['most']:g}: {'holds' if row['holds'] else 'MISSED'}"
        told = f"{row['what']:8} {row['format']:18} {row['bytes']:12,} bytes {row['ratio']:.4f} of float32{limit}"
        print(json.dumps(row) if args.json else told)
    return 0 if all(row["holds"] for row in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
