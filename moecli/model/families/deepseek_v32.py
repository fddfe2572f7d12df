"""DeepSeek-V3.2: V3 with an indexer that picks the tokens attention looks at (DeepseekV32ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    INDEXER,
    MLP,
    MULTI_HEAD_LATENT,
    SHARED_EXPERTS,
    Family,
    both_layouts,
)
from moecli.model.families._parts import make_spec, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.families.deepseek_v3 import router
from moecli.model.spec import MLA, Indexer, ModelSpec

# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {
    "scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None), "indexer_rope_interleave": (False, None),
}  # fmt: skip


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = indexed_reader(config, "deepseek_v32", _NEUTRAL)
    context = c.count("max_position_embeddings", 163_840)
    attention = indexed(c, multi_head_latent(c, context, heads=128), heads=64)
    layers = dense_then_sparse(
        c, attention, router(c), default_layers=61, default_dense=3, default_widths=(18432, 2048, 1)
    )
    return make_spec(
        c, layers, hidden_size=c.count("hidden_size", 7168), context=context, vocab=129_280,
        extra_layers=c.optional_count("num_nextn_predict_layers", 1, least=0) or 0,
    )  # fmt: skip


def indexed_reader(config: Mapping[str, Any], family: str, neutral: Mapping[str, tuple[Any, ...]]) -> ConfigReader:
    """A reader that knows the other names of keys, and what transformers 5 calls layers with an indexer."""
    c = ConfigReader(config, family, neutral=neutral)
    c.alias("n_routed_experts", "num_local_experts", "num_experts")
    c.alias("num_nextn_predict_layers", "num_mtp_layers")
    types = c.raw("layer_types", None)
    if types is not None and (not isinstance(types, list) or set(types) != {"indexed_attention"}):
        raise c.fail("layer_types", "names layers without an indexer, which this family does not have")
    return c


def indexed(c: ConfigReader, attention: MLA, *, heads: int, interleaved: bool = False, shared: bool = False) -> MLA:
    """The attention with its indexer; `heads` is the family's default, the others are as the indexer has them."""
    if attention.query_rank is None:
        raise c.fail("q_lora_rank", "is null: the indexer reads the queries' latent")
    indexer = Indexer(
        c.count("index_n_heads", heads), c.count("index_head_dim", 128), c.count("index_topk", 2048), interleaved,
        shared,
    )  # fmt: skip
    if indexer.head_dim < attention.rope_dim:
        raise c.fail("index_head_dim", f"is {indexer.head_dim}, less than the {attention.rope_dim} that rotate")
    return replace(attention, indexer=indexer)


FAMILY = Family(
    architectures=("DeepseekV32ForCausalLM",),
    model_types=("deepseek_v32",),
    read=read,
    layouts=both_layouts(BODY | MULTI_HEAD_LATENT | INDEXER | MLP | SHARED_EXPERTS | CORRECTION_BIAS),
)
