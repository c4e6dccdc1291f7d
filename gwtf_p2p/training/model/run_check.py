"""Everything about a run record that only the model can judge."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import BoundarySpec, RunRecord
from gwtf_p2p.training.model.config import RUN_RECORD, load_config
from gwtf_p2p.training.model.skeleton import build_skeleton, decoder_layers
from gwtf_p2p.training.model.split import PartSpec, boundary_of, check_layer_split, parameter_shapes


def check_run(run: RunRecord, vocabulary: int = 0, where: str = RUN_RECORD) -> None:
    """Checks config, layer split, sequence length, vocabulary; `vocabulary` is the tokenizer's size, 0 if unknown.

    Raises InputError that names the field.
    """
    BoundarySpec(run.subspace).validate(where, run.weights)
    config = load_config(run.built_config, where)
    _, layers = decoder_layers(_skeleton(run, config, where), where)
    check_layer_split(tuple((a, b) for a, b in run.layer_split), len(layers), where)
    any_with_weights = PartSpec.of(run, 1 if run.thin_data_peers else 0)
    parameter_shapes(any_with_weights, where)  # a split that cuts through a shared weight is refused
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < run.sequence_length:
        expected = f"expected at most the model's {positions} positions, got {run.sequence_length}"
        raise InputError(where, "sequence_length", expected)
    if vocabulary > text.vocab_size:
        expected = f"expected at least the tokenizer's {vocabulary}, got {text.vocab_size}"
        raise InputError(where, "model_config.vocab_size", expected)
    boundary = boundary_of(PartSpec.of(run, 0), where)
    if run.boundary and run.boundary != boundary:
        raise InputError(where, "boundary", f"expected {boundary}, as transformers computes it here, got {run.boundary}")


def _skeleton(run: RunRecord, config: PretrainedConfig, where: str) -> PreTrainedModel:
    """Raises InputError, also where a family does not have the kernel of attention that the run names."""
    kernel = run.attention_implementation
    try:
        model = build_skeleton(config, where)
    except InputError as error:
        if kernel == "auto":
            raise
        build_skeleton(load_config(run.model_config, where), where)  # if this is none either, it is not for the kernel
        raise InputError(where, "attention_implementation", f"expected auto, {config.model_type} has no {kernel}") from error
    got = getattr(model.config, "_attn_implementation", None)
    if kernel not in ("auto", got):
        raise InputError(where, "attention_implementation", f"expected auto, {config.model_type} takes {got} instead")
    return model
