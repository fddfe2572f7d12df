"""DeepSeek-V4: windows beside a compressed past, hyper-connections, early layers routed by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, layer_count, make_spec
from moecli.model.families._rope import read_rope
from moecli.model.spec import Extra, FeedForward, GroupedQuery, Layer, Mixture, ModelSpec, Part, Router, Scoring
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "deepseek_v4")
    for key in ("attention_bias", "mlp_bias"):
        c.expect(key, False)
    c.expect("scoring_func", "sqrtsoftplus")
    c.expect("topk_method", "noaux_tc")
    c.ignore("index_topk", "compress_rope_theta", "swiglu_limit", "hc_sinkhorn_iters", "hc_eps", "expert_dtype")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 1_048_576)
    activation = c.activation("hidden_act", "silu")
    router = Router(
        c.count("n_routed_experts", 256),
        c.count("num_experts_per_tok", 6),
        Scoring.SQRT_SOFTPLUS,
        norm_power=1.0 if c.flag("norm_topk_prob", True) else None,
        scaling=c.number("routed_scaling_factor", 1.5),
        correction_bias=True,
    )
    expert = FeedForward(c.count("moe_intermediate_size", 2048), activation)
    shared = FeedForward(expert.intermediate_size * c.count("n_shared_experts", 1), activation)
    mixture = Mixture(router, expert, shared)
    check_router(c, mixture)
    hashed = replace(mixture, router=replace(router, correction_bias=False, by_token=True))
    count, streams = layer_count(c, 43), c.count("hc_mult", 4)
    ratios = c.choices("compress_ratios", count, range(4096), spare=c.count("num_nextn_predict_layers", 1, least=0))
    first = c.count("num_hash_layers", 0, least=0)
    attention, connections = _attention(c, hidden_size, context), _connections(hidden_size, streams)
    compressors = {ratio: _compressor(c, hidden_size, ratio) for ratio in set(ratios)}
    layers = [
        Layer(
            attention,
            hashed if index < first else mixture,
            extra=connections + compressors[ratio][0],
            cache_extra=compressors[ratio][1],
        )
        for index, ratio in enumerate(ratios)
    ]
    head = _extras(Part.OTHER, hc_head=(streams, streams * hidden_size), hc_head_base=(streams,), hc_head_scale=(1,))
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=129_280,
        extra=head, extra_layers=c.count("num_nextn_predict_layers", 1, least=0),
        unsupported=(Unsupported.COMPRESSED_ATTENTION, Unsupported.HYPER_CONNECTIONS, Unsupported.TOKEN_ROUTING),
        notes=("tables that route by token hold expert numbers, not weights, and are not counted",),
    )  # fmt: skip


def _extras(part: Part, **shapes: tuple[int, ...]) -> tuple[Extra, ...]:
    return tuple(Extra(role, shape, part) for role, shape in shapes.items())


def _attention(c: ConfigReader, hidden_size: int, context: int) -> GroupedQuery:
    """One head of keys that serve as values, seen through a window; low-rank queries; outputs projected in groups."""
    heads, head_dim, rank = c.count("num_attention_heads", 64), c.count("head_dim", 512), c.count("q_lora_rank", 1024)
    c.expect("num_key_value_heads", 1)
    groups, group_rank = c.count("o_groups", 8), c.count("o_lora_rank", 1024)
    rope = read_rope(c, c.count("qk_rope_head_dim", 64), context, interleaved=True)
    projections = _extras(
        Part.ATTENTION,
        sinks=(heads,),
        q_a=(rank, hidden_size),
        q_b=(heads * head_dim, rank),
        kv=(head_dim, hidden_size),
        o_a=(groups * group_rank, heads * head_dim // groups),
        o_b=(hidden_size, groups * group_rank),
    ) + _extras(Part.NORMS, q_a_norm=(rank,), kv_norm=(head_dim,))
    return GroupedQuery(
        heads, 1, head_dim, rope, head_dim**-0.5, window=c.count("sliding_window", 128), value_dim=0, sinks=True,
        projections=projections,
    )  # fmt: skip


def _connections(hidden_size: int, streams: int) -> tuple[Extra, ...]:
    """Hyper-connections (arXiv 2409.19606): what each half reads of the streams, and how it writes to them."""
    maps = 2 * streams + streams * streams
    shapes = {"": (maps, streams * hidden_size), "_base": (maps,), "_scale": (3,)}
    return tuple(Extra(f"hc_{half}{name}", s, Part.OTHER) for half in ("attn", "ffn") for name, s in shapes.items())


def _compressor(c: ConfigReader, hidden_size: int, ratio: int) -> tuple[tuple[Extra, ...], int]:
    """What turns `ratio` tokens into one entry, and the numbers that adds to the cache per token.

    Low ratios overlap, which doubles the projections, and have an indexer that picks among the entries.
    """
    dim, heads, index_dim = c.count("head_dim", 512), c.count("index_n_heads", 64), c.count("index_head_dim", 128)
    rank = c.count("q_lora_rank", 1024)
    if not ratio:
        return (), 0
    fine = ratio < _INDEXED_BELOW
    out = 2 * dim if fine else dim
    extras = _extras(
        Part.ATTENTION, compress_kv=(out, hidden_size), compress_gate=(out, hidden_size), compress_position=(ratio, out)
    ) + _extras(Part.NORMS, compress_norm=(dim,))
    if not fine:
        return extras, dim // ratio
    index = 2 * index_dim
    extras += _extras(
        Part.ATTENTION,
        index_kv=(index, hidden_size),
        index_gate=(index, hidden_size),
        index_position=(ratio, index),
        index_q=(heads * index_dim, rank),
        index_weights=(heads, hidden_size),
    ) + _extras(Part.NORMS, index_norm=(index_dim,))
    return extras, (dim + index_dim) // ratio


_INDEXED_BELOW = 64  # the published files know 4 (indexed) and 128 (not)
FAMILY = Family(architectures=("DeepseekV4ForCausalLM",), model_types=("deepseek_v4",), read=read)
