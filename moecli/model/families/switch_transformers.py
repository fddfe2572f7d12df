"""Switch Transformers: an encoder and a decoder, one expert per token in every second block (arXiv 2101.03961)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import ExpertNames, Family, Layout, NamedSlice, names
from moecli.model.families._parts import check_router, layer_count, make_spec
from moecli.model.spec import (
    NO_ROPE,
    FeedForward,
    GroupedQuery,
    Layer,
    Mixture,
    ModelSpec,
    RelativePositions,
    Router,
)


def read(config: Mapping[str, Any]) -> ModelSpec:
    """What the published files say and transformers does not read may only say what transformers does anyway.

    But for gated blocks, which it lacks, and which xxl-128 has: those are T5's.
    """
    c = ConfigReader(config, "switch_transformers")
    for key, only in _ONLY.items():
        c.expect(key, only)
    for key, other in _ALIASES.items():
        c.alias(key, other)
    c.ignore("dropout_rate", "initializer_factor", "add_router_probs", "router_z_loss_coef", "is_full_sparse")
    c.ignore("output_past")
    c.flag("router_ignore_padding_tokens", False)  # one text has no padding
    hidden_size, vocab_size = c.count("d_model", 768), c.count("vocab_size", 32128)
    heads, head_dim = c.count("num_heads", 12), c.count("d_kv", 64)
    attention = GroupedQuery(heads, heads, head_dim, NO_ROPE, scale=1.0)
    gated = c.flag("is_gated_act", c.text("feed_forward_proj", "relu").startswith("gated-"))
    ffn = FeedForward(c.count("d_ff", 2048), c.activation("dense_act_fn", "relu"), gated)
    router = Router(
        c.count("num_experts", 8), 1, bias=c.flag("router_bias", False), capacity=c.count("expert_capacity", 64)
    )
    mixture = Mixture(router, ffn)
    check_router(c, mixture)
    depth = layer_count(c, 12, "num_layers")
    decoder_depth = depth if c.raw("num_decoder_layers", 12) is None else layer_count(c, 12, "num_decoder_layers")

    def stack(name: str, count: int, cross: GroupedQuery | None) -> tuple[Layer, ...]:
        sparse = c.count(f"num_sparse_{name}_layers", 3, least=0)
        step = c.count(f"{name}_sparse_step", count // sparse if sparse else count, least=0)
        mixes = [step == 1 or (step > 0 and index % step == 1) for index in range(count)]
        return tuple(Layer(attention, mixture if here else ffn, cross=cross) for here in mixes)

    return make_spec(
        c, stack("decoder", decoder_depth, attention),
        hidden_size=hidden_size, context=c.count("n_positions", 512), vocab=vocab_size,
        eps_key="layer_norm_epsilon", tied=True,
        encoder=stack("encoder", depth, None),
        start_id=_start_id(c, vocab_size), relative_positions=_relative_positions(c),
        logit_multiplier=hidden_size**-0.5 if c.flag("tie_word_embeddings", True) else 1.0,
        notes=("active: one token through the encoder and one through the decoder",),
    )  # fmt: skip


_ONLY = {
    "is_encoder_decoder": True, "router_dtype": "float32", "num_selected_experts": 1, "router_type": "tokens_masked",
    "batch_prioritized_routing": False,
}  # fmt: skip
_ALIASES = {"d_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}


def _start_id(c: ConfigReader, vocab_size: int) -> int:
    found = c.optional_count("decoder_start_token_id", 0, least=0) or 0
    if found >= vocab_size:
        raise c.fail("decoder_start_token_id", f"is {found}, beyond the {vocab_size} tokens of the vocabulary")
    return found


def _relative_positions(c: ConfigReader) -> RelativePositions:
    buckets = c.count("relative_attention_num_buckets", 32, least=4)
    longest = c.count("relative_attention_max_distance", 128)
    if longest <= buckets // 2:
        raise c.fail("relative_attention_max_distance", f"is {longest}, too short for {buckets} buckets")
    return RelativePositions(buckets, longest)


def _stack(stack: str, mlp: int, gated: bool, lm_head: str, encoder: Layout | None = None) -> Layout:
    """Sublayer `mlp` of each block is the feed-forward; where that is not the second, the second is cross attention."""
    block, first = f"{stack}.block.{{layer}}.", "block.0.layer.0.SelfAttention.relative_attention_bias"
    inner = {"gate_up": "mlp.wi_0 mlp.wi_1"} if gated else {"up": "mlp.wi"}
    dense = (
        names(block + "layer.0.", attn_norm="layer_norm", o="SelfAttention.o", qkv=_attention("SelfAttention", "qkv"))
        | names(block + "layer.1.", cross_norm="layer_norm", cross_q="EncDecAttention.q", cross_o="EncDecAttention.o")
        | names(block + "layer.1.", cross_kv=_attention("EncDecAttention", "kv"))
        | names(f"{block}layer.{mlp}.", ffn_norm="layer_norm", down="mlp.wo", router="mlp.router.classifier", **inner)
        | names(f"{block}layer.{mlp}.", ".bias", router_linear_bias="mlp.router.classifier")
        | names(embedding="shared", lm_head=lm_head, positions=f"decoder.{first}", encoder_positions=f"encoder.{first}")
        | names(final_norm="decoder.final_layer_norm", encoder_final_norm="encoder.final_layer_norm")
    )
    expert = f"{block}layer.{mlp}.mlp.experts.expert_{{expert}}."
    matrices = [NamedSlice(f"{expert}{name}.weight") for name in (("wi_0", "wi_1", "wo") if gated else ("wi", "wo"))]
    experts = ExpertNames(None if not gated else matrices[0], *matrices[-2:])
    copies = tuple(f"{each}.embed_tokens.weight" for each in ("encoder", "decoder"))
    return Layout(dense, experts, encoder=encoder, copies=copies)


def _attention(name: str, projections: str) -> str:
    return " ".join(f"{name}.{each}" for each in projections)


def _layout(gated: bool, lm_head: str) -> Layout:
    return _stack("decoder", 2, gated, lm_head, _stack("encoder", 1, gated, lm_head))


FAMILY = Family(
    architectures=("SwitchTransformersForConditionalGeneration",),
    model_types=("switch_transformers",),
    read=read,
    # the second name of the head is that of xxl-128 and c-2048
    layouts=tuple(_layout(gated, head) for gated in (False, True) for head in ("lm_head", "decoder.lm_head")),
)
