"""A small copy of a model's config: same types, few layers, tiny widths. For a trace and for the preflight.

Names of sizes differ between families, so several rules are tried, from the smallest copy to the nearest to the original; the
first that builds, and runs on a few tokens, is taken.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

LAYERS, MOST_LAYERS = 4, 8
HIDDEN, HEADS, HEAD = 64, 4, 16
VOCABULARY, POSITIONS, WINDOW = 128, 64, 8

_RULES: tuple[tuple[str, int], ...] = (
    (r"(?:.*_)?vocab_size.*", VOCABULARY),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length|max_target_positions", POSITIONS),
    (r"sliding_window|window_size|attention_window_size|attention_chunk_size|local_attention_window|index_topk", WINDOW),
    (
        r"hidden_size|n_embd|d_model|dim|embedding_size|embedding_dim|word_embed_proj_dim|emb_dim|attention_hidden_size|ssm_.*hidden|lru_width"
        r"|adapter_(?:in|out)_dim|adapter_input_size",
        HIDDEN,
    ),
    (r"num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads", HEADS),
    (r"(?:.*_)?head_dim|kv_channels|attention_head_size|d_kv", HEAD),
    (
        r"(?:.*_)?intermediate_size.*|ffn_dim|n_inner|d_ff|(?:encoder|decoder)_ffn_dim|(?:.*_)?ffn_hidden_size|intermediate_dim|dff",
        2 * HIDDEN,
    ),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_moe_experts|zero_expert_num", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|num_experts_per_token|moe_top_k|top_k_experts|experts_top_k", 2),
    (r"n_group|topk_group|n_groups|num_groups|mamba_n_groups|expert_group_num", 1),
    (r"(?:q|kv)_lora_rank|o_lora_rank|(?:.*_)?lora_rank", 16),
    (r"rotary_dim|(?:.*_)?chunk_size", 8),
    (r"num_kv_shared_layers", 1),
    (r"mamba_d_state|state_size|ssm_state_size|d_state", 8),
)
_GROUPS = (
    ("num_attention_heads", "num_key_value_heads"), ("num_attention_heads", "num_kv_heads"), ("n_head", "n_head_kv"),
)  # fmt: skip
_EXPANDED = (
    ("mamba_expand", "mamba_n_heads", "mamba_d_head"), ("mamba_expand", "n_mamba_heads", "mamba_headdim"),
    ("expand", "num_heads", "head_dim"),
)  # fmt: skip
_LAYER_NAMES = r"num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers"


def small_copies(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Candidates, smallest first."""
    for widths in (True, False):
        for layers in (LAYERS, MOST_LAYERS):
            small = copy.deepcopy(config)
            _shrink(small, layers, widths)
            yield small


def _shrink(config: PretrainedConfig, layers: int, widths: bool) -> None:
    fields: dict[str, Any] = vars(config)
    of_layers = getattr(
        fields.pop("_heterogeneity_spec", None), "per_layer_overrides", {}
    )  # while it is there, others cannot be read
    for value in list(fields.values()):
        if isinstance(value, PretrainedConfig):
            _shrink(value, layers, widths)
    total = fields.get(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    kept = {at: at for at in of_layers}
    if isinstance(total, int):
        kept = _fewer_layers(config, total, max(2, min(layers, total)))  # two, to see what one hands to the next
    before = dict(fields)
    for name, value in before.items():
        setattr(config, name, _narrow(name, value, widths))
    if widths:
        _fit(config, before)
    narrowed = {kept[at]: _narrowed_layer(config, own, before, widths) for at, own in of_layers.items() if at in kept}
    if widths:
        _fit_rotary_shares(config, before, {kept[at]: (own, narrowed[kept[at]]) for at, own in of_layers.items() if at in kept})
    if of_layers:
        config.per_layer_config = narrowed
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = fields.get(name)
        if isinstance(value, int) and value >= VOCABULARY:
            setattr(config, name, VOCABULARY - 1)


def _narrow(name: str, value: Any, widths: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or re.fullmatch(_LAYER_NAMES, name):
        return value
    for pattern, small in _RULES:
        if re.fullmatch(pattern, name) and (widths or small in (VOCABULARY, POSITIONS)):
            value = min(value, small)
    return value


def _narrowed_layer(config: PretrainedConfig, own: dict[str, Any], before: dict[str, Any], widths: bool) -> dict[str, Any]:
    """What a layer has of its own, beside what all have; `before` is what all had."""
    small = {name: _narrow(name, value, widths) for name, value in own.items()}
    if not widths:
        return small
    alike = {groups: small[heads] for heads, groups in _GROUPS if heads in own and own[heads] == own.get(groups)}
    return {**small, **alike, **_sums({**vars(config), **small}, {**before, **own})}


def _sums(small: dict[str, Any], before: dict[str, Any]) -> dict[str, int]:
    """Heads of two parts, of which one is rotated: as wide as both, where they were."""
    parts = [before.get("qk_nope_head_dim"), before.get("qk_rope_head_dim")]
    if not all(isinstance(part, int) for part in parts):
        return {}
    wide = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]
    return {name: wide for name in ("qk_head_dim", "head_dim") if before.get(name) == sum(filter(None, parts))}


def _fit_rotary_shares(
    config: PretrainedConfig, before: dict[str, Any], of_layers: dict[int, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """`partial_rotary_factor` where it is the rotated part's share of a head; `of_layers`: what a layer has, (before, now)."""
    fields: dict[str, Any] = vars(config)
    parameters, types = fields.get("rope_parameters"), fields.get("layer_types") or []
    if not isinstance(parameters, dict):
        return
    each = {kind: own for kind, own in parameters.items() if isinstance(own, dict)} or {"": parameters}
    for kind, own in each.items():
        old, now = of_layers.get(types.index(kind), ({}, {})) if kind in types else ({}, {})
        old, now = {**before, **old}, {**fields, **now}
        sizes: list[Any] = [old.get("qk_rope_head_dim"), old.get("head_dim"), now.get("qk_rope_head_dim"), now.get("head_dim")]
        if all(isinstance(size, int) and size for size in sizes) and own.get("partial_rotary_factor") == sizes[0] / sizes[1]:
            own["partial_rotary_factor"] = sizes[2] / sizes[3]


def _fewer_layers(config: PretrainedConfig, total: int, layers: int) -> dict[int, int]:
    """Per-layer lists keep the layers that show every kind first. Returns the places of those that are kept."""
    lists = {n: v for n, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == total and total > layers}
    lists |= {n: 2 * v for n, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == total == 1}
    total = max(total, layers)
    kinds = [str(kind) for kind in zip(*lists.values(), strict=True)] if lists else [""] * total
    order = sorted(range(total), key=lambda at: (kinds.index(kinds[at]) != at, at))[:layers]
    for name, value in lists.items():
        setattr(config, name, type(value)(value[at] for at in sorted(order)))
    place = {kept: at for at, kept in enumerate(sorted(order))}
    for name, value in list(vars(config).items()):
        if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
            setattr(config, name, {type(key)(place[int(key)]): each for key, each in value.items() if int(key) in place})
        if re.fullmatch(_LAYER_NAMES, name) and isinstance(getattr(config, name), int):
            setattr(config, name, layers if getattr(config, name) < 2 else min(layers, getattr(config, name)))
    return place


def _fit(config: PretrainedConfig, before: dict[str, Any]) -> None:
    """Heads that divide, and sizes that follow from others."""
    fields = vars(config)
    for heads_name, groups_name in _GROUPS:
        heads, groups = fields.get(heads_name), fields.get(groups_name)
        if isinstance(heads, int) and isinstance(groups, int):
            setattr(
                config,
                groups_name,
                heads if before[groups_name] == before[heads_name] else max(1, min(before[groups_name], heads // 2)),
            )
    for name, value in _sums(fields, before).items():
        setattr(config, name, value)
    twice = before.get("attention_hidden_size")
    if isinstance(twice, int) and twice == 2 * before.get("hidden_size", 0):  # attention over a layer's input and the first's
        config.attention_hidden_size = 2 * HIDDEN
        config.attention_head_dim = 2 * HIDDEN // fields["num_attention_heads"]
    for expand, count, width in _EXPANDED:
        if isinstance(fields.get(expand), int) and isinstance(fields.get(count), int) and width in fields:
            setattr(config, width, HEAD)
            setattr(config, count, fields[expand] * HIDDEN // HEAD)
