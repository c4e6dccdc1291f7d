"""What do codecs cost in loss? Training in one process, with the real codecs at every boundary and in every average.

    python -m experiments.wire_loss [--wires float32,int8,int4,int8+int8] [--seeds 0,1] [--steps 40] [--json]

A wire is named as by `gwtf demo --wire` (int4: int4 activations and int8 gradients), with `+FORMAT` for averages in another
format than float32, and `/N` behind it for boundaries in a subspace of 1/N of the width, which is another model
(int8+int8/16); `~N` instead is the ordinary model with narrower MLPs that has as many weights to train as that one. The parts
of the model, their executors and optimizers are those of live peers; a boundary tensor is encoded and decoded as on its way
from peer to peer, and each stage's gradient is averaged by `--members` peers, each of which has computed a share of the
microbatches, in the parts, order and error feedback of the live average. Loss is the mean over an iteration's microbatches;
the held-out loss is of windows of a shard that nobody trains on, through the same boundaries.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.live.compute.all_reduce_parts import (
    Batch,
    Corrected,
    Part,
    Parts,
    Residual,
    average_parts,
    batches_of,
    cut,
    pack_parts,
    unpack_parts,
)
from gwtf_p2p.live.compute.boundary import BoundaryCodecs
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.tensor_formats import LOW_RANK
from gwtf_p2p.training.codecs.codec import Codec
from gwtf_p2p.training.codecs.low_rank import LowRank
from gwtf_p2p.training.codecs.payload import decode_gradient, decode_payload, encode_gradient, encode_payload
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.compute.values import Gradient, HeldGradient, all_of
from gwtf_p2p.training.data.batches import DataSource, open_data
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.memory import full_hop_bytes
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part, parameter_shapes
from gwtf_p2p.training.state.scratch import ScratchGradient

NARROW, MLP = "~", "intermediate_size"
HELD_OUT_BATCHES = 32
SHARDS = 2
"""Shard 0 is trained on, shard 1 is held out."""


@dataclass(frozen=True)
class Settings:
    """One training. `members` peers hold each stage and share its microbatches."""

    wire: str
    seed: int
    steps: int
    members: int
    plain: Mapping[str, Any]
    rank: int = 32

    def record(self) -> RunRecord:
        """Raises InputError."""
        is_narrow = NARROW in self.wire
        wire, _, factor = self.wire.partition(NARROW if is_narrow else "/")
        boundary, _, averages = wire.partition("+")
        gradients = "int8" if boundary == "int4" else boundary
        wire_ = {"activations": boundary, "gradients": gradients, "averages": averages or "float32", "rank": self.rank}
        subspace = 0 if is_narrow else _whole(factor)
        named = {"run_id": "wire-loss", "seed": self.seed, "wire": wire_, "boundary": {"subspace": subspace}}
        run = run_from_plain({**self.plain, **named}, f"--wires {self.wire}")
        if not is_narrow:
            return run
        return run_from_plain({**self.plain, **named, "model": narrowed(run, _whole(factor))}, f"--wires {self.wire}")


class Swarm:
    """All parts of the model in this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.run = settings, settings.record()
        self.source: DataSource = open_data(self.run)[0]
        config, run = ExecutorConfig(), self.run
        self.data = DataExecutor(build_data_part(PartSpec.of(run, 0)), config)
        self.stages = [StageExecutor(build_stage_part(PartSpec.of(run, k)), config) for k in range(1, run.stages + 1)]
        self.parts: list[DataExecutor | StageExecutor] = [self.data, *self.stages]
        self.optimizers = [PartOptimizer(part.part.parameters, run.optimizer) for part in self.parts]
        self.codecs = BoundaryCodecs.of(run)
        self._residuals: list[list[list[Tensor]]] = [[[] for _ in range(settings.members)] for _ in self.parts]

    def step(self, iteration: int) -> float:
        """One iteration; its loss."""
        count, members = self.run.microbatches_per_data_peer, self.settings.members
        losses, means = [], []
        for member in range(members):
            for index in range(member, count, members):
                name = MicrobatchId(PeerId("data"), iteration, index)
                losses.append(self._train(name, *self.source.batch(iteration, index, 0, SHARDS)))
            means.append([part.gradient_vector().mean() for part in self.parts])
            for part in self.parts:
                part.reset_gradients()
        weights = [float(len(range(member, count, members))) for member in range(members)]
        for number, optimizer in enumerate(self.optimizers):
            names = sorted(means[0][number])
            own = [[mean[number][name] for name in names] for mean in means]
            residuals, wire = self._residuals[number], self.run.wire
            if wire.averages == LOW_RANK:
                averaged, residuals = low_rank_reduce(own, weights, residuals, LowRank.of(own[0], wire.rank), f"{iteration}")
            else:
                averaged, residuals = all_reduce(own, weights, residuals, codec_of(wire.averages))
            self._residuals[number] = residuals
            optimizer.step(dict(zip(names, averaged, strict=True)), iteration)
        return statistics.fmean(losses)

    def held_out(self) -> float:
        """Mean loss of windows that nobody trains on."""
        losses = []
        for index in range(HELD_OUT_BATCHES):
            name = MicrobatchId(PeerId("held out"), 0, index)
            tokens_BT, labels_BT = self.source.batch(0, index, 1, SHARDS)
            loss, _ = self.data.loss_and_gradient(name, self._forward(name, tokens_BT), labels_BT)
            losses.append(loss)
            for part in self.parts:
                part.discard(name)
        return statistics.fmean(losses)

    def _forward(self, name: MicrobatchId, tokens_BT: Tensor) -> Payload:
        payload = self._sent(self.data.embed(name, tokens_BT))
        for stage in self.stages:
            payload = self._sent(stage.forward(name, payload))
        return payload

    def _train(self, name: MicrobatchId, tokens_BT: Tensor, labels_BT: Tensor) -> float:
        loss, gradient = self.data.loss_and_gradient(name, self._forward(name, tokens_BT), labels_BT)
        for stage in reversed(self.stages):
            gradient = stage.backward(name, self._handed_back(gradient))
        self.data.finish(name, self._handed_back(gradient))
        return loss

    def _sent(self, payload: Payload) -> Payload:
        """As the other end of a boundary gets it."""
        boundary, codec = self.data.part.boundaries.input, self.codecs.activations
        return decode_payload(bytes(encode_payload(payload, boundary, codec)), boundary, codec)

    def _handed_back(self, gradient: Payload) -> Payload:
        boundary, codec = self.data.part.boundaries.input, self.codecs.gradients
        return decode_gradient(bytes(encode_gradient(gradient, boundary, codec)), boundary, codec)


def all_reduce(
    own: Sequence[list[Tensor]], weights: Sequence[float], residuals: Sequence[list[Tensor]], codec: Codec
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The average of all members' tensors as the live one makes it, and what rounding owes to each member after it."""
    members = range(len(own))
    given = [_given(*each) for each in zip(own, residuals, weights, strict=True)]
    shares = cut(given[0].shapes, [1.0] * len(own))
    owed = [Residual(ScratchGradient(given[0].shapes, None)) for _ in given]
    result = ScratchGradient(given[0].shapes, None)

    def rounded(member: int, places: Sequence[Part], batch: Batch, parts: Parts, weight: float) -> Parts:
        seen = unpack_parts(pack_parts(parts, codec), batch, codec)
        owed[member].lost(places, parts, seen, weight)
        return seen

    for share in members:
        for batch in batches_of([part.size for part in shares[share]]):
            contributions, places = [], shares[share][batch.span]
            for member in members:
                parts = tuple(given[member].piece(part.name, part.start, part.stop) for part in places)
                sent = parts if member == share else rounded(member, places, batch, parts, weights[member])
                contributions.append((weights[member], sent))
            means = rounded(share, places, batch, average_parts(contributions), sum(weights))
            for place, mean in zip(places, means, strict=True):
                result.put(place.name, place.start, mean)
    left = [list(all_of(residual.gradient).values()) for residual in owed]
    return list(all_of(result).values()), left if codec.form.scale_bytes else [[] for _ in owed]


def low_rank_reduce(
    own: Sequence[list[Tensor]], weights: Sequence[float], residuals: Sequence[list[Tensor]], plan: LowRank, name: str
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The same where matrices go as products of thin ones."""
    given = [list(all_of(_given(*each)).values()) for each in zip(own, residuals, weights, strict=True)]
    plain, nothing = codec_of("float32"), [[] for _ in own]
    firsts, _ = all_reduce([plan.first(tensors.__getitem__, name) for tensors in given], weights, nothing, plain)
    bases = plan.bases(firsts)
    seconds = [plan.second(tensors.__getitem__, bases) for tensors in given]
    averaged = all_reduce(seconds, weights, nothing, plain)[0] if plan.products else []
    owed = [[torch.zeros_like(tensor) for tensor in tensors] for tensors in given]
    for member, (tensors, mine) in enumerate(zip(given, seconds, strict=True)):
        for number, left in plan.left_over(tensors.__getitem__, bases, mine):
            owed[member][number] = left * weights[member]
    return [tensor for _, tensor in plan.result(firsts, bases, averaged)], owed


def _given(tensors: list[Tensor], owed: list[Tensor], weight: float) -> Gradient:
    own, residual = (HeldGradient({str(k): tensor for k, tensor in enumerate(each)}) for each in (tensors, owed))
    return Corrected(own, residual, weight) if owed and weight > 0 else own


def train(settings: Settings) -> dict[str, Any]:
    """One training's result, plain."""
    swarm, began = Swarm(settings), time.monotonic()
    losses = [swarm.step(iteration) for iteration in range(settings.steps)]
    held_out, seconds = swarm.held_out(), time.monotonic() - began
    print(f"{settings.wire:12} seed {settings.seed}: held out {held_out:.4f} ({seconds:.0f} s)", file=sys.stderr)
    run = swarm.run
    float_bytes = 2 * full_hop_bytes(run)
    return {
        "wire": settings.wire,
        "seed": settings.seed,
        "held_out": held_out,
        "losses": losses,
        "seconds": seconds,
        "hop_bytes_ratio": (run.activation_bytes + run.gradient_bytes) / float_bytes,
        "parameters": sum(p.numel() for part in swarm.parts for p in part.part.parameters.values()),
    }


def narrowed(run: RunRecord, factor: int) -> dict[str, Any]:
    """The run's model with narrower MLPs, so that it has as many weights to train as its own in a subspace of 1/factor."""
    size = run.model_config.get(MLP)
    if not isinstance(size, int):
        raise InputError("--wires", MLP, f"expected a model with it behind {NARROW}")

    def weights(changed: RunRecord) -> int:
        shapes = [parameter_shapes(PartSpec.of(changed, stage)) for stage in range(changed.stages + 1)]
        return sum(math.prod(shape) for each in shapes for shape in each.values())

    step, full = 8, weights(run)
    per_row = (full - weights(replace(run, model_config={**run.model_config, MLP: size - step}))) / step
    narrow = size - round((full - weights(replace(run, subspace=factor))) / per_row)
    if narrow < 1:
        raise InputError("--wires", MLP, f"expected wider ones: the subspace of 1/{factor} leaves too few weights")
    return {**run.model_config, MLP: narrow}


def _whole(text: str) -> int:
    """0 for none. Raises InputError."""
    if text and not text.isdecimal():
        raise InputError("--wires", "", f"expected a whole number behind the slash, got {text!r:.40}")
    return int(text or 0)


def summary(results: Sequence[Mapping[str, Any]], wires: Sequence[str]) -> list[dict[str, Any]]:
    """For each wire: mean held-out loss, and its difference from the first wire's, seed by seed."""
    base = {r["seed"]: r["held_out"] for r in results if r["wire"] == wires[0]}
    rows = []
    for wire in wires:
        own = [r for r in results if r["wire"] == wire]
        differences = [r["held_out"] - base[r["seed"]] for r in own]
        spread = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
        mean = statistics.fmean(r["held_out"] for r in own)
        row = {"wire": wire, "held_out": mean, "difference": statistics.fmean(differences), "standard_error": spread}
        rows.append({**row, "hop_bytes_ratio": own[0]["hop_bytes_ratio"], "parameters": own[0]["parameters"]})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table, or everything as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wires", default="float32,int8,int4,int8+int8", help="differences are from the first one")
    parser.add_argument("--seeds", default="0", help="comma separated")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--members", type=int, default=2, help="peers of each stage (default 2)")
    parser.add_argument("--model", default="tiny-llama", help="as of gwtf demo")
    parser.add_argument("--dataset", default="stdlib", help="as of gwtf demo")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--microbatch_size", type=int, default=2)
    parser.add_argument("--sequence_length", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--rank", type=int, default=32, help="of powersgd averages (default 32)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args(arguments)
    torch.set_num_threads(flags.threads)
    names = ("model", "dataset", "stages", "microbatch_size", "sequence_length")
    plain = {name: getattr(flags, name) for name in names}
    plain["microbatches_per_data_peer"] = flags.microbatches
    plain["optimizer"] = {"learning_rate": flags.learning_rate, "warmup_iterations": 10}
    wires, seeds = flags.wires.split(","), [int(seed) for seed in flags.seeds.split(",")]
    results = [train(Settings(wire, seed, flags.steps, flags.members, plain, flags.rank)) for seed in seeds for wire in wires]
    rows = summary(results, wires)
    if flags.json:
        settings = {**plain, "steps": flags.steps, "members": flags.members, "seeds": seeds}
        print(json.dumps({"settings": settings, "summary": rows, "runs": results}))
        return 0
    print(f"{'wire':14} {'bytes':>6} {'weights':>9} {'held out':>9} {'difference':>11} {'std error':>10}")
    for row in rows:
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        figures = f"{row['hop_bytes_ratio']:6.4f} {row['parameters']:9d} {row['held_out']:9.4f} {row['difference']:+11.4f}"
        print(f"{row['wire']:14} {figures} {error:>10}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
