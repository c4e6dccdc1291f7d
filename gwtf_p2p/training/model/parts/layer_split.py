"""How decoder layers are dealt to stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.model.config import RUN_RECORD

LayerSplit = tuple[tuple[int, int], ...]


def default_layer_split(layers: int, stages: int, where: str = RUN_RECORD) -> LayerSplit:
    """Contiguous ranges of decoder layers, as even as can be, the longer ones first. Raises InputError (`stages`)."""
    if not 1 <= stages <= layers:
        raise InputError(where, "stages", f"expected 1 to {layers} (the model's decoder layers), got {stages}")
    size, longer = divmod(layers, stages)
    starts = [k * size + min(k, longer) for k in range(stages + 1)]
    return tuple(itertools.pairwise(starts))


def weighed_layer_split(loads: Sequence[float], stages: int, where: str = RUN_RECORD) -> LayerSplit:
    """Contiguous ranges of layers that bear so much each, as even as can be: the sum of the squares of what stages bear is
    least. O(stages x layers^2), longer ranges first where that is the same. Raises InputError (`stages`)."""
    layers = len(loads)
    default_layer_split(layers, stages, where)
    borne = [0.0, *itertools.accumulate(loads)]
    least = [load**2 for load in borne]
    least[0] = float("inf")
    cuts: list[list[int]] = []
    for _ in range(1, stages):
        chosen = [
            min(range(end - 1, -1, -1), key=lambda cut: least[cut] + (borne[end] - borne[cut]) ** 2)
            for end in range(1, layers + 1)
        ]
        least = [float("inf"), *(least[cut] + (borne[end] - borne[cut]) ** 2 for end, cut in enumerate(chosen, 1))]
        cuts.append([0, *chosen])
    starts = [layers]
    for chosen in reversed(cuts):
        starts.append(chosen[starts[-1]])
    return tuple(itertools.pairwise([0, *starts[::-1]]))


def free_from(layer_split: Sequence[Sequence[int]], thin: bool) -> int | None:
    """From which layer on a run's subspace does not bind: those of the last stage, where it has the head (None: none)."""
    return layer_split[-1][0] if thin else None


def check_layer_split(layer_split: LayerSplit, layers: int, where: str = RUN_RECORD) -> None:
    """The ranges have to cover layers 0 to `layers` in order, each with at least one layer. Raises InputError."""
    if len(layer_split) > layers:
        raise InputError(where, "layer_split", f"expected at most {layers} stages (decoder layers), got {len(layer_split)}")
    expected_start = 0
    for start, end in layer_split:
        if start != expected_start or end <= start:
            raise InputError(where, "layer_split", f"expected a range that starts at layer {expected_start}, got {start}-{end}")
        expected_start = end
    if expected_start != layers:
        raise InputError(where, "layer_split", f"expected ranges up to layer {layers}, got up to {expected_start}")
