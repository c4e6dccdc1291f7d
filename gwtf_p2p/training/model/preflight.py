"""Does the split model compute what the unsplit one does? Asked of a small copy, before a run is published.

Rules.
- The run's config is shrunk (same types, few layers, tiny widths), cut into three stages and a data part, and loss and every
  parameter's gradient are compared with the unsplit model's. A difference above `BOUND` is refused with the parameter's name.
- Refused by name, too: a model that sees later tokens, one whose forward is random, one that keeps state between calls (a
  microbatch that is computed again after a crash would count twice in it).
- Where attention goes by documents, a window of several of them has to give the loss and gradients of each one alone, within
  `PACKED_BOUND`: kernels for other lengths round otherwise.
- Where boundaries are coefficients in a subspace, the weights that write to the residual stream are found and what they add is
  verified to lie in it (`subspace/writers`), and the split model is compared with the unsplit one of the same weights.
- The fingerprint tells installations apart that compute something else from the same record: the small copy's loss; for each
  kind of parameter (its name without numbers) the norm of its gradients and a projection of them; for each kind of table that
  the real config gives (rotary frequencies) the norm and the mean logarithm, so that the smallest frequency counts like the
  largest. Published with 6 digits; another installation has to come within 1e-3 of the norm, because other CPUs round
  otherwise (1e-6 was seen) and a hash of rounded numbers would differ wherever one lies near a rounding edge.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import Fingerprint
from gwtf_p2p.training.model.balance import FIELD as BALANCE
from gwtf_p2p.training.model.balance import Balance
from gwtf_p2p.training.model.config import CONFIG_ERRORS, RUN_RECORD, load_config, one_line
from gwtf_p2p.training.model.doors import Payload, Structure, document_positions
from gwtf_p2p.training.model.parts.layer_split import free_from
from gwtf_p2p.training.model.skeleton import build_skeleton, decoder_layers
from gwtf_p2p.training.model.split import PartSpec, StagePart, data_part, stage_part
from gwtf_p2p.training.model.structure import LENGTH, ROWS, sample_tokens, small_config, structure_of, whole_model
from gwtf_p2p.training.model.subspace.basis import FIELD as SUBSPACE
from gwtf_p2p.training.model.subspace.whole import WholeInSubspace

BOUND = 1e-5
"""Relative to the parameter's largest gradient. On one machine the difference is 0 wherever it was tried."""
PACKED_BOUND = 1e-4
TOLERANCE = 1e-3
SEED = 0
SMALL_FACTOR = 4
"""Of a subspace in a small copy, which is not wide enough for larger ones to say much."""

_MOST_KINDS = 96
_FIELD = "model_config.model_type"


@dataclass(frozen=True, slots=True)
class Result:
    """A loss, and the gradient of every parameter that has one."""

    loss: float
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`gradients` maps parameters to the largest difference, relative to the parameter's largest gradient."""

    loss: float
    gradients: Mapping[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.gradients.items(), key=lambda item: (math.isnan(item[1]), item[1]), default=("", 0.0))


def versions() -> dict[str, str]:
    """Releases of what decides a model's arithmetic."""
    return {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}


class Thin(Enum):
    """Whether data peers hold no weights; in one stage embedding and head are together, and may be one weight."""

    NOT, ONE_STAGE, STAGES = range(3)

    @staticmethod
    def of(thin: bool, stages: int) -> Thin:
        """Of a run."""
        return Thin.NOT if not thin else Thin.ONE_STAGE if stages == 1 else Thin.STAGES


def preflight(
    model_config: Mapping[str, Any],
    where: str = RUN_RECORD,
    *,
    by_document: bool = False,
    balance: float = 0.0,
    subspace: bool = False,
    thin: Thin = Thin.NOT,
) -> Fingerprint:
    """Raises InputError that names what differs; returns this installation's fingerprint.

    `by_document`: documents in one window are not to see each other. `balance`: weight of the experts' balance loss.
    `subspace`: boundaries are coefficients in one. `thin`: data peers hold no weights.
    """
    config = load_config(model_config, where)
    structure, small = structure_of(model_config, where), small_config(model_config, where)
    model = whole_model(small, SEED, where)
    unsplit = checked_unsplit(model, where)
    compared = compare(unsplit, split_result(Parts(small, structure, where, thin=thin)))
    name, worst = compared.worst
    if not compared.loss <= BOUND * max(1.0, abs(unsplit.loss)) or not worst <= BOUND:
        text = f"split and unsplit model differ: loss by {compared.loss:.1e}, the gradient of {name} by {worst:.1e}"
        field = _FIELD if thin is Thin.NOT else "thin_data_peers"
        raise InputError(where, field, f"{small.model_type} cannot be split: {text}")
    if by_document:
        _check_packing(small, structure, thin, where)
    if balance:
        _check_balance(small, structure, balance, thin, where)
    if subspace:
        _check_subspace(small, structure, by_document, thin, where)
    return _fingerprint(unsplit, config, where)


def mismatch(model_config: Mapping[str, Any], published: Fingerprint, where: str = RUN_RECORD) -> str:
    """Why this installation cannot take part in a run; empty if it can, or if the run has no fingerprint. Raises InputError."""
    if not published.numbers:
        return ""
    own, names = _own_fingerprint(json.dumps(dict(model_config), sort_keys=True, default=str), where)
    both = ", ".join(f"{n} {published.versions.get(n, '?')} there and {v} here" for n, v in own.versions.items())
    if len(own.numbers) != len(published.numbers):
        return f"model_config: the model has other parameters here than where the run was made ({both})"
    for name, here, there in zip(names, _pairs(own), _pairs(published), strict=True):
        bound = TOLERANCE * max(abs(there[0]), 1e-6)
        if not all(abs(a - b) <= bound for a, b in zip(here, there, strict=True)):
            return (
                f"model_config: {name} is {there[0]:.6g}, {there[1]:.6g} there and {here[0]:.6g}, {here[1]:.6g} here ({both})"
            )
    return ""


class Parts:
    """A small model in three stages and a data part."""

    def __init__(
        self,
        small: PretrainedConfig,
        structure: Structure,
        where: str = RUN_RECORD,
        *,
        by_document: bool = False,
        balance: float = 0.0,
        subspace: int = 0,
        thin: Thin = Thin.NOT,
    ) -> None:
        layers = len(decoder_layers(build_skeleton(small, where), where)[1])
        cuts = [0, layers] if thin is Thin.ONE_STAGE else sorted({0, 1, max(1, layers - 1), layers})
        split = tuple(itertools.pairwise(cuts))
        self.tokens_BT, self.labels_BT = sample_tokens(small, 0), sample_tokens(small, 1)
        end_token = int(self.tokens_BT[0, 0]) if by_document else -1
        if by_document:
            self.tokens_BT, self.labels_BT = _several_documents(self.tokens_BT, self.labels_BT)
        stages = range(len(split) + 1)
        is_thin = thin is not Thin.NOT
        settings: dict[str, Any] = {"end_token": end_token, "balance": balance, "subspace": subspace, "thin": is_thin}
        specs = [PartSpec({}, split, k, SEED, (ROWS, LENGTH), **settings) for k in stages]
        self.free_from = free_from(split, is_thin)
        self.data = None if is_thin else data_part(small, structure, specs[0], where)
        self.stages: list[StagePart] = [stage_part(small, structure, spec, where) for spec in specs[1:]]

    @property
    def given(self) -> Payload:
        """What stage 1 gets."""
        if self.data is not None:
            return self.data.embed(self.tokens_BT)
        stage = self.stages[0]
        positions = () if stage.end_token < 0 else (document_positions(self.tokens_BT, stage.end_token),)
        return (self.tokens_BT, self.labels_BT, *positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """logits_BTV of what the last stage gives."""
        return self.stages[-1].logits(hidden) if self.data is None else self.data.logits(self.tokens_BT, hidden)


def compare(unsplit: Result, split: Result) -> Comparison:
    """Differences of every parameter; one without a gradient on one side has one of zeros."""
    found: dict[str, float] = {}
    for name in unsplit.gradients.keys() | split.gradients.keys():
        one, other = unsplit.gradients.get(name), split.gradients.get(name)
        if one is None or other is None:
            there = one if one is not None else other
            assert there is not None
            found[name] = 1.0 if there.any() else 0.0
            continue
        found[name] = (one - other).abs().max().item() / max(one.abs().max().item(), 1e-30)
    return Comparison(abs(unsplit.loss - split.loss), dict(sorted(found.items())))


def split_result(parts: Parts) -> Result:
    """Loss and gradients with every boundary cut, as if payloads had travelled."""
    outputs: list[Payload] = [parts.given]
    inputs: list[Payload] = []
    for stage in parts.stages:
        inputs.append(_leaves(outputs[-1]))
        outputs.append(stage.forward(inputs[-1]))
        balance = stage.balance_loss()
        if balance is not None:
            balance.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    hidden = outputs[-1][0].detach().requires_grad_()
    loss = functional.cross_entropy(parts.logits(hidden).flatten(0, 1).float(), parts.labels_BT.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    gradient: list[Tensor | None] = [hidden.grad, *[None] * (len(outputs[-1]) - 1)]
    for output, payload in zip(outputs[:0:-1], reversed(inputs), strict=True):
        _backward(output, gradient)
        gradient = [tensor.grad for tensor in payload]
    _backward(outputs[0], gradient)
    held = (*([] if parts.data is None else [parts.data]), *parts.stages)
    named = {name: p.grad for part in held for name, p in part.parameters.items()}
    return Result(loss.item(), {name: gradient for name, gradient in named.items() if gradient is not None})


def checked_unsplit(model: PreTrainedModel, where: str = RUN_RECORD) -> Result:
    """Loss and gradients of the unsplit small model. Raises InputError if it is not causal, random, or keeps state."""
    kind = model.config.model_type
    tokens_BT, labels_BT = sample_tokens(model.config, 0), sample_tokens(model.config, 1)
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept = [name for name in model.state_dict() if name in state]
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        again_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        later = tokens_BT.clone()
        later[:, LENGTH // 2 :] = labels_BT[:, LENGTH // 2 :]
        other_BTV = model(input_ids=later, use_cache=False).logits
    scale = logits_BTV.abs().max().item()
    # Not to the bit: with and without a graph the library may take other kernels.
    if not (again_BTV - logits_BTV).abs().max().item() <= BOUND * scale:
        raise InputError(where, _FIELD, f"{kind} cannot be trained here: the same tokens give other logits a second time")
    buffers = dict(model.named_buffers())
    for name in kept:
        if not torch.equal(buffers[name], state[name]):
            raise InputError(where, _FIELD, f"{kind} cannot be trained here: {name} keeps state between calls")
    before = slice(0, LENGTH // 2)
    if not (other_BTV[:, before] - logits_BTV[:, before]).abs().max().item() <= BOUND * scale:
        field = "model_config.is_decoder" if hasattr(model.config, "is_decoder") else _FIELD
        raise InputError(where, field, f"expected a causal model, but what {kind} says of a token depends on later ones")
    return Result(loss.item(), gradients)


def _several_documents(tokens_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The same window cut by an id that ends documents, the one that was its first; behind it nothing is learnt."""
    end_token = int(tokens_BT[0, 0])
    other = next(int(token) for token in tokens_BT.flatten() if int(token) != end_token)
    tokens_BT = torch.where(tokens_BT == end_token, other, tokens_BT)
    for row, ends in enumerate(((4, 10), (8,))):
        tokens_BT[row, list(ends)] = end_token
    return tokens_BT, torch.where(tokens_BT == end_token, -100, labels_BT)


def _check_packing(small: PretrainedConfig, structure: Structure, thin: Thin, where: str) -> None:
    """Raises InputError where a document computes something else beside others than alone."""
    field, kind = "attention", small.model_type
    parts = Parts(small, structure, where, by_document=True, thin=thin)
    tokens_BT, labels_BT = parts.tokens_BT, parts.labels_BT
    end_token = int(sample_tokens(small, 0)[0, 0])
    positions_BT = document_positions(tokens_BT, end_token)

    def alone(model: PreTrainedModel) -> Tensor:
        rows = []
        for tokens_T, positions_T in zip(tokens_BT, positions_BT, strict=True):
            begins = [*(positions_T == 0).nonzero().flatten().tolist(), len(tokens_T)]
            pieces = (tokens_T[a:b][None] for a, b in itertools.pairwise(begins))
            rows.append(torch.cat([model(input_ids=piece, use_cache=False).logits for piece in pieces], dim=1))
        return torch.cat(rows)

    def beside(model: PreTrainedModel) -> Tensor:
        logits_BTV: Tensor = model(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False).logits
        return logits_BTV

    try:
        single, packed = (_result_of(whole_model(small, SEED, where), each, labels_BT) for each in (alone, beside))
    except CONFIG_ERRORS as error:
        raise InputError(where, field, f"{kind} does not keep documents apart: {one_line(error)}") from error
    for one, other, bound in ((single, packed, PACKED_BOUND), (packed, split_result(parts), BOUND)):
        compared = compare(one, other)
        name, worst = compared.worst
        if not compared.loss <= bound * max(1.0, abs(one.loss)) or not worst <= bound:
            differs = f"beside others the loss is another by {compared.loss:.1e}, the gradient of {name} by {worst:.1e}"
            raise InputError(where, field, f"expected window: {kind} does not keep documents apart: {differs}")


def _check_balance(small: PretrainedConfig, structure: Structure, weight: float, thin: Thin, where: str) -> None:
    """Raises InputError where the library has no balance loss for a layer, or the stages' are not the unsplit model's."""
    model = whole_model(small, SEED, where)
    name, layers = decoder_layers(model, where)
    balance = Balance(model, name, range(len(layers)), weight, where)
    tokens_BT, labels_BT = sample_tokens(small, 0), sample_tokens(small, 1)
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten())
    balanced = balance.taken()
    assert balanced is not None, "a layer with a router was run"
    (loss + balanced).backward()  # type: ignore[no-untyped-call]
    unsplit = Result(loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    compared = compare(unsplit, split_result(Parts(small, structure, where, balance=weight, thin=thin)))
    name, worst = compared.worst
    if not compared.loss <= BOUND * max(1.0, abs(loss.item())) or not worst <= BOUND:
        differs = f"expected 0: with it the split and the unsplit model's gradients of {name} differ by {worst:.1e}"
        raise InputError(where, BALANCE, differs)


def _check_subspace(small: PretrainedConfig, structure: Structure, by_document: bool, thin: Thin, where: str) -> None:
    """Raises InputError where the split model is not the unsplit one of the same weights."""
    parts = Parts(small, structure, where, by_document=by_document, subspace=SMALL_FACTOR, thin=thin)
    whole = WholeInSubspace(small, SMALL_FACTOR, SEED, where, free_from=parts.free_from)
    positions_BT = document_positions(parts.tokens_BT, parts.stages[0].end_token) if by_document else None
    logits_BTV = whole.logits(parts.tokens_BT, positions_BT)
    loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), parts.labels_BT.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    unsplit = Result(loss.item(), {name: p.grad for name, p in whole.parameters.items() if p.grad is not None})
    compared = compare(unsplit, split_result(parts))
    name, worst = compared.worst
    if not compared.loss <= BOUND * max(1.0, abs(loss.item())) or not worst <= BOUND:
        differs = f"split and unsplit model differ: loss by {compared.loss:.1e}, the gradient of {name} by {worst:.1e}"
        raise InputError(where, SUBSPACE, f"expected none: {differs}")


def _result_of(model: PreTrainedModel, logits_of: Callable[[PreTrainedModel], Tensor], labels_BT: Tensor) -> Result:
    loss = functional.cross_entropy(logits_of(model).flatten(0, 1).float(), labels_BT.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return Result(loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def _leaves(payload: Payload) -> Payload:
    return tuple(t.detach().requires_grad_() if t.is_floating_point() else t for t in payload)


def _backward(output: Payload, gradient: list[Tensor | None]) -> None:
    pairs = [(x, g) for x, g in zip(output, gradient, strict=True) if g is not None and x.requires_grad]
    torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])


@lru_cache(maxsize=16)
def _own_fingerprint(model_config: str, where: str) -> tuple[Fingerprint, tuple[str, ...]]:
    plain = json.loads(model_config)
    config = load_config(plain, where)
    unsplit = checked_unsplit(whole_model(small_config(plain, where), SEED, where), where)
    return _fingerprint(unsplit, config, where), ("loss", *_numbers(unsplit, config, where))


def _fingerprint(unsplit: Result, config: PretrainedConfig, where: str) -> Fingerprint:
    pairs = [(unsplit.loss, 0.0), *_numbers(unsplit, config, where).values()]
    return Fingerprint(tuple(float(f"{number:.6g}") for pair in pairs for number in pair), versions())


def _pairs(fingerprint: Fingerprint) -> list[tuple[float, float]]:
    return list(zip(fingerprint.numbers[::2], fingerprint.numbers[1::2], strict=True))


def _numbers(unsplit: Result, config: PretrainedConfig, where: str) -> dict[str, tuple[float, float]]:
    """(norm, projection) of every kind of gradient, then (norm, mean logarithm) of every kind of table."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for name, gradient in sorted(unsplit.gradients.items()):
        flat = gradient.double().flatten()
        wave = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
        kinds.setdefault(f"gradient of {_kind(name)}", []).append((float(flat @ flat), float(flat @ wave)))
    found = {kind: (math.sqrt(sum(s for s, _ in pairs)), sum(p for _, p in pairs)) for kind, pairs in kinds.items()}
    for name, buffer in build_skeleton(config, where).named_buffers():
        if buffer.is_floating_point() and not buffer.is_meta and buffer.numel() and f"table {_kind(name)}" not in found:
            flat = buffer.double().flatten()
            flat = flat[torch.isfinite(flat) & (flat != 0)]
            if flat.numel():
                found[f"table {_kind(name)}"] = (float(flat.norm()), float(flat.abs().log().mean()))
    return dict(list(found.items())[:_MOST_KINDS])


def _kind(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", "", name)
