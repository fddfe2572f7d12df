"""Gemma 4 26B-A4B: a dense block beside the mixture, five windows to one full layer (google/gemma-4-26B-A4B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, Family, Layout, fused, names, per_expert
from moecli.model.families._parts import check_router, language_part, layer_count, layer_overrides, make_spec
from moecli.model.families._rope import RopeDefaults, read_ropes
from moecli.model.spec import FeedForward, GroupedQuery, Layer, Mixture, ModelSpec, QkNorm, RopeKind, Router

_SLIDING, _FULL = _KINDS = ("sliding_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "gemma4")
    c.expect("enable_moe_block", True, default=False)
    c.expect("hidden_size_per_layer_input", 0, default=256)
    c.expect("num_kv_shared_layers", 0)
    c.expect("use_bidirectional_attention", None, "vision")  # a text has no images
    c.flag("use_double_wide_mlp", False)  # of layers that share keys
    c.ignore("vocab_size_per_layer_input")
    hidden_size, context = c.count("hidden_size", 2304), c.count("max_position_embeddings", 131_072)
    count = layer_count(c, 30)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[(i + 1) % 6 == 0] for i in range(count)])
    kinds[-1] = _FULL  # whatever the file says
    attentions = _attentions(c, context, [index for index, kind in enumerate(kinds) if kind == _FULL])
    activation = c.activation("hidden_activation", "gelu_pytorch_tanh")
    router = Router(
        c.count("num_experts"), c.count("top_k_experts"), norm_power=1.0, reads_scaled=True, expert_scale=True
    )
    mixture = Mixture(router, FeedForward(c.count("moe_intermediate_size"), activation))
    check_router(c, mixture)
    layer = Layer(
        attentions[_FULL], mixture, parallel=FeedForward(c.count("intermediate_size", 9216), activation),
        parallel_norms=True, output_scale=True,
    )  # fmt: skip
    return make_spec(
        c, [replace(layer, attention=attentions[kind]) for kind in kinds],
        hidden_size=hidden_size, context=context, vocab=262_144, tied=True, branch_norms=True,
        embedding_multiplier=hidden_size**0.5, logit_softcap=c.optional_number("final_logit_softcapping"),
        notes=("the text model alone: the vision tower is not counted",) if "vision_config" in config else (),
    )  # fmt: skip


def _attentions(c: ConfigReader, context: int, full: list[int]) -> dict[str, GroupedQuery]:
    """Windows, and full attention with wider heads whose values may be the keys before norm and rotation."""
    heads, kv_heads = c.count("num_attention_heads", 8), c.count("num_key_value_heads", 4)
    head_dim, wide = c.count("head_dim", 256), c.count("global_head_dim", 512)
    bias, shared = c.flag("attention_bias", False), c.flag("attention_k_eq_v", False)
    few = (c.optional_count("num_global_key_value_heads") if shared else None) or kv_heads
    c.ignore("num_global_key_value_heads")
    if (own := layer_overrides(c, full)) is not None:
        wide, few = own.count("head_dim", head_dim), own.count("num_key_value_heads", kv_heads)
        own.finish((), strict=True)
    for each in (kv_heads, few):
        if heads % each:
            raise c.fail("num_key_value_heads", f"is {each}, which does not divide the {heads} heads")
    ropes = read_ropes(
        c, context,
        {_SLIDING: RopeDefaults(head_dim, 10_000.0, 1.0), _FULL: RopeDefaults(wide, 1e6, 0.25, RopeKind.PROPORTIONAL)},
    )  # fmt: skip
    sliding = GroupedQuery(
        heads, kv_heads, head_dim, ropes[_SLIDING], scale=1.0, qkv_bias=bias, output_bias=bias, qk_norm=QkNorm.HEAD,
        window=c.count("sliding_window", 512), value_norm=True,
    )  # fmt: skip
    return {
        _SLIDING: sliding,
        _FULL: replace(sliding, kv_heads=few, head_dim=wide, rope=ropes[_FULL], window=None, keys_as_values=shared),
    }


_LAYER = "model.layers.{layer}."
_DENSE = (
    BODY
    | GROUPED_QUERY
    | names(_LAYER + "self_attn.", qk="q_proj k_proj")
    | names(_LAYER + "self_attn.", ".bias", qk_bias="q_proj k_proj")
    | names(
        _LAYER, post_attn_norm="post_attention_layernorm", post_ffn_norm="post_feedforward_layernorm",
        ffn_norm="pre_feedforward_layernorm_2", post_mixture_norm="post_feedforward_layernorm_2",
        parallel_norm="pre_feedforward_layernorm", post_parallel_norm="post_feedforward_layernorm_1",
        router="router.proj", parallel_gate_up="mlp.gate_proj mlp.up_proj", parallel_down="mlp.down_proj",
    )
    | names(
        _LAYER, "", router_scale="router.scale", router_expert_scale="router.per_expert_scale",
        output_scale="layer_scalar",
    )
)  # fmt: skip
FAMILY = Family(
    architectures=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"),
    model_types=("gemma4", "gemma4_text"),
    read=read,
    layouts=(
        Layout(_DENSE, fused("experts"), BUFFERS),
        Layout(_DENSE, per_expert("experts", "gate_proj", "up_proj", "down_proj"), BUFFERS),
    ),
)
