"""GLM-5: the blocks of DeepSeek-V3.2 in other sizes (GlmMoeDsaForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, make_spec, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.families.deepseek_v32 import FAMILY as V32
from moecli.model.families.deepseek_v32 import indexed, indexed_reader
from moecli.model.spec import ModelSpec

# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {
    "scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None), "indexer_rope_interleave": (True, None),
}  # fmt: skip


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = indexed_reader(config, "glm_moe_dsa", _NEUTRAL)
    context = c.count("max_position_embeddings", 202_752)
    latent = multi_head_latent(c, context, heads=64, query_rank=2048, nope_dim=192, value_dim=256)
    layers = dense_then_sparse(
        c, latent, biased_sigmoid(c, experts=256, top_k=8, scaling=2.5),
        default_layers=78, default_dense=3, default_widths=(12288, 2048, 1),
    )  # fmt: skip
    shared = _shared_indexes(c, len(layers))
    attention = {each: indexed(c, latent, heads=32, interleaved=True, shared=each) for each in (False, True)}
    return make_spec(
        c, [replace(layer, attention=attention[kind]) for layer, kind in zip(layers, shared, strict=True)],
        hidden_size=c.count("hidden_size", 6144), context=context, vocab=154_880, eps=1e-5,
        extra_layers=c.optional_count("num_nextn_predict_layers", 1, least=0) or 0,
    )  # fmt: skip


def _shared_indexes(c: ConfigReader, layers: int) -> list[bool]:
    """Whether each layer has no indexer of its own, but takes the choice of one before it."""
    every, skipped = c.optional_count("index_topk_freq", 1) or 1, c.count("index_skip_topk_offset", 2, least=0)
    usual = ["full" if max(index - skipped + 1, 0) % every == 0 else "shared" for index in range(layers)]
    pattern = c.raw("index_topk_pattern", None)
    if isinstance(pattern, str):
        usual = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    elif pattern is not None:
        raise c.fail("index_topk_pattern", "must be a word of F and S")
    kinds = c.choices("indexer_types", layers, ("full", "shared"), usual)
    if len(kinds) != layers or set(kinds) - {"full", "shared"} or kinds[0] == "shared":
        raise c.fail("index_topk_pattern", f"must say F or S of each of {layers} layers, F of the first")
    return [kind == "shared" for kind in kinds]


FAMILY = Family(architectures=("GlmMoeDsaForCausalLM",), model_types=("glm_moe_dsa",), read=read, layouts=V32.layouts)
