"""The recipe of a run, part of its record because every peer of a stage must step alike: optimizer, schedule, loss, and on
what it is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.ranges import check_ranges

MOST_ITERATIONS = 2**40
LONGEST_PROMPT = 256
BYTE_TOKENIZER = "byte"
EIGHT_BIT_BLOCK, EIGHT_BIT_LEAST = 256, 4096
"""With `adamw_8bit`: values that share a scale, and of how many values a tensor's moments are in 8 bits (below, in float32)."""


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """The optimizer and its schedule.

    With `warmup_tokens` the run's publisher computes `warmup_iterations` from them. `no_decay` are patterns of the parameters'
    names (`*` stands for anything) that no weight decay is for; vectors (norms, biases) never have any.
    """

    kind: Annotated[
        Literal["adamw", "adamw_8bit", "adafactor"],
        "16 bytes a parameter with its gradient (AdamW), 10 (AdamW with moments in 8 bits), or about 8 (Adafactor)",
    ] = "adamw"
    learning_rate: Annotated[float, Gt(0), Le(1e30), "step size, at its highest"] = 1e-3
    beta1: Annotated[float, Ge(0), Lt(1), "decay of the first moment (AdamW)"] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), "decay of the second moment (AdamW)"] = 0.95
    epsilon: Annotated[float, Gt(0), Le(1), "added to the root of the second moment (AdamW)"] = 1e-8
    weight_decay: Annotated[float, Ge(0), Le(1e6), "decoupled decay of matrices, times the learning rate"] = 0.0
    no_decay: Annotated[tuple[str, ...], MaxLen(64), "patterns of parameter names that are not decayed"] = ()
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "wsd"],
        "how the learning rate goes on after the warm-up (wsd: stays, then falls)",
    ] = "constant"
    min_learning_rate: Annotated[float, Ge(0), Le(1e30), "where linear, cosine and wsd end, and stay"] = 0.0
    warmup_iterations: Annotated[int, Ge(0), Le(MOST_ITERATIONS), "iterations in which the learning rate rises"] = 0
    warmup_tokens: Annotated[int, Ge(0), Le(2**62), "the same in tokens, instead"] = 0
    total_iterations: Annotated[int, Ge(0), Le(MOST_ITERATIONS), "iteration at which linear, cosine and wsd end"] = 0
    decay_iterations: Annotated[int, Ge(0), Le(MOST_ITERATIONS), "how long before it wsd begins to fall, in a line"] = 0
    gradient_clip: Annotated[float, Ge(0), Le(1e30), "limit of the whole model's gradient norm (0: none)"] = 0.0

    def validate(self, where: str) -> None:
        """Raises InputError that names the first field out of range."""
        check_ranges(self, where, "optimizer.")
        if self.schedule != "constant" and self.total_iterations <= self.warmup_iterations:
            raise InputError(where, "optimizer.total_iterations", "expected more iterations than warmup_iterations")
        if self.min_learning_rate > self.learning_rate:
            raise InputError(where, "optimizer.min_learning_rate", f"expected at most the learning rate {self.learning_rate}")
        if (self.schedule == "wsd") != bool(self.decay_iterations):
            expected = "expected at least 1 with the schedule wsd" if self.schedule == "wsd" else "expected the schedule wsd"
            raise InputError(where, "optimizer.decay_iterations", expected)
        if self.decay_iterations and self.decay_iterations > self.total_iterations - self.warmup_iterations:
            raise InputError(
                where, "optimizer.decay_iterations", "expected at most what the warm-up leaves of total_iterations"
            )

    def in_iterations(self, tokens_per_iteration: int, where: str) -> OptimizerSpec:
        """With a warm-up that is stated in tokens as whole iterations. Raises InputError for one that is stated twice."""
        if not self.warmup_tokens:
            return self
        iterations = math.ceil(self.warmup_tokens / tokens_per_iteration)
        if self.warmup_iterations not in (0, iterations):
            expected = f"expected it alone, or the {iterations} iterations that {self.warmup_tokens} tokens are"
            raise InputError(where, "optimizer.warmup_iterations", expected)
        return replace(self, warmup_iterations=iterations)


@dataclass(frozen=True, slots=True)
class LossSpec:
    """What is added to the cross entropy of the next token; a microbatch's loss is the mean over its tokens that have labels.

    `z` times the squared logarithm of the softmax's denominator keeps logits from drifting (PaLM, arXiv 2204.02311, section 5).
    """

    z: Annotated[float, Ge(0), Le(1e3), "weight of the squared logarithm of the softmax's denominator"] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1), "share of the label that goes to all tokens alike"] = 0.0
    balance: Annotated[float, Ge(0), Le(1e3), "weight of the experts' balance loss: the mean of each layer's own"] = 0.0


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """The loss on text that is not trained on, every so many iterations, by the data peer of shard 0, which holds its own
    microbatches back meanwhile.

    That text is a share of the training windows, which then nobody trains on, or another dataset. `prompts` are gone on with
    greedily, a token a time through the swarm. What whoever leads makes of the losses (`view/evaluations`) is part of every
    commit, so with `patience` all peers end alike.
    """

    every: Annotated[int, Ge(0), Le(MOST_ITERATIONS), "iterations between two evaluations (0: none)"] = 0
    microbatches: Annotated[int, Ge(1), Le(2**20), "microbatches of an evaluation, at most"] = 8
    held_out: Annotated[float, Ge(0), Le(0.5), "share of the training windows that is held out for it"] = 0.0
    dataset: Annotated[str, MaxLen(1024), "dataset that is evaluated on instead"] = ""
    split: Annotated[str, MinLen(1), MaxLen(64), "split of that dataset"] = "validation"
    prompts: Annotated[tuple[str, ...], MaxLen(8), "texts that the model goes on with, each a line of the log"] = ()
    text_tokens: Annotated[int, Ge(1), Le(4096), "tokens of each of these texts, at most"] = 32
    patience: Annotated[int, Ge(0), Le(2**20), "evaluations in a row without a lower loss that end the run (0: none do)"] = 0
    keep_best: Annotated[bool, "every peer keeps the checkpoint whose evaluation has the lowest loss"] = False

    def validate(self, where: str) -> None:
        """Raises InputError for an evaluation on nothing, or on two things."""
        if self.every and bool(self.held_out) == bool(self.dataset):
            raise InputError(where, "evaluation.held_out", "expected a share above 0, or a dataset instead")
        if not self.every and (self.held_out or self.dataset or self.prompts or self.patience or self.keep_best):
            raise InputError(where, "evaluation.every", "expected a whole number above 0, or no data to evaluate on")
        if any(len(prompt) > LONGEST_PROMPT for prompt in self.prompts):
            raise InputError(where, "evaluation.prompts", f"expected texts of at most {LONGEST_PROMPT} characters")

    def check_room(self, where: str, sequence_length: int) -> None:
        """Of texts whose tokens are their bytes. Raises InputError for one that leaves no room for another token."""
        if any(len(prompt.encode(errors="replace")) >= sequence_length for prompt in self.prompts):
            expected = f"expected texts of at most {sequence_length - 1} tokens, since windows have {sequence_length}"
            raise InputError(where, "evaluation.prompts", expected)

    def is_due(self, version: int) -> bool:
        """Weights of this version are evaluated."""
        return bool(self.every) and version % self.every == 0
