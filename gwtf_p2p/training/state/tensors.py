"""The state of one part: what is trained of its weights, the optimizer's moments and the step count, as named tensors.

This is what a newcomer downloads, what a checkpoint holds and what peers of a stage compare. Names, with the whole model's
parameter names: `weights/<parameter>`, with AdamW `first_moment/<parameter>` and `second_moment/<parameter>` (float32, the
parameter's shape), with 8-bit AdamW the codes and scales of `compute/updates`, with Adafactor `row_variance/`,
`column_variance/` and `variance/`, where steps are delayed `previous/<parameter>`, the weights of the version before, and
`step` (int64, no dimensions). Data
peers' states have `contributions` too, once there are any: the bytes of `protocol/view/contributions`, padded with spaces to
whole int64s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.limits import MOST_ITERATIONS
from gwtf_p2p.protocol.view.contributions import MOST_BYTES, Contributions
from gwtf_p2p.training.compute.eight_bits import all_numbers
from gwtf_p2p.training.compute.gradients import all_finite
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes
from gwtf_p2p.training.compute.updates import NEVER_NEGATIVE
from gwtf_p2p.training.state.stored import renamed

WEIGHTS, STEP, CONTRIBUTIONS = "weights/", "step", "contributions"
MOST_COPIES, MOST_BESIDE_BYTES = 4, 4096
"""Tensors of a parameter's size in a state; what the step count and the last words take besides."""


def export_state(parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer) -> dict[str, Tensor]:
    """A snapshot on the CPU, in fresh memory: later steps don't change it."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in live_state(parameters, optimizer).items()}


def live_state(parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer) -> dict[str, Tensor]:
    """The same names without a copy: the tensors that are trained. For hashing between two steps, not for handing on."""
    state: dict[str, Tensor] = {f"{WEIGHTS}{name}": parameter.detach() for name, parameter in parameters.items()}
    state |= optimizer.state_tensors()
    state[STEP] = torch.tensor(optimizer.steps, dtype=torch.int64)
    return state


def load_state(parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer, state: Mapping[str, Tensor]) -> int:
    """Overwrite weights, moments and step count in place; returns the step count (the weights version).

    Raises RemoteProtocolError, and changes nothing, if a tensor is missing, unknown, of another shape or dtype, not finite, or
    negative where its root is taken.
    """
    expected = live_state(parameters, optimizer)
    for name in sorted(state.keys() - expected.keys()):
        raise RemoteProtocolError(f"state: {name}: not a tensor of this part")
    _check(expected, state)
    optimizer.forget_state()  # until all of it is here: what is half overwritten is of no version
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"{WEIGHTS}{name}"])
    steps = int(state[STEP])
    optimizer.load_state_tensors(state, steps)
    return steps


def load_weights(
    parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], optimizer: PartOptimizer | None = None
) -> int:
    """Overwrite the weights alone, in place; returns the step count of the state that they are of. An `optimizer` of these
    parameters has no state from then on (`load_moments`).

    Raises RemoteProtocolError, and changes nothing, if one is missing, of another shape or dtype, or not finite.
    """
    expected = {f"{WEIGHTS}{name}": parameter.detach() for name, parameter in parameters.items()}
    _check({**expected, STEP: torch.tensor(0, dtype=torch.int64)}, state)
    steps = int(state[STEP])
    if optimizer is not None:
        optimizer.forget_state()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"{WEIGHTS}{name}"])
    if optimizer is not None:
        optimizer.forget_state(weights_of=steps)
    return steps


def is_of_weights(name: str) -> bool:
    """Whether microbatches are computed with this tensor of a state; the step count, which says of which version, is one."""
    return name.startswith(WEIGHTS) or name == STEP


def load_moments(parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer, state: Mapping[str, Tensor]) -> int:
    """Overwrite all but the weights, which are those of this state already; returns the step count. Raises as `load_state`."""
    expected = live_state(parameters, optimizer)
    for name in sorted(state.keys() - expected.keys()):
        raise RemoteProtocolError(f"state: {name}: not a tensor of this part")
    _check({name: tensor for name, tensor in expected.items() if not name.startswith(WEIGHTS)}, state)
    steps = int(state[STEP])
    optimizer.load_state_tensors(state, steps)
    return steps


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises RemoteProtocolError when one is missing, of another shape or dtype, not finite, or a variance below 0."""
    for name, tensor in sorted(expected.items()):
        found = state.get(name)
        if found is None:
            raise RemoteProtocolError(f"state: {name}: missing")
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise RemoteProtocolError(f"state: {name}: expected {_kind(tensor)}, got {_kind(found)}")
        codes = found.dtype == torch.uint8
        if (found.is_floating_point() and not all_finite([found])) or (codes and not all_numbers(found)):
            raise RemoteProtocolError(f"state: {name}: expected finite numbers")
        if name.startswith(NEVER_NEGATIVE) and bool((found < 0).any()):
            raise RemoteProtocolError(f"state: {name}: expected no negative numbers")
        del found  # it may be memory of its own, and the next one comes
    if STEP in expected and not 0 <= int(state[STEP]) <= MOST_ITERATIONS:
        raise RemoteProtocolError(f"state: {STEP}: expected a whole number from 0 to {MOST_ITERATIONS}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def most_state_bytes(parameters: Mapping[str, nn.Parameter]) -> int:
    """What a state of this part takes at most: two versions of the weights and two moments of their size, and what its peers
    have contributed."""
    return MOST_COPIES * sum(parameter.nbytes for parameter in parameters.values()) + MOST_BYTES + MOST_BESIDE_BYTES


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Sha256 (hex) over names, dtypes, shapes and bytes, sorted by name: equal exactly if the states are equal to the bit."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def with_contributions(state: dict[str, Tensor], contributions: Contributions) -> dict[str, Tensor]:
    """The state with what its peers have contributed to it; the same where that is nothing."""
    if not contributions:
        return state
    data = contributions.to_bytes()
    padded = bytearray(data.ljust(-(-len(data) // 8) * 8))
    return {**state, CONTRIBUTIONS: torch.frombuffer(padded, dtype=torch.int64)}


def take_contributions(state: Mapping[str, Tensor]) -> tuple[Contributions, Mapping[str, Tensor]]:
    """What a state says of contributions, and the rest of it. Raises RemoteProtocolError."""
    if CONTRIBUTIONS not in state:
        return Contributions(), state
    rest, tensor = renamed(state, {name: name for name in state if name != CONTRIBUTIONS}), state[CONTRIBUTIONS]
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise RemoteProtocolError(f"state: {CONTRIBUTIONS}: expected int64 in one dimension")
    return Contributions.from_bytes(bytes(tensor_bytes(tensor))), rest
