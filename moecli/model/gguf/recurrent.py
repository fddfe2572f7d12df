"""Architectures of llama.cpp some of whose layers have a state in place of attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moecli.errors import ConfigError
from moecli.model.gguf.metadata import SIGMOID, Metadata, common, head_dim, router


def _kv_heads(said: Metadata) -> list[int]:
    """Of each layer; none where it has a state."""
    return said.each("attention.head_count_kv", said.count("block_count"))


def _lfm2_moe(said: Metadata) -> dict[str, Any]:
    kv_heads = _kv_heads(said)
    config = common(said) | head_dim(said)
    said.expect("expert_gating_func", SIGMOID)
    del config["rms_norm_eps"]
    return config | {
        "architectures": ["Lfm2MoeForCausalLM"],
        "norm_eps": said.need("attention.layer_norm_rms_epsilon"),
        "num_key_value_heads": max(kv_heads),
        "layer_types": ["full_attention" if heads else "conv" for heads in kv_heads],
        "conv_L_cache": said.need("shortconv.l_cache"),
        "intermediate_size": said.need("feed_forward_length"),
        "moe_intermediate_size": said.expert_width,
        "num_dense_layers": said.get("leading_dense_block_count", 0),
        "num_experts": said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "use_expert_bias": said.holds("exp_probs_b.bias"),
    }


def _jamba(said: Metadata) -> dict[str, Any]:
    kv_heads = _kv_heads(said)
    config = common(said) | router(said, "num_experts")
    del config["rope_theta"]
    hidden_size, inner = said.count("embedding_length"), said.count("ssm.inner_size")
    if inner % hidden_size:
        raise ConfigError(f"the GGUF file has mixers {inner} wide in a model of {hidden_size}")
    sparse = [f"blk.{index}.ffn_gate_inp.weight" in said.shapes for index in range(len(kv_heads))]
    attention, mixtures = _period([heads > 0 for heads in kv_heads]), _period(sparse)
    return config | {
        "architectures": ["JambaForCausalLM"],
        "num_key_value_heads": max(kv_heads),
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "expert_layer_period": mixtures[0],
        "expert_layer_offset": mixtures[1],
        "intermediate_size": said.need("feed_forward_length"),
        "mamba_expand": inner // hidden_size,
        "mamba_d_conv": said.need("ssm.conv_kernel"),
        "mamba_d_state": said.need("ssm.state_size"),
        "mamba_dt_rank": said.need("ssm.time_step_rank"),
        "mamba_conv_bias": said.holds("ssm_conv1d.bias"),
        "mamba_proj_bias": False,
    }


def _period(chosen: list[bool]) -> tuple[int, int]:
    """Every how many layers, and from which one on. ConfigError where there is no such rule."""
    found = [index for index, each in enumerate(chosen) if each]
    period = found[1] - found[0] if len(found) > 1 else len(chosen)
    if not found or chosen != [index >= found[0] and (index - found[0]) % period == 0 for index in range(len(chosen))]:
        raise ConfigError("the GGUF file has attention or mixtures in other layers than in every so many")
    if found[0] >= period:
        raise ConfigError("the GGUF file has attention or mixtures later than in the first period of layers")
    return period, found[0]


def _granite_hybrid(said: Metadata) -> dict[str, Any]:
    """Granite 4: with mixtures, or, in the smallest, without."""
    kv_heads = _kv_heads(said)
    config = common(said)
    experts = said.get("expert_count") or 0
    if experts:
        config |= router(said, "num_local_experts") | {"intermediate_size": said.expert_width}
    else:
        said.expect("expert_used_count", 0)
        config |= {"num_local_experts": 0, "num_experts_per_tok": 0}
    hidden_size, inner = said.count("embedding_length"), said.count("ssm.inner_size")
    heads = said.count("ssm.time_step_rank")
    if inner % hidden_size or inner % heads:
        raise ConfigError(f"the GGUF file has {heads} heads of mixers {inner} wide in a model of {hidden_size}")
    rotates = said.get("rope.scaling.finetuned", True)  # so llama.cpp says whether there are positions
    return config | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "num_key_value_heads": max(kv_heads),
        "layer_types": ["attention" if each else "mamba" for each in kv_heads],
        "position_embedding_type": "rope" if rotates else "nope",
        "shared_intermediate_size": said.axis("ffn_down_shexp.weight" if experts else "ffn_down.weight", -1),
        "attention_multiplier": said.get("attention.scale") or said.head_dim**-0.5,
        "embedding_multiplier": said.get("embedding_scale") or 1.0,
        "residual_multiplier": said.get("residual_scale") or 1.0,
        "logits_scaling": said.need("logit_scale"),
        "mamba_expand": inner // hidden_size,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": said.need("ssm.group_count"),
        "mamba_d_state": said.need("ssm.state_size"),
        "mamba_d_conv": said.need("ssm.conv_kernel"),
        "mamba_conv_bias": said.holds("ssm_conv1d.bias"),
        "mamba_proj_bias": said.holds("ssm_in.bias"),
    }


def _nemotron_h(said: Metadata) -> dict[str, Any]:
    """Nemotron 3: blocks with key/value heads attend, those with a feed-forward width are mixtures, the others mix."""
    blocks, beyond = said.count("block_count"), said.get("nextn_predict_layers") or 0
    if type(beyond) is not int or not 0 <= beyond < blocks:
        raise ConfigError("the GGUF file has more layers that predict further tokens than blocks")
    kv_heads, widths = _kv_heads(said), said.each("feed_forward_length", blocks)
    if any(heads and width for heads, width in list(zip(kv_heads, widths, strict=True))[: blocks - beyond]):
        raise ConfigError("the GGUF file has blocks with both attention and a feed-forward part")
    kinds = ["attention" if each else "moe" if width else "mamba" for each, width in zip(kv_heads, widths, strict=True)]
    said.expect("expert_group_count", 1, 0)
    said.expect("expert_group_used_count", 1, 0)
    said.expect("expert_gating_func", SIGMOID)
    said.get("expert_shared_count")  # in one matrix, however many
    heads, inner = said.count("ssm.time_step_rank"), said.count("ssm.inner_size")
    if inner % heads:
        raise ConfigError(f"the GGUF file has {heads} heads of mixers {inner} wide")
    config = common(said, said.count("rope.dimension_count", said.head_dim)) | head_dim(said)  # which none turns by
    eps = said.get("attention.layer_norm_epsilon", config.pop("rms_norm_eps"))
    latent = said.get("moe_latent_size")
    return config | ({"moe_latent_size": latent} if latent else {}) | {
        "architectures": ["NemotronHForCausalLM"],
        "num_hidden_layers": blocks - beyond,
        "num_nextn_predict_layers": beyond,
        "layers_block_type": kinds[: blocks - beyond],
        "num_key_value_heads": max(kv_heads),
        "layer_norm_epsilon": eps,
        "moe_intermediate_size": said.axis("ffn_up_exps.weight", -2),
        "moe_shared_expert_intermediate_size": said.axis("ffn_up_shexp.weight", 0),
        "n_shared_experts": 1,
        "n_routed_experts": said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "norm_topk_prob": bool(said.get("expert_weights_norm", False)),
        "routed_scaling_factor": said.get("expert_weights_scale") or 1.0,
        "n_group": 1,
        "topk_group": 1,
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "n_groups": said.need("ssm.group_count"),
        "ssm_state_size": said.need("ssm.state_size"),
        "conv_kernel": said.need("ssm.conv_kernel"),
        "use_conv_bias": said.holds("ssm_conv1d.bias"),
    }  # fmt: skip


def _delta_net(said: Metadata) -> dict[str, Any]:
    """What Qwen's hybrids share."""
    blocks, beyond = said.count("block_count"), said.get("nextn_predict_layers") or 0
    if type(beyond) is not int or not 0 <= beyond < blocks:
        raise ConfigError("the GGUF file has more layers that predict further tokens than blocks")
    layers, heads, inner = blocks - beyond, said.count("ssm.time_step_rank"), said.count("ssm.inner_size")
    if inner % heads:
        raise ConfigError(f"the GGUF file has {heads} value heads in a width of {inner}")
    every = said.count("full_attention_interval", 4)
    recurrent = said.get("attention.recurrent_layers", [(index + 1) % every != 0 for index in range(layers)])
    if isinstance(recurrent, bool):
        recurrent = [recurrent] * layers
    if not isinstance(recurrent, list) or len(recurrent) < layers:
        raise ConfigError("the GGUF file does not say which of its layers have attention")
    rotary = said.count("rope.dimension_count", said.head_dim)
    return (
        common(said, rotary)
        | {"head_dim": said.head_dim}
        | router(said, "num_experts")
        | {
            "num_hidden_layers": layers,
            "layer_types": ["linear_attention" if each else "full_attention" for each in recurrent[:layers]],
            "partial_rotary_factor": rotary / said.head_dim,
            "linear_num_key_heads": said.need("ssm.group_count"),
            "linear_num_value_heads": heads,
            "linear_key_head_dim": said.need("ssm.state_size"),
            "linear_value_head_dim": inner // heads,
            "linear_conv_kernel_dim": said.need("ssm.conv_kernel"),
            "moe_intermediate_size": said.expert_width,
            "shared_expert_intermediate_size": said.axis("ffn_down_shexp.weight", -1),
        }
    )


def _qwen3_next(said: Metadata) -> dict[str, Any]:
    said.expect("nextn_predict_layers", 0)
    return _delta_net(said) | {"architectures": ["Qwen3NextForCausalLM"]}


def _qwen3_5_moe(said: Metadata) -> dict[str, Any]:
    """The text model; sections of its rope say nothing of texts."""
    said.get("rope.dimension_sections")
    beyond = said.get("nextn_predict_layers") or 0
    return _delta_net(said) | {"architectures": ["Qwen3_5MoeForCausalLM"], "mtp_num_hidden_layers": beyond}


READERS: Mapping[str, Callable[[Metadata], dict[str, Any]]] = {
    "lfm2moe": _lfm2_moe,
    "jamba": _jamba,
    "granitehybrid": _granite_hybrid,
    "nemotron_h_moe": _nemotron_h,
    "qwen3next": _qwen3_next,
    "qwen35moe": _qwen3_5_moe,
}
