"""What a device computes, beside the CPU: parity, the split, speed and memory, and a live swarm whose peers share it.

    experiments/gpu_check.sh                                  # on a machine with a CUDA device, under eight minutes
    python -m experiments.support.gpu_check --device cpu --size tiny  # the same checks without one, in seconds (no live swarm)

One line for each check, with its figure and its bound; exit code 1 if one fails.

    split FAMILY      loss and every gradient of a small model, cut into parts on the device, against the whole model there
    parity FAMILY     the same parts on the device against the CPU (float32; a device adds up in another order)
    bfloat16 FAMILY   cut against whole under autocast
    trains            twenty steps of a model on one batch: the loss ends lower
    speed             tokens per second of all parts in one process, against the whole model's (a figure, no bound)
    memory            bytes of a parameter after these steps, at their highest (a figure; CUDA only)
    live              the demo's swarm on the device, its losses against one process's (`experiments.parity`; --live)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from experiments.families import Swarm, quiet, small_run
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.device import resolve_device
from gwtf_p2p.training.model.preflight import Result, compare
from gwtf_p2p.training.model.split import build_whole_model, default_layer_split
from gwtf_p2p.training.model.structure import sample_tokens

FAMILIES = ("llama", "gpt2", "gemma2", "mixtral", "qwen3_next")
SPLIT_BOUND, PARITY_BOUND, BFLOAT16_BOUND = 1e-5, 1e-3, 5e-2
"""Relative to each parameter's largest gradient. Under autocast a boundary rounds where the whole model does not."""

STEPS = 20


@dataclass(frozen=True, slots=True)
class Size:
    """Of the model that is trained and timed."""

    hidden: int
    layers: int
    length: int
    rows: int


SIZES = {"tiny": Size(32, 3, 32, 2), "medium": Size(1024, 12, 1024, 8)}


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `bound` None: a figure that nothing is asked of."""

    name: str
    figure: float
    bound: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.figure <= self.bound


def agreement(family: str, device: str) -> Iterator[Check]:
    """The lines of one family. Raises InputError."""
    run = small_run(family)
    whole = build_whole_model(run.model_config, run.seed)
    batch = sample_tokens(whole.config, 0), sample_tokens(whole.config, 1)
    on_device = split_of(run, ExecutorConfig(device), batch)
    yield Check(f"split {family}", worst(whole_of(run, device, batch), on_device), SPLIT_BOUND)
    yield Check(f"parity {family}", worst(split_of(run, ExecutorConfig("cpu"), batch), on_device), PARITY_BOUND)
    rounded = split_of(run, ExecutorConfig(device, "bfloat16"), batch)
    yield Check(f"bfloat16 {family}", worst(whole_of(run, device, batch, torch.bfloat16), rounded), BFLOAT16_BOUND)


def split_of(run: RunRecord, config: ExecutorConfig, batch: tuple[Tensor, Tensor]) -> Result:
    """Loss and gradients of the parts, on the CPU."""
    swarm = Swarm(run, config)
    loss = swarm.microbatch(0, *batch)
    return Result(loss, {name: gradient.cpu() for name, gradient in swarm.gradients().items()})


def whole_of(run: RunRecord, device: str, batch: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float32) -> Result:
    """The same of the whole model on a device."""
    model = build_whole_model(run.model_config, run.seed).to(device)  # type: ignore[arg-type]
    tokens_BT, labels_BT = (tensor.to(device) for tensor in batch)
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return Result(loss.item(), {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None})


def worst(one: Result, other: Result) -> float:
    """The largest difference of a gradient, relative to the largest of its parameter, or of the loss."""
    found = compare(one, other)
    return max(found.worst[1], found.loss / max(abs(one.loss), 1e-30))


def speed(device: str, size: Size) -> Iterator[Check]:
    """Trains one model on one batch, cut and whole."""
    run = RunRecord(
        run_id=RunId("gpu"), seed=0, layer_split=default_layer_split(size.layers, 3), sequence_length=size.length,
        microbatch_size=size.rows, microbatches_per_data_peer=1, optimizer=OptimizerSpec(learning_rate=1e-3),
        model_config={
            "model_type": "llama", "vocab_size": 4096, "hidden_size": size.hidden, "intermediate_size": 3 * size.hidden,
            "num_hidden_layers": size.layers, "num_attention_heads": max(size.hidden // 64, 2),
            "max_position_embeddings": size.length, "bos_token_id": None, "eos_token_id": None,
        },
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    window = torch.randint(0, 4096, (size.rows, size.length + 1), generator=generator)
    batch = window[:, :-1].contiguous(), window[:, 1:].contiguous()
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    swarm, losses, began = Swarm(run, ExecutorConfig(device, "bfloat16" if is_cuda else "float32")), [], 0.0
    for step in range(STEPS):
        if step == 1:  # the first one pays for what is set up once
            began = time.monotonic()
        losses.append(swarm.microbatch(0, *batch))
        swarm.step(step)
    seconds = time.monotonic() - began
    yield Check("trains", losses[-1] / losses[0], 1.0)
    yield Check("speed", (STEPS - 1) * size.rows * size.length / seconds)
    if is_cuda:
        parameters = sum(p.numel() for each in swarm.executors for p in each.part.parameters.values())
        yield Check("memory", torch.cuda.max_memory_allocated(device) / parameters)


def live(device: str) -> Check:
    """The demo on the device: seven peers in one process tree. 0 when its losses are one process's."""
    command = [sys.executable, "-m", "experiments.parity", "--steps", "5", "--bound", "1e-3", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout.strip().rpartition("\n")[2] or done.stderr[-500:], file=sys.stderr)
    return Check("live", float(done.returncode), 0.0)


def checks(args: argparse.Namespace) -> Iterator[Check]:
    for family in args.families.split(","):
        yield from agreement(family, args.device)
    yield from speed(args.device, replace(SIZES[args.size]))
    if args.live:
        yield live(args.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line per check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    parser.add_argument("--size", choices=sorted(SIZES), default="medium", help="of the model that is trained and timed")
    parser.add_argument(
        "--live", action=argparse.BooleanOptionalAction, default=None, help="a live swarm, too (default: on CUDA)"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines")
    args = parser.parse_args(arguments)
    try:
        resolve_device(args.device)
    except InputError as error:
        parser.error(str(error))
    if args.live is None:
        args.live = args.device.startswith("cuda")
    quiet()
    failed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in checks(args):
            failed += not check.holds
            told = {**asdict(check), "holds": check.holds, "device": args.device}
            line = f"{check.name:24} {check.figure:<12.4g} {'' if check.holds else 'FAILS'}"
            print(json.dumps(told) if args.json else line.rstrip(), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
