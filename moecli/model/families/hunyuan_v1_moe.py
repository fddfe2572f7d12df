"""Hunyuan-A13B: one shared expert, query and key norms after the rotation (HunYuanMoEV1ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, GROUPED_QUERY, MLP, Family, both_layouts, gguf_layouts, names
from moecli.model.families._parts import grouped_query, layer_count, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, QkNorm, Router

# Heads for classification, images and other models of the same code base: switched off by the keys expected below.
_OTHER_MODELS = """
    add_classification_head anyres_pooling_size anyres_vit_max_image_size anyres_vit_two_views cla_share_factor
    class_num dense_list eod_token_id im_end_id im_newline_id im_start_id image_token_id kv_lora_rank mask_init_id
    moe_drop_tokens moe_random_routing_dropped_token norm_type num_media_embeds org_vocab_size pad_id pool_type
    q_lora_rank qk_nope_head_dim qk_rope_head_dim routed_scaling_factor skip_cls_token text_end_id text_start_id
    use_mixed_mlp_moe v_head_dim video_end_id video_start_id vit_add_patchemb_bias vit_input_resolution
    vit_mapping_type vit_norm_type vit_patch vit_path vit_remove_prenorm vit_token vit_type vit_used_rms_norm
    xdrope_section n_group topk_group
""".split()


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(_with_static_base(config), "hunyuan_v1_moe")
    c.alias("num_experts", "num_local_experts")
    c.alias("moe_topk", "num_experts_per_tok")
    c.ignore(*_OTHER_MODELS)
    for switch in ("use_cla", "use_mla", "mlp_bias", "group_limited_greedy", "position_embedding_xdrope"):
        c.expect(switch, False)
    c.expect("use_rotary_pos_emb", True)
    c.expect("moe_layer_num_skipped", 0)
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 2048)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=32, head_dim=c.optional_count("attention_head_dim"),
        qkv_bias=bias, output_bias=bias,
        qk_norm=QkNorm.ROTATED_HEAD if c.flag("use_qk_norm", True) else QkNorm.NONE,
    )  # fmt: skip
    activation, dense_width = c.activation("hidden_act", "silu"), c.count("intermediate_size", 11008)
    count = layer_count(c, 32)
    router = Router(
        c.count("num_experts", 1),
        _same(c, "moe_topk", count, 1),
        norm_power=1.0 if c.flag("norm_topk_prob", True) else None,
    )
    shared = _same(c, "num_shared_expert", count, 1)
    mixture = Mixture(
        router,
        FeedForward(_same(c, "moe_intermediate_size", count, dense_width), activation),
        FeedForward(shared * dense_width, activation),
    )
    return make_spec(
        c, uniform_layers(c, attention, mixture, default=32),
        hidden_size=hidden_size, context=context, vocab=290_943, eps=1e-5,
    )  # fmt: skip


def _same(c: ConfigReader, key: str, layers: int, default: int) -> int:
    """A number, or a list of it once per layer."""
    value = c.raw(key, default)
    numbers = value if isinstance(value, list) else [value]
    if len(set(map(str, numbers))) != 1 or len(numbers) not in (1, layers):
        raise c.fail(key, "differs between layers, which is not supported")
    return ConfigReader({key: numbers[0]}, c.family).count(key)


def _with_static_base(config: Mapping[str, Any]) -> dict[str, Any]:
    """Their "dynamic" scaling with `alpha` is a fixed base: theta * alpha ** (d / (d - 2))."""
    plain, c = dict(config), ConfigReader(config, "hunyuan_v1_moe")
    for key in ("rope_scaling", "rope_parameters"):
        part = c.nested(key)
        alpha = None if part is None else part.optional_number("alpha")
        if part is None or alpha is None:
            continue
        if alpha > _LARGEST_ALPHA:
            raise part.fail("alpha", f"is {alpha}: larger than {_LARGEST_ALPHA:g}")
        head_dim = c.count("attention_head_dim", c.raw("head_dim", 128), least=4)
        theta = part.number("rope_theta", c.number("rope_theta", 10_000.0))
        plain |= {key: None, "rope_theta": theta * alpha ** (head_dim / (head_dim - 2))}
    return plain


_LARGEST_ALPHA = 1e6
_BLOCK = "model.layers.{layer}."
FAMILY = Family(
    architectures=("HunYuanMoEV1ForCausalLM",),
    model_types=("hunyuan", "hunyuan_v1_moe"),
    read=read,
    layouts=(
        *both_layouts(
            BODY
            | GROUPED_QUERY
            | MLP
            | names(_BLOCK + "self_attn.", q_norm="query_layernorm", k_norm="key_layernorm")
            | names(_BLOCK + "mlp.", router="gate.wg")
            | names(_BLOCK + "mlp.shared_mlp.", shared_gate_up="gate_proj up_proj", shared_down="down_proj")
        ),
        *gguf_layouts(),
    ),
)
