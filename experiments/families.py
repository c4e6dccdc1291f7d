"""Which families of causal language models can be split here, and are trained and exported as they would be unsplit.

    python -m experiments.families [--families llama,gpt2] [--steps 20] [--live] [--out FILE] [--json]

One line per key of the causal-LM mapping of the installed `transformers`:

    {"family", "equal", "loss_difference", "worst_gradient", "export_equal", "trained_steps", "reason",
     "live_losses", "live_lost"}

The family's default config is shrunk (four to eight layers, width 64), written as a run record, and cut into up to three
stages and a data part. `equal`: loss and every gradient agree with the unsplit model within 1e-6, relative to each
parameter's largest gradient. `trained_steps`: optimizer steps taken in one process through the executors that peers use,
payloads as bytes between them, with a loss that stays finite and ends lower; with `--live` as many by a live swarm besides,
two stages and a data peer in processes of their own, and those count. Of those `live_losses` are the means of the first and the
last three steps, and `live_lost` the microbatches that were lost or counted twice. `export_equal`: the exported folder, loaded
by `transformers`, has the trained weights to the bit, and logits within 1e-6 (of equal weights some libraries' kernels make
other last bits, by where in memory they lie). `reason` says why a family is not equal, and is empty else.
Each family has a process of its own and a limit of CPU time; live, one of the clock (`--live_limit_s`). With `--out FILE` each
line is written there as well, and what a line there says already is not done again: the same command goes on where it stopped.
Exit code 1 when an asked-for family is not equal, or without `--families` when fewer than 60 are.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from experiments.support.families_live import PREFIX, LiveFamilies
from gwtf_p2p.protocol.errors import InputError, LocalProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, RunId
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.codecs.payload import decode_gradient, decode_payload, encode_gradient, encode_payload
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.model.config import CONFIG_ERRORS, load_config, published_config, supported_families
from gwtf_p2p.training.model.preflight import Result, checked_unsplit, compare, preflight
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part, build_whole_model, default_layer_split
from gwtf_p2p.training.model.structure import LENGTH, ROWS, layer_count, probe, sample_tokens
from gwtf_p2p.training.state.checkpoint import save_checkpoint
from gwtf_p2p.training.state.export import export_hf
from gwtf_p2p.training.state.tensors import export_state

BOUND = 1e-6
ENOUGH = 60
LIMIT_S = 60.0
LIVE_LIMIT_S = 120.0
WALL = 20.0
"""Seconds of the clock for each second of CPU: others may keep the machine busy."""
STATED: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "head_dim": 16,
}  # fmt: skip
"""What some families leave to whoever writes the config, where the default is nothing."""
_ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
OWN_FIELDS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROTARY}},
    "DbrxAttentionConfig": {"rope_theta": 10_000.0, "clip_qkv": 8.0},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "prophetnet": {"add_cross_attention": False},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
"""The same where a family's defaults do not fit each other, by its `model_type`, or class where it has none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One family's line."""

    family: str
    equal: bool = False
    loss_difference: float | None = None
    worst_gradient: float | None = None
    export_equal: bool = False
    trained_steps: int = 0
    reason: str = ""
    live_losses: tuple[float, float] | None = None
    live_lost: int | None = None


class Swarm:
    """All parts of one run in this process; what would travel does so as bytes."""

    def __init__(self, run: RunRecord, config: ExecutorConfig | None = None) -> None:
        self.run, config = run, config or ExecutorConfig()
        specs = [PartSpec.of(run, stage) for stage in range(run.stages + 1)]
        self.data = DataExecutor(build_data_part(specs[0]), config)
        self.stages = [StageExecutor(build_stage_part(spec), config) for spec in specs[1:]]
        self.executors: list[DataExecutor | StageExecutor] = [self.data, *self.stages]
        self.optimizers = [PartOptimizer(executor.part.parameters, run.optimizer) for executor in self.executors]

    def microbatch(self, number: int, tokens_BT: Tensor, labels_BT: Tensor) -> float:
        """The loss; the gradients are counted."""
        name = MicrobatchId(PeerId("data"), 0, number)
        payload = self._sent(self.data.embed(name, tokens_BT))
        for stage in self.stages:
            payload = self._sent(stage.forward(name, payload))
        loss, gradient = self.data.loss_and_gradient(name, payload, labels_BT)
        for stage in reversed(self.stages):
            gradient = self._handed_back(stage.backward(name, self._handed_back(gradient)))
        self.data.finish(name, gradient)
        return loss

    def gradients(self) -> dict[str, Tensor]:
        return {name: t.clone() for each in self.executors for name, t in each.gradient_vector().tensors.items()}

    def step(self, iteration: int) -> None:
        for executor, optimizer in zip(self.executors, self.optimizers, strict=True):
            optimizer.step(executor.gradient_vector().mean(), iteration)
            executor.reset_gradients()

    def _sent(self, payload: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        boundary, codec = self.data.part.boundaries.input, codec_of(self.run.wire.activations)
        return decode_payload(bytes(encode_payload(payload, boundary, codec)), boundary, codec, self.data.device)

    def _handed_back(self, gradient: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        boundary, codec = self.data.part.boundaries.input, codec_of(self.run.wire.gradients)
        return decode_gradient(bytes(encode_gradient(gradient, boundary, codec)), boundary, codec, self.data.device)


def small_run(family: str) -> RunRecord:
    """A run record of a small model of this family, spelled as a user would. Raises InputError."""
    try:
        default = AutoConfig.for_model(family)
    except CONFIG_ERRORS as error:
        raise InputError(family, "model_config", f"its default config is refused by transformers: {error}") from error
    _state(default)
    _, small = probe(default, family)
    fields = published_config({name: value for name, value in _plain(small).items() if value is not None}, family)
    layers = layer_count(fields, family)
    return RunRecord(
        run_id=RunId("families"),
        model_config=fields,
        layer_split=default_layer_split(layers, min(3, layers), family),
        seed=0,
        sequence_length=LENGTH,
        microbatch_size=ROWS,
        microbatches_per_data_peer=1,
        optimizer=OptimizerSpec(learning_rate=1e-3),
    )


def examine(family: str, steps: int) -> Row:
    """The line of one family."""
    row = Row(family)
    try:
        run = small_run(family)
        preflight(run.model_config, family)
        config = load_config(run.model_config, family)
        batch = sample_tokens(config, 0), sample_tokens(config, 1)
        unsplit = checked_unsplit(build_whole_model(run.model_config, run.seed), family)
        swarm = Swarm(run)
        split = Result(swarm.microbatch(0, *batch), swarm.gradients())
        difference = compare(unsplit, split)
        equal = difference.loss <= BOUND and difference.worst[1] <= BOUND
        row = replace(row, equal=equal, loss_difference=difference.loss, worst_gradient=difference.worst[1])
        if not equal:
            return replace(row, reason=f"the gradient of {difference.worst[0]} differs")
        losses = []
        for iteration in range(steps):
            swarm.step(iteration)
            losses.append(swarm.microbatch(0, *batch))
        if steps and not losses[-1] < split.loss:
            return replace(row, reason=f"its loss went from {split.loss:.4f} to {losses[-1]:.4f} in {steps} steps on one batch")
        return replace(row, trained_steps=steps, export_equal=export_is_equal(swarm, batch[0]))
    except (*CONFIG_ERRORS, InputError, LocalProtocolError, NotImplementedError) as error:
        return replace(row, reason=_one_line(error, family))


def export_is_equal(swarm: Swarm, tokens_BT: Tensor) -> bool:
    """Checkpoints of all stages, exported, loaded by `transformers`: the same weights to the bit, and the same logits?"""
    run = swarm.run
    with tempfile.TemporaryDirectory(prefix="gwtf-families-") as name:
        folder = Path(name)
        for stage, (executor, optimizer) in enumerate(zip(swarm.executors, swarm.optimizers, strict=True)):
            save_checkpoint(folder / "checkpoints", run, stage, export_state(executor.part.parameters, optimizer))
        export_hf(folder / "checkpoints", folder / "out")
        with torch.random.fork_rng(devices=[]):  # its constructors draw what the files then overwrite
            loaded = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)
    whole = build_whole_model(run.model_config, run.seed)
    with torch.no_grad():
        for executor in swarm.executors:
            for name, parameter in executor.part.parameters.items():
                whole.get_parameter(name).copy_(parameter)
        for model in (whole, loaded):
            model.train(False)
        one, other = (model(input_ids=tokens_BT, use_cache=False).logits for model in (whole, loaded))
        there = loaded.state_dict()
        same = all(torch.equal(tensor, there[name]) for name, tensor in whole.state_dict().items())
        return same and bool((one - other).abs().max() <= BOUND * one.abs().max())


def _state(config: PretrainedConfig) -> None:
    """Fields that a user has to state: experts where the default is none, a decoder where the default is an encoder."""
    for name, value in STATED.items():
        if name in vars(config) and vars(config)[name] is None:
            setattr(config, name, value)
    fields = vars(config)
    for name, value in OWN_FIELDS.get(config.model_type or type(config).__name__, {}).items():
        setattr(config, name, value)
    for value in list(fields.values()):
        if isinstance(value, PretrainedConfig):
            _state(value)
    if "num_key_value_heads" in fields and fields["num_key_value_heads"] is None:
        config.num_key_value_heads = fields.get("num_attention_heads")
    if vars(config).get("num_kv_shared_layers"):
        config.num_kv_shared_layers = 0  # with it, late layers read what earlier ones have computed, and no stage is alone
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return plain


def _one_line(error: BaseException, family: str) -> str:
    text = " ".join(str(error).split()).removeprefix(f"{family}: ")
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _in_process(family: str, steps: int, limit_s: float, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 1))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answer.send(examine(family, steps))


def limited(family: str, steps: int, limit_s: float) -> Row:
    """`examine` in a process that is ended after so many seconds of CPU, or when it has stood still for long."""
    context = multiprocessing.get_context("fork")  # torch and transformers are loaded once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(family, steps, limit_s, theirs))
    process.start()
    theirs.close()
    try:
        slow = Row(family, reason=f"it took longer than {limit_s:.0f} s of CPU")
        row: Row = ours.recv() if ours.poll(WALL * limit_s) else slow
    except EOFError:
        process.join()
        over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row = slow if over else Row(family, reason=f"its process ended with code {process.exitcode}")
    if process.is_alive():
        process.kill()
    process.join()
    return row


def quiet() -> None:
    """The library's notices and bars are left out."""
    library: Any = transformers.logging  # it has no annotations
    library.set_verbosity_error()
    library.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Asked:
    """What each family's line is to hold."""

    steps: int
    limit_s: float
    live: LiveFamilies | None = None


def row_of(family: str, asked: Asked, known: Row | None) -> Row:
    """The line of one family; of what is known already only the rest is done."""
    row = known if known is not None else limited(family, asked.steps, asked.limit_s)
    if asked.live is None or not row.equal or is_live(row):
        return row
    live = asked.live.trained(family, small_run(family), asked.steps)
    return replace(row, trained_steps=live.steps, reason=live.wrong or row.reason, live_losses=live.losses, live_lost=live.lost)


def is_live(row: Row) -> bool:
    """Has it been tried in a live swarm?"""
    return row.live_losses is not None or row.reason.startswith(PREFIX)


def written(path: Path | None) -> dict[str, Row]:
    """The newest line of each family in such a file; none in one that is not there. Raises InputError."""
    if path is None or not path.exists():
        return {}
    rows = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise InputError(str(path), f"line {number}", f"expected a line of this command: {error}") from error
        rows[row.family] = row
    return rows


def tell(row: Row, flags: argparse.Namespace, is_new: bool) -> None:
    """On the terminal, and what is new in the file."""
    line = json.dumps(asdict(row))
    if is_new and flags.out is not None:
        with flags.out.open("a") as file:
            file.write(f"{line}\n")
    told = f"loss {row.loss_difference} gradient {row.worst_gradient} export {row.export_equal} steps {row.trained_steps}"
    words = f"{row.family:24} {'equal' if row.equal else 'NOT equal'}  {told}  {row.reason}"
    print(line if flags.json else words, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="", help="comma-separated; all of the mapping without it")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each family")
    parser.add_argument("--limit_s", type=float, default=LIMIT_S, help="seconds of CPU for each family")
    parser.add_argument("--live", action="store_true", help="train each that is equal in a live swarm, too")
    parser.add_argument("--live_limit_s", type=float, default=LIVE_LIMIT_S, help="seconds of the clock for each live swarm")
    parser.add_argument("--out", type=Path, help="add each line to this file, and leave out what is there")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per family."""
    flags = parsed(arguments)
    quiet()
    torch.set_num_threads(1)
    asked = tuple(name for name in flags.families.split(",") if name)
    try:
        known = written(flags.out)
    except InputError as error:
        print(error)
        return 2
    with ExitStack() as stack:
        live = None
        if flags.live:
            live = LiveFamilies(
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwtf-families-"))), flags.live_limit_s
            )
            stack.callback(live.stop)
            live.begin(asked or supported_families())
        equal = 0
        for family in asked or supported_families():
            before = known.get(family)
            row = row_of(family, Asked(flags.steps, flags.limit_s, live), before)
            tell(row, flags, is_new=row != before)
            equal += row.equal
    return 0 if equal >= (len(asked) or ENOUGH) else 1


if __name__ == "__main__":
    raise SystemExit(main())
