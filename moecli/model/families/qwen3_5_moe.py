"""Qwen3.5-MoE: Qwen3-Next with vision; the text model alone (Qwen3_5MoeForConditionalGeneration)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._layout import BUFFERS, Family, both_layouts
from moecli.model.families._parts import language_part
from moecli.model.families._recurrent import GATED_QUERIES, delta_net_names, gguf_delta_net
from moecli.model.families.qwen3_next import FURTHER_TOKENS, NAMES, hybrid
from moecli.model.spec import ModelSpec


def read(config: Mapping[str, Any]) -> ModelSpec:
    """In a text, the positions on all axes of its rope are the same, so that it is the usual one."""
    c = language_part(config, "qwen3_5_moe")
    c.ignore("mtp_use_dedicated_embeddings")
    c.expect("norm_topk_prob", True)
    c.expect("decoder_sparse_step", 1)
    c.expect("mlp_only_layers", [], None)
    extra_layers = c.count("mtp_num_hidden_layers", 0, least=0)
    spec = hybrid(c, layers=40, experts=256, top_k=8, dense_width=5632, vocab=248_320)
    seen = ("the text model alone: the vision tower is not counted",) if "vision_config" in config else ()
    return replace(spec, extra_layers=extra_layers, notes=seen)


FAMILY = Family(
    architectures=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    read=read,
    layouts=(
        *both_layouts(
            NAMES | delta_net_names("in_proj_qkv in_proj_z", "in_proj_b in_proj_a"),
            ignored=(*BUFFERS, *FURTHER_TOKENS),
            interleaved=GATED_QUERIES,
        ),
        *gguf_delta_net("ssm_beta ssm_alpha"),
    ),
)
