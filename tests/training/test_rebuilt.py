"""A stage rebuilt from its neighbours: which layers it takes, and with which weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.model.split import PartSpec, build_stage_part
from gwtf_p2p.training.state.rebuilt import rebuilt_state
from gwtf_p2p.training.state.tensors import export_state, load_state
from tests.training.swarm import LLAMA, run_record

SPLIT = ((0, 1), (1, 3), (3, 4))


def run(kind: str = "adamw") -> RunRecord:
    config = {**LLAMA, "num_hidden_layers": 4}
    return replace(run_record(config), layer_split=SPLIT, optimizer=OptimizerSpec(kind=kind))  # type: ignore[arg-type]


class Stage:
    """One that has taken a step with gradients of this size."""

    def __init__(self, run: RunRecord, stage: int, gradient: float) -> None:
        self.parameters = build_stage_part(PartSpec.of(run, stage)).parameters
        self.optimizer = PartOptimizer(self.parameters, run.optimizer)
        if gradient:
            self.optimizer.step({name: torch.full_like(p, gradient) for name, p in self.parameters.items()}, 0, 1.0)

    @property
    def state(self) -> dict[str, Tensor]:
        return export_state(self.parameters, self.optimizer)


def weight(state: dict[str, Tensor], layer: int) -> Tensor:
    return state[f"weights/model.layers.{layer}.mlp.up_proj.weight"]


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "adafactor"])
def test_a_middle_stage_is_the_average_of_its_neighbours_weighted_by_their_gradients(kind: str) -> None:
    record = run(kind)
    before, own, after = Stage(record, 1, 1.0), Stage(record, 2, 0.0), Stage(record, 3, 3.0)
    rebuilt = rebuilt_state(own.state, [before.state, after.state])
    share = 9 / 10  # squared norms of 1 and 9, on as many weights
    expected = (1 - share) * weight(before.state, 0) + share * weight(after.state, 3)
    for layer in (1, 2):
        torch.testing.assert_close(weight(rebuilt, layer), expected)
    assert load_state(own.parameters, own.optimizer, rebuilt) == 1, "it is a state of that stage, at the neighbours' version"
    assert any(float(tensor.abs().sum()) > 0 for name, tensor in rebuilt.items() if not name.startswith("weights/"))


def test_before_any_step_both_count_alike() -> None:
    record = run()
    before, after = Stage(record, 1, 0.0).state, Stage(record, 3, 0.0).state
    rebuilt = rebuilt_state(Stage(record, 2, 0.0).state, [before, after])
    torch.testing.assert_close(weight(rebuilt, 1), (weight(before, 0) + weight(after, 3)) / 2)


def test_a_first_or_last_stage_takes_over_its_neighbours_nearest_layers() -> None:
    record = run()
    middle = Stage(record, 2, 1.0).state
    first = rebuilt_state(Stage(record, 1, 0.0).state, [middle])
    torch.testing.assert_close(weight(first, 0), weight(middle, 1), rtol=0, atol=0)
    wide = replace(record, layer_split=((0, 2), (2, 4)))
    second = Stage(wide, 2, 1.0).state
    taken = rebuilt_state(Stage(wide, 1, 0.0).state, [second])
    for mine, theirs in ((0, 2), (1, 3)):
        torch.testing.assert_close(weight(taken, mine), weight(second, theirs), rtol=0, atol=0)


def test_beside_an_end_stage_of_thin_data_peers_its_layers_alone_count() -> None:
    record = replace(run(), thin_data_peers=True)
    before, own, after = Stage(record, 1, 1.0), Stage(record, 2, 0.0), Stage(record, 3, 3.0)
    assert "weights/model.embed_tokens.weight" in before.state and "weights/lm_head.weight" in after.state
    rebuilt = rebuilt_state(own.state, [before.state, after.state])
    torch.testing.assert_close(weight(rebuilt, 1), 0.1 * weight(before.state, 0) + 0.9 * weight(after.state, 3))
    for end in (before, after):
        with pytest.raises(RemoteProtocolError, match="it is of no layer"):
            rebuilt_state(end.state, [own.state])


def test_layers_of_another_kind_are_no_counterparts() -> None:
    def layer(number: int, size: int, step: int = 4) -> dict[str, Tensor]:
        return {f"weights/model.layers.{number}.w": torch.full((size,), float(number)), "step": torch.tensor(step)}

    both = {**layer(3, 2), **layer(4, 5)}
    assert rebuilt_state(layer(2, 2), [layer(1, 5), both])["weights/model.layers.2.w"].tolist() == [3.0, 3.0]
    with pytest.raises(RemoteProtocolError, match="no layer of the neighbouring stages is like layer 2"):
        rebuilt_state(layer(2, 7), [layer(1, 5), both])
    with pytest.raises(RemoteProtocolError, match="one version"):
        rebuilt_state(layer(2, 5), [layer(1, 5), layer(3, 5, step=5)])
    with pytest.raises(RemoteProtocolError, match="of no layer"):
        rebuilt_state({"weights/norm": torch.ones(2), "step": torch.tensor(1)}, [layer(1, 5)])
