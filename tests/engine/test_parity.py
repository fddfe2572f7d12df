"""Each family, in the configurations that change its mathematics, against transformers: logits and greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli.errors import CheckpointError
from tests.support.checkpoints import DECODERS, LAYOUTS, make, prompt, write
from tests.support.running import greedy, load, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.slow

TOKENS = 24
PROMPTS = (prompt(5), prompt(200))

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
STRETCHED = [1.0, 1.2, 1.5, 2.0]  # per pair of a head of 8
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn untruncated": YARN | {"truncate": False, "beta_fast": 8.0, "beta_slow": 0.5},
    "yarn with factor": YARN | {"attention_factor": 1.3},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 4.0,
        "short_factor": STRETCHED, "long_factor": [2 * f for f in STRETCHED],
    },
    "longrope with factor": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 4.0,
        "short_factor": STRETCHED, "long_factor": [3 * f for f in STRETCHED], "attention_factor": 0.9,
    },
}  # fmt: skip
DYNAMIC = {
    "max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
}  # fmt: skip
MSCALE = {name: YARN | {"original_max_position_embeddings": 16} | values for name, values in {
    "mscale 0.707": {"mscale": 0.707, "mscale_all_dim": 0.707},
    "mscale 1": {"mscale": 1.0, "mscale_all_dim": 1.0},
    "unequal mscale": {"mscale": 1.0, "mscale_all_dim": 0.5},
    "mscale for scores only": {"mscale_all_dim": 0.8},
    "hard switch": {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
}.items()}  # fmt: skip
SLIDING = {"sliding_window": 16, "use_sliding_window": True}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}

# family, what is special, configuration
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((family, "plain", {}) for family in DECODERS),
    ("granitemoe", "biases, untied", {"attention_bias": True, "tie_word_embeddings": False}),
    ("granitemoe", "neutral multipliers, yarn",
     {"residual_multiplier": 1.0, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "rope_parameters": YARN}),
    ("mixtral", "window", {"sliding_window": 16}),
    ("mixtral", "wide heads, tied", {"head_dim": 12, "tie_word_embeddings": True}),
    ("mixtral", "multi-head, gelu", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    ("mixtral", "one kv head, tanh gelu, all experts",
     {"num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh", "num_experts_per_tok": 5}),
    ("mixtral", "one expert, relu", {"num_experts_per_tok": 1, "hidden_act": "relu"}),
    # transformers stretches ropes only where the width of a head is given
    *(("mixtral", name, {"rope_parameters": rope, "head_dim": 8}) for name, rope in ROPES.items()),
    ("mixtral", "dynamic", {**DYNAMIC, "head_dim": 8}),
    ("dbrx", "clip that bites", {"attn_config": {"clip_qkv": 0.5}}),
    ("dbrx", "wide clip, one kv head", {"attn_config": {"clip_qkv": 1000, "kv_n_heads": 1}}),
    ("dbrx", "p-norm of 2", {"ffn_config": {"moe_normalize_expert_weights": 2.0}}),
    ("dbrx", "weights as they are", {"ffn_config": {"moe_normalize_expert_weights": None}}),
    ("dbrx", "gelu, multi-head", {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}, "attn_config": {"kv_n_heads": 4}}),
    ("deepseek_v2", "full queries", {"q_lora_rank": None, "n_shared_experts": 1}),
    ("deepseek_v2", "groups, scaled", {**GROUPS, "routed_scaling_factor": 4.0}),
    ("deepseek_v2", "one group kept", {**GROUPS, "topk_group": 1, "num_experts_per_tok": 2}),
    ("deepseek_v2", "biases, tied", {"attention_bias": True, "tie_word_embeddings": True}),
    ("deepseek_v2", "all sparse", {"first_k_dense_replace": 0}),
    ("deepseek_v2", "mostly dense", {"num_hidden_layers": 3, "first_k_dense_replace": 2, "hidden_act": "gelu"}),
    *(("deepseek_v2", name, {"rope_parameters": rope, **GROUPS}) for name, rope in MSCALE.items()),
    ("deepseek_v3", "full queries", {"q_lora_rank": None}),
    ("deepseek_v3", "one group", {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827}),
    ("deepseek_v3", "groups of four", {"n_group": 2, "topk_group": 1}),
    ("deepseek_v3", "weights as they are", {"norm_topk_prob": False, "routed_scaling_factor": 1.0}),
    ("deepseek_v3", "biases, tied", {"attention_bias": True, "tie_word_embeddings": True}),
    ("deepseek_v3", "mostly dense", {"num_hidden_layers": 3, "first_k_dense_replace": 2, "n_shared_experts": 2}),
    *(("deepseek_v3", name, {"rope_parameters": rope}) for name, rope in MSCALE.items()),
    ("deepseek_v32", "yarn, biases, tied, one group", {
        "rope_parameters": MSCALE["mscale 1"], "attention_bias": True, "tie_word_embeddings": True, "n_group": 1,
        "topk_group": 1}),
    ("deepseek_v32", "one token chosen, mostly dense",
     {"index_topk": 1, "num_hidden_layers": 3, "first_k_dense_replace": 2}),
    ("deepseek_v32", "every token chosen", {"index_topk": 512, "norm_topk_prob": False}),
    ("dots1", "no groups, normalised, scaled",
     {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5}),
    ("dots1", "biases, tied, wide heads", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 12}),
    ("dots1", "window from a layer on, all sparse",
     {"sliding_window": 16, "max_window_layers": 1, "num_hidden_layers": 3, "first_k_dense_replace": 0}),
    ("dots1", "windows by name", {
        "sliding_window": 16, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("ernie4_5_moe", "a floor that bites", {"moe_norm_min": 0.7}),
    ("ernie4_5_moe", "untied, multi-head, no shared",
     {"tie_word_embeddings": False, "num_key_value_heads": 4, "moe_num_shared_experts": 0}),
    ("ernie4_5_moe", "sparse from one layer to another", {
        "num_hidden_layers": 6, "moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 2}),
    ("ernie4_5_moe", "yarn, all sparse, wide heads",
     {"rope_parameters": YARN, "moe_layer_start_index": 0, "head_dim": 12}),
    ("afmoe", "biases, all sparse, every fourth layer full", {
        "attention_bias": True, "num_dense_layers": 0, "num_shared_experts": 2, "mup_enabled": False,
        "layer_types": None, "num_hidden_layers": 4, "sliding_window": 7}),
    ("cohere2_moe", "layer norms, shared halves, softmax, biases, untied", {
        "rms_norm_eps": None, "num_shared_experts": 2, "expert_selection_fn": "softmax", "attention_bias": True,
        "tie_word_embeddings": False, "prefix_dense_sliding_window_pattern": 2}),
    ("cohere2_moe", "shared added, normalised",
     {"num_shared_experts": 1, "norm_topk_prob": True, "shared_expert_combination_strategy": "sum"}),
    ("exaone_moe", "groups, wide heads, weights as they are, all sparse", {
        "layer_types": None, "num_hidden_layers": 4, "n_group": 2, "topk_group": 1, "head_dim": 12,
        "norm_topk_prob": False, "first_k_dense_replace": 0, "num_shared_experts": 2}),
    ("gemma4", "values of their own, biases, five windows to one",
     {"attention_k_eq_v": False, "attention_bias": True, "final_logit_softcapping": None, "num_hidden_layers": 7,
      "layer_types": None}),
    ("gemma4", "untied, ropes of its own",
     {"tie_word_embeddings": False, "global_head_dim": 24, "num_global_key_value_heads": None, "rope_parameters": {
         "full_attention": {
             "rope_type": "proportional", "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "factor": 2.0},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}}),
    ("glm4_moe", "query and key norms, groups, scaled",
     {"use_qk_norm": True, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}),
    ("glm4_moe", "no biases, tied, all rotates",
     {"attention_bias": False, "tie_word_embeddings": True, "partial_rotary_factor": 1.0}),
    ("glm4_moe", "weights as they are, two shared, dense first",
     {"norm_topk_prob": False, "num_hidden_layers": 3, "first_k_dense_replace": 2, "n_shared_experts": 2}),
    ("glm4_moe", "yarn", {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}, "head_dim": 16}),
    ("glm4_moe_lite", "full queries, groups", {"q_lora_rank": None, "n_group": 4, "topk_group": 2}),
    ("glm4_moe_lite", "biases, tied, all sparse",
     {"attention_bias": True, "tie_word_embeddings": True, "mlp_layer_types": ["sparse", "sparse"]}),
    ("glm4_moe_lite", "weights as they are", {"norm_topk_prob": False, "routed_scaling_factor": 1.0}),
    *(("glm4_moe_lite", name, {"rope_parameters": rope}) for name, rope in MSCALE.items()),
    ("glm_moe_dsa", "choices that layers share",
     {"num_hidden_layers": 5, "indexer_types": ["full", "shared", "shared", "full", "shared"]}),
    ("glm_moe_dsa", "groups, all sparse, indexer keys that all rotate",
     {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 0, "index_head_dim": 4}),
    ("gpt_oss", "untruncated yarn as published, a window of one", {
        "rope_parameters": YARN | {"truncate": False}, "sliding_window": 1, "num_hidden_layers": 3}),
    ("gpt_oss", "no windows, no biases of attention, tied, multi-head", {
        "layer_types": ["full_attention"] * 2, "attention_bias": False, "tie_word_embeddings": True,
        "num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("gpt_oss", "windows first and last, one expert",
     {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
      "num_experts_per_tok": 1}),
    ("granitemoehybrid", "positions, biases, untied", {
        "position_embedding_type": "rope", "mamba_proj_bias": True, "attention_bias": True,
        "tie_word_embeddings": False, "residual_multiplier": 1.0}),
    ("granitemoehybrid", "no experts, no bias of the convolution, one group",
     {"num_local_experts": 0, "mamba_conv_bias": False, "mamba_n_groups": 1, "mamba_d_conv": 2}),
    ("hunyuan_v1_moe", "alpha",
     {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}}),
    ("hunyuan_v1_moe", "biases, untied, multi-head",
     {"attention_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 4}),
    ("hunyuan_v1_moe", "counts of each layer", {"moe_topk": [2, 2]}),
    ("jamba", "biases, multi-head", {"mamba_proj_bias": True, "num_key_value_heads": 4}),
    ("jamba", "no bias of the convolution, all sparse, automatic rank",
     {"mamba_conv_bias": False, "expert_layer_period": 1, "expert_layer_offset": 0, "mamba_dt_rank": "auto"}),
    ("lfm2_moe", "biases, untied, scaled", {
        "conv_bias": True, "tie_word_embeddings": False, "routed_scaling_factor": 2.0, "conv_L_cache": 4}),
    ("lfm2_moe", "no bias for the choice, weights as they are, all sparse",
     {"use_expert_bias": False, "norm_topk_prob": False, "num_dense_layers": 0}),
    ("llama", "biases, tied, gelu", {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"}),
    ("llama", "multi-head, wide heads", {"num_key_value_heads": 4, "head_dim": 12}),
    *(("llama", name, {"rope_parameters": rope}) for name, rope in ROPES.items()),
    ("llama", "dynamic", DYNAMIC),
    ("laguna", "a gate for each number, a cap on the router, biases, yarn", {
        "gating": "per-element", "moe_routed_scaling_factor": 2.5, "moe_router_logit_softcapping": 0.8,
        "attention_bias": True, "rope_parameters": {
            "full_attention": {**YARN, "attention_factor": 1.3, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 1.0}}}),
    ("llama4", "three experts, no norm, biases, llama3", {
        "num_experts_per_tok": 3, "use_qk_norm": False, "attention_bias": True, "attn_temperature_tuning": False,
        "interleave_moe_layer_step": 1, "rope_parameters": ROPES["llama3"]}),
    ("mimo_v2_flash", "biases, groups, ropes of its own, values as they are", {
        "attention_bias": True, "attention_value_scale": None, "n_group": 2, "topk_group": 1,
        "routed_scaling_factor": 2.0, "mlp_layer_types": ["sparse", "sparse", "dense"], "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.7},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.34}}}),
    ("minimax_m2", "all rotates, multi-head, tied",
     {"rotary_dim": None, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("minimax_m2", "half rotates by the other key, all experts",
     {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
      "rotary_dim": None, "head_dim": 16, "num_experts_per_tok": 6}),
    ("mistral", "window", {"sliding_window": 16}),
    ("mistral", "wide heads, tied", {"head_dim": 12, "tie_word_embeddings": True}),
    ("mistral", "yarn, one kv head", {"rope_parameters": YARN, "num_key_value_heads": 1}),
    ("minimax", "every other layer, windows, multi-head, tied", {
        "layer_types": None, "head_dim": None, "sliding_window": 16, "num_key_value_heads": 8,
        "tie_word_embeddings": True, "num_attention_heads": 8, "num_hidden_layers": 3}),
    ("bailing_hybrid", "no floor, biases, one group, two shared", {
        "kda_safe_gate": False, "attention_bias": True, "n_group": 1, "topk_group": 1,
        "num_shared_experts": 2, "first_k_dense_replace": 0}),
    ("bailing_hybrid", "a near floor, short convolutions, yarn",
     {"kda_lower_bound": -0.5, "short_conv_kernel_size": 2, "rope_parameters": MSCALE["mscale 1"]}),
    ("kimi_linear", "layers by two lists, groups, query latent, weights as they are", {
        "layer_types": None, "n_group": 4, "topk_group": 2, "q_lora_rank": 12, "norm_topk_prob": False,
        "linear_attn_config": {
            "full_attn_layers": [1, 4], "kda_layers": [2, 3], "num_heads": 2, "head_dim": 34,
            "short_conv_kernel_size": 3}}),
    ("kimi_linear", "biases, mostly dense, two shared", {
        "attention_bias": True, "mlp_layer_types": ["sparse", "dense", "dense", "sparse"], "n_shared_experts": 2}),
    ("mistral4", "full queries, groups, biases, weights as they are", {
        "q_lora_rank": None, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 0, "norm_topk_prob": False,
        "routed_scaling_factor": 2.0, "attention_bias": True}),
    ("phimoe", "few rivals, window, no biases",
     {"router_jitter_noise": 0.01, "sliding_window": 16, "lm_head_bias": False, "attention_bias": False}),
    ("step3p7", "uncut, llama3 in full layers, biases", {"text_config": {
        "swiglu_limits": None, "swiglu_limits_shared": None, "attention_bias": True, "query_pre_attn_scalar": 5,
        "moe_router_scaling_factor": 2.0,
        "rope_theta": 5000.0, "partial_rotary_factors": None, "rope_scaling": ROPES["llama3"],
        "mlp_layer_types": ["sparse"] * 4, "num_sliding_attention_heads": 2}}),
    ("nemotron_h", "no bias of the convolution, one group, scaled",
     {"use_conv_bias": False, "n_groups": 1, "n_group": 1, "routed_scaling_factor": 2.5}),
    ("nemotron_h", "weights as they are, short convolution", {
        "norm_topk_prob": False, "conv_kernel": 2,
        "layers_block_type": ["linear_attention", "linear_attention", "moe", "full_attention"]}),
    ("olmoe", "clip that bites", {"clip_qkv": 0.5}),
    ("olmoe", "normalised, multi-head", {"norm_topk_prob": True, "num_key_value_heads": 4}),
    ("olmoe", "biases, tied, gelu", {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"}),
    ("qwen2_moe", "normalised, multi-head", {"norm_topk_prob": True, "num_key_value_heads": 4}),
    ("qwen2_moe", "no biases, tied", {"qkv_bias": False, "tie_word_embeddings": True}),
    ("qwen2_moe", "every second layer sparse", {"num_hidden_layers": 4, "decoder_sparse_step": 2}),
    ("qwen2_moe", "one layer dense", {"mlp_only_layers": [0]}),
    ("qwen2_moe", "window below a limit", {**SLIDING, "num_hidden_layers": 4, "max_window_layers": 2}),
    ("qwen2_moe", "windows by name", {
        **SLIDING, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    ("qwen3_5_moe", "one key head, wide values, attention first", {
        "linear_num_key_heads": 1, "linear_value_head_dim": 40, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "linear_attention"]}),
    ("qwen3_next", "a key head for each value head, tied, some layers dense", {
        "linear_num_key_heads": 4, "linear_conv_kernel_dim": 2, "tie_word_embeddings": True,
        "decoder_sparse_step": 2, "full_attention_interval": 2}),
    ("qwen3_next", "all rotates, weights as they are", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        "norm_topk_prob": False}),
    ("qwen3_moe", "normalised, usual heads", {"norm_topk_prob": True, "head_dim": 8}),
    ("qwen3_moe", "biases, tied", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen3_moe", "every second layer sparse, one dense",
     {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("qwen3_moe", "window", SLIDING),
    ("qwen3_moe", "yarn, multi-head", {"rope_parameters": YARN, "num_key_value_heads": 4}),
    ("qwen3_moe", "dynamic", DYNAMIC),
]  # fmt: skip


def oracle(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """transformers' logits after each of `ids`, in one pass without a cache. [T, V]"""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def exact(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The same computed in float64: where that in float32 is itself further off than ours may be."""
    model.set_experts_implementation("eager")  # others know no float64
    try:
        return oracle(model.double(), ids).float()
    finally:
        model.float()


def oracle_greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """transformers' own cached continuation, for ropes whose frequencies change with the length of the text."""
    found = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("family", "special", "changes"),
    [pytest.param(*c, id=f"{c[0]}-{c[1]}") for c in CASES],
)
def test_parity(family: str, special: str, changes: dict[str, Any], layout: str, tmp_path: Path) -> None:
    model = make(family, seed=len(special), **changes)
    decoder = load(write(model, tmp_path, layout))
    for ids in PROMPTS:
        ours = greedy(decoder, ids, TOKENS)
        text = ids + ours[:-1]
        if special == "dynamic":  # first: transformers keeps the frequencies of the longest text it has seen
            assert ours == oracle_greedy(model, ids)
        expected = oracle(model, text)
        found = score(decoder, text)
        assert (found - expected).abs().max() <= 1e-4 or (found - exact(model, text)).abs().max() <= 1e-4
        if special != "dynamic":  # each token follows from those before it, so one pass shows the whole greedy text
            assert ours == expected[len(ids) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("family", ["mixtral", "dbrx", "deepseek_v3", "qwen2_moe"])
def test_shards_read_as_one_file_does(family: str, tmp_path: Path) -> None:
    model = make(family)
    whole, parts = write(model, tmp_path / "whole"), write(model, tmp_path / "parts", shard="30KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    expected = score(load(whole), PROMPTS[1])
    assert torch.allclose(score(load(parts), PROMPTS[1]), expected, rtol=0, atol=1e-5)
    (parts / "model.safetensors.index.json").unlink()  # the numbers in the names suffice
    assert torch.allclose(score(load(parts), PROMPTS[1]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "keys", "name"),
    [
        ("deepseek_v3", {"num_nextn_predict_layers": 1}, "model.layers.2.enorm.weight"),
        ("deepseek_v32", {"num_nextn_predict_layers": 1}, "model.layers.2.self_attn.indexer.wk.weight"),
        ("ernie4_5_moe", {"num_nextn_predict_layers": 1}, "model.mtp_block.0.input_layernorm.weight"),
        ("glm4_moe", {"num_nextn_predict_layers": 1}, "model.layers.2.eh_proj.weight"),
        ("glm4_moe_lite", {"num_nextn_predict_layers": 1}, "model.layers.2.shared_head.norm.weight"),
        ("qwen3_next", {}, "mtp.fc.weight"),
        ("nemotron_h", {"num_nextn_predict_layers": 1}, "mtp.layers.0.norm.weight"),
        ("minimax_m2", {"use_mtp": True, "num_mtp_modules": 3}, "model.layers.4.enorm.weight"),
    ],
)
def test_layers_that_predict_further_tokens_are_left_out(
    family: str, keys: dict[str, Any], name: str, tmp_path: Path
) -> None:
    plain = score(load(write(make(family), tmp_path)), PROMPTS[0])
    config, file = tmp_path / "config.json", tmp_path / "model.safetensors"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in values.items() if "mtp" not in key} | keys))
    save_file(load_file(file) | {name: torch.ones(32)}, file)
    assert torch.equal(score(load(tmp_path), PROMPTS[0]), plain)
    save_file(load_file(file) | {"model.layers.9.what.weight": torch.ones(32)}, file)
    with pytest.raises(CheckpointError, match=r"layers\.9"):
        load(tmp_path)


def test_a_null_clip_is_no_clip(tmp_path: Path) -> None:
    """transformers cannot run DBRX without a clip; one that never bites is the same."""
    model = make("dbrx", attn_config={"clip_qkv": 1000})
    wide = score(load(write(model, tmp_path)), PROMPTS[0])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["attn_config"]["clip_qkv"] = None
    path.write_text(json.dumps(config))
    assert torch.equal(score(load(tmp_path), PROMPTS[0]), wide)
