"""config.json as people publish it: fine-tunes, merges, quantised and wrapped models, and what must come of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from moecli.model import catalog


@dataclass(frozen=True, slots=True)
class Wild:
    """One file. Either it is read to `total` parameters and this quantisation, or refused with `refusal`."""

    config: dict[str, Any]
    total: int = 0
    quantization: str | None = None
    refusal: str = ""


def _of(alias: str, *drop: str, **changes: Any) -> dict[str, Any]:
    """The published file of a known model, edited as tools edit it."""
    entry = catalog.find(alias)
    assert entry is not None
    kept = {key: value for key, value in entry.config().items() if key not in drop}
    return copy.deepcopy(kept) | changes


# What each tool leaves behind. None of it changes a number.
_TRAINER = {
    "_name_or_path": "./out/checkpoint-1200", "use_cache": False, "torch_dtype": "bfloat16", "pretraining_tp": 1,
    "transformers_version": "4.36.2", "eos_token_id": 32000, "model_max_length": 8192,
    "tokenizer_padding_side": "right",
}  # fmt: skip
_UNSLOTH = {
    "unsloth_version": "2025.3.19", "unsloth_fixed": True, "pad_token_id": 151654, "bos_token_id": None,
    "_attn_implementation": "flash_attention_2", "layer_types": ["full_attention"] * 48,
}  # fmt: skip
_SAVER = {
    "keys_to_ignore_at_inference": ["past_key_values"], "return_dict": True, "output_attentions": False, "top_k": 50,
    "label2id": {"LABEL_0": 0}, "id2label": {"0": "LABEL_0"}, "chunk_size_feed_forward": 0, "is_decoder": False,
}  # fmt: skip
_MERGEKIT = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "sliding_window": None}
_LEGACY_QWEN = {
    "use_mrope": False, "use_sliding_window": False, "max_window_layers": 48, "qkv_bias": False, "rope_scaling": None,
}  # fmt: skip

_AWQ = {
    "bits": 4, "group_size": 128, "modules_to_not_convert": ["gate"], "quant_method": "awq", "version": "gemm",
    "zero_point": True,
}  # fmt: skip
_GPTQ = {
    "bits": 4, "damp_percent": 0.1, "desc_act": True, "group_size": -1, "model_file_base_name": "model",
    "quant_method": "gptq", "sym": True, "true_sequential": True,
}  # fmt: skip
_NF4 = {
    "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}  # fmt: skip
_FP8 = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
}  # fmt: skip
_MODELOPT = {
    "config_groups": {"group_0": {"weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}}},
    "ignore": ["lm_head"], "quant_algo": "NVFP4", "producer": {"name": "modelopt", "version": "0.41.0"},
    "quant_method": "modelopt",
}  # fmt: skip
_INT4 = {
    "config_groups": {
        "group_0": {
            "input_activations": None, "targets": ["Linear"],
            "weights": {"group_size": 32, "num_bits": 4, "strategy": "group", "symmetric": True, "type": "int"},
        },
    },
    "format": "pack-quantized", "ignore": ["lm_head", "re:.*self_attn.*"], "kv_cache_scheme": None,
    "quant_method": "compressed-tensors", "quantization_status": "compressed",
}  # fmt: skip
_MLX = {"group_size": 64, "bits": 4, "model.layers.0.mlp.gate": {"group_size": 64, "bits": 8}}

_MIXTRAL, _QWEN3, _DEEPSEEK, _KIMI = 46_702_792_704, 30_532_122_624, 671_026_419_200, 1_026_408_232_448

_QWEN3_VL = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "model_type": "qwen3_vl_moe",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
        "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 262144, "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0",
    "vision_config": {"depth": 27, "hidden_size": 1152, "model_type": "qwen3_vl_moe", "patch_size": 16},
}  # fmt: skip


def _kimi(**changes: Any) -> dict[str, Any]:
    text = _of(
        "kimi-k2", "quantization_config", max_position_embeddings=262144, rope_theta=50000.0, top_k=50, prefix=None
    )
    text["architectures"] = ["DeepseekV3ForCausalLM"]
    return {
        "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "ignore_index": -100,
        "media_placeholder_token_id": 163605, "use_unified_vision_chunk": True, "tie_word_embeddings": False,
        "text_config": text, "vision_config": {"vt_hidden_size": 1152, "vt_num_hidden_layers": 27, "patch_size": 14},
    } | changes  # fmt: skip


def _nemotron() -> dict[str, Any]:
    config = _of("nemotron-3-nano-30b-a3b", "hybrid_override_pattern")
    words = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
    pattern = _of("nemotron-3-nano-30b-a3b")["hybrid_override_pattern"]
    return config | {
        "layers_block_type": [words[each] for each in pattern],
        "mtp_layers_block_type": ["attention", "moe"],
    }


_DOTS = {
    "architectures": ["Dots1ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 4096, "head_dim": 128, "initializer_range": 0.02,
    "intermediate_size": 10944, "max_position_embeddings": 32768, "max_window_layers": 62, "model_type": "dots1",
    "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 2,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts_per_tok": 6, "num_hidden_layers": 62,
    "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000000,
    "routed_scaling_factor": 2.5, "scoring_func": "noaux_tc", "sliding_window": None, "tie_word_embeddings": False,
    "topk_group": 1, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 152064,
}  # fmt: skip
_LLAMA3_ROPE = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
_YARN = {"factor": 4.0, "finetuned": True, "original_max_position_embeddings": 32768, "type": "yarn"}

WILD: dict[str, Wild] = {
    "trinity as published": Wild(_of("trinity-mini"), 26_123_974_400),
    "laguna as published": Wild(_of("laguna-xs-2.1"), 33_442_617_088),
    "north as published": Wild(_of("north-mini-code"), 30_484_303_872),
    "k-exaone as published": Wild(_of("k-exaone-236b-a23b"), 236_571_156_352),
    "mistral small 4 as published": Wild(_of("mistral-small-4"), 118_972_826_624),
    "llama 4 scout as published": Wild(_of("llama-4-scout"), 107_769_861_120),
    "phi 3.5 as published": Wild(_of("phi-3.5-moe"), 41_873_153_344),
    "mimo as published": Wild(_of("mimo-v2-flash"), 308_778_780_864, "fp8"),
    "step 3.7 as curated": Wild(_of("step-3.7-flash"), 195_844_508_736),
    "step 3.5 as published": Wild(
        {
            "architectures": ["Step3p5ForCausalLM"],
            "model_type": "step3p5",
            "hidden_size": 256,
            "head_dim": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_nextn_predict_layers": 1,
            "vocab_size": 1024,
            "num_attention_heads": 4,
            "num_attention_groups": 2,
            "max_position_embeddings": 4096,
            "max_seq_len": 4096,
            "use_moe": True,
            "moe_layers_enum": "1,2,3",
            "moe_num_experts": 8,
            "moe_top_k": 2,
            "moe_intermediate_size": 128,
            "share_expert_dim": 64,
            "norm_expert_weight": True,
            "moe_router_activation": "sigmoid",
            "moe_router_scaling_factor": 2.5,
            "att_impl_type": "GQA",
            "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
            "sliding_window": 512,
            "attention_other_setting": {
                "attention_type": "sliding_attention",
                "num_attention_heads": 6,
                "num_attention_groups": 2,
                "head_dim": 64,
                "true_head_dim": 64,
            },
            "rope_theta": [5e6, 1e4, 1e4, 1e4, 5e6],
            "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0, 0.5],
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 2.0,
                "original_max_position_embeddings": 2048,
                "low_freq_factor": 1.0,
                "high_freq_factor": 32.0,
            },
            "yarn_only_types": ["full_attention"],
            "swiglu_limits": [0.0, 0.0, 0.0, 7.0, 0.0],
            "swiglu_limits_shared": [0.0, 0.0, 0.0, 16.0, 0.0],
        },
        4_225_304,
    ),
    "gemma 4 as published": Wild(_of("gemma-4-26b-a4b"), 25_233_141_790),
    # Mixtral: the family that people tune and merge most
    "mixtral, tuned, two tokens added": Wild(_of("mixtral-base", **_TRAINER, vocab_size=32002), 46_702_809_088),
    "mixtral, merged from four": Wild(
        _of("mixtral-base", **_MERGEKIT, num_local_experts=4, _name_or_path="a/CodeNinja-7B"), 24_153_690_112
    ),
    "mixtral, merged from two of SOLAR": Wild(
        _of("mixtral-base", **_MERGEKIT, num_local_experts=2, num_hidden_layers=48), 19_187_634_176
    ),
    "mixtral, merged from llamas": Wild(
        _of(
            "mixtral-base",
            **_MERGEKIT,
            vocab_size=128256,
            num_local_experts=4,
            rope_theta=500000.0,
            router_jitter_noise=0.0,
        ),
        24_942_219_264,
    ),
    "mixtral, eight tiny llamas": Wild(
        _of(
            "mixtral-base",
            **_MERGEKIT,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_key_value_heads=4,
            rope_theta=10000.0,
            max_position_embeddings=2048,
        ),
        6_429_272_064,
    ),
    "mixtral, saved by the other key": Wild(_of("mixtral-base", "num_local_experts", num_experts=8), _MIXTRAL),
    "mixtral, saved by transformers 5": Wild(
        _of(
            "mixtral-base",
            "rope_theta",
            "torch_dtype",
            dtype="bfloat16",
            head_dim=128,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        ),
        _MIXTRAL,
    ),
    "mixtral, the base model's class": Wild(_of("mixtral-base", architectures=["MixtralModel"]), _MIXTRAL),
    "mixtral, a class of its own": Wild(
        _of("mixtral-base", architectures=["MyMixtral", "MixtralForCausalLM"], auto_map={"AutoModel": "m.MyMixtral"}),
        _MIXTRAL,
    ),
    "mixtral, awq": Wild(_of("mixtral", quantization_config=_AWQ), _MIXTRAL, "awq"),
    "mixtral, gptq": Wild(_of("mixtral", quantization_config=_GPTQ, pad_token_id=0), _MIXTRAL, "gptq"),
    "mixtral, merged from qlora": Wild(_of("mixtral", quantization_config=_NF4), _MIXTRAL, "bitsandbytes 4-bit"),
    "mixtral, eight bits": Wild(
        _of("mixtral", quantization_config={"load_in_8bit": True, "load_in_4bit": False}),
        _MIXTRAL,
        "bitsandbytes 8-bit",
    ),
    "mixtral, mlx": Wild(_of("mixtral", quantization=_MLX, quantization_config=_MLX), _MIXTRAL, "MLX 4-bit"),
    "mixtral, yarn": Wild(_of("mixtral-base", rope_scaling=_YARN), _MIXTRAL),
    "mixtral with biases": Wild(_of("mixtral-base", attention_bias=True), refusal="'attention_bias' is true"),
    "mixtral with sequence labels": Wild(
        _of("mixtral-base", architectures=["MixtralForSequenceClassification"]),
        refusal="'MixtralForSequenceClassification' is not supported",
    ),
    "an early gpt-oss": Wild(
        _of("mixtral-base", architectures=["OranginaForCausalLM"]), refusal="'OranginaForCausalLM' is not supported"
    ),
    # DBRX and Grok-1
    "dbrx, tuned": Wild(
        _of("dbrx", **_SAVER, model_max_length=32768, unsloth_version="2024.8", tokenizer_class="GPT2Tokenizer"),
        131_596_523_520,
    ),
    "grok-1, by its key alone": Wild(_of("grok-1", "architectures", "model_type", **_SAVER), 315_684_820_992),
    # DeepSeek and those who took it over
    "deepseek-v2-lite, tuned": Wild(
        _of("deepseek-v2-lite", **_SAVER, use_mla=True, ep_size=1, num_nextn_predict_layers=0), 15_706_484_224
    ),
    "deepseek-v3 in bf16": Wild(
        _of("deepseek-v3", "quantization_config", torch_dtype="bfloat16", mlp_bias=False, num_local_experts=256),
        _DEEPSEEK,
    ),
    "deepseek-v3.2 in bf16": Wild(
        _of("deepseek-v3.2", "quantization_config", torch_dtype="bfloat16", mlp_bias=False), 671_877_944_064
    ),
    "glm-5, tuned": Wild(_of("glm-5", **_SAVER), 743_911_218_432),
    "deepseek-r1, nvfp4": Wild(_of("deepseek-r1", quantization_config=_MODELOPT), _DEEPSEEK, "ModelOpt nvfp4"),
    "kimi-k2-thinking": Wild(_of("kimi-k2", quantization_config=_INT4), _KIMI, "compressed-tensors 4-bit"),
    "kimi-k2.5": Wild(
        _kimi(text_config=_kimi()["text_config"] | {"quantization_config": _INT4}), _KIMI, "compressed-tensors 4-bit"
    ),
    "kimi-k2.5, nvfp4": Wild(_kimi(quantization_config=_MODELOPT), _KIMI, "ModelOpt nvfp4"),
    # MiniMax, GLM, dots
    "minimax-m1, tuned": Wild(_of("minimax-m1", **_SAVER), 456_089_655_296),
    "minimax-m1, another residual": Wild(_of("minimax-m1", postnorm=False), refusal="'postnorm' is false"),
    "minimax-m2 in bf16": Wild(
        _of("minimax-m2", "quantization_config", **_SAVER, sliding_window=None), 228_689_764_864
    ),
    "minimax-m2.5, awq": Wild(_of("minimax-m2.5", quantization_config=_AWQ), 228_689_764_864, "awq"),
    "glm-4.5-air, tuned": Wild(_of("glm-4.5-air", **_TRAINER, num_experts=128), 106_852_251_264),
    "glm-4.6, with norms": Wild(
        _of(
            "glm-4.5-air",
            use_qk_norm=True,
            num_hidden_layers=92,
            hidden_size=5120,
            intermediate_size=12288,
            moe_intermediate_size=1536,
            n_routed_experts=160,
            first_k_dense_replace=3,
            routed_scaling_factor=2.5,
        ),
        352_797_829_024,
    ),
    "glm-4.7-flash, saved by transformers 5": Wild(
        _of(
            "glm-4.7-flash",
            "rope_theta",
            "first_k_dense_replace",
            mlp_layer_types=["dense"] + ["sparse"] * 46,
            head_dim=64,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        ),
        29_943_393_920,
    ),
    "dots.llm1": Wild(_DOTS, 142_774_381_696),
    # ERNIE, Hunyuan
    "ernie-4.5, as converted": Wild(
        _of(
            "ernie-4.5-21b-a3b",
            use_moe=True,
            moe_use_aux_free=True,
            moe_capacity=[64, 64, 64],
            moe_gate="topk",
            num_nextn_predict_layers=1,
        ),
        21_825_437_888,
    ),
    "hunyuan-a13b, gptq": Wild(_of("hunyuan-a13b", quantization_config=_GPTQ), 80_393_183_232, "gptq"),
    "hunyuan-a13b, saved by transformers 5": Wild(
        _of(
            "hunyuan-a13b",
            "attention_head_dim",
            "rope_scaling",
            "rope_theta",
            head_dim=128,
            rope_parameters={"alpha": 1000.0, "factor": 1.0, "rope_theta": 10000.0, "rope_type": "dynamic"},
        ),
        80_393_183_232,
    ),
    # Arctic, Ling, DeepSeekMoE
    "arctic, as published": Wild(
        _of("arctic", "rope_theta", use_residual=True, moe_min_capacity=0, moe_token_dropping=False, rope_theta=1e6),
        478_584_608_768,
    ),
    "ling-mini, tuned": Wild(_of("ling-mini-2.0", **_SAVER, num_nextn_predict_layers=0), 16_255_643_392),
    "deepseek-moe-16b, awq": Wild(_of("deepseek-moe-16b", quantization_config=_AWQ), 16_375_728_128, "awq"),
    # OLMoE, Granite
    "olmoe, tuned": Wild(
        _of("olmoe-base", **_SAVER, architectures=["OlmoeModel"], layer_types=["full_attention"] * 16), 6_919_161_856
    ),
    "olmoe with a window": Wild(_of("olmoe-base", sliding_window=1024), refusal="'sliding_window' is 1024"),
    "granite, tuned": Wild(_of("granite-3.1-1b-a400m", **_SAVER, position_embedding_type="rope"), 1_334_628_352),
    # Qwen
    "qwen1.5-moe, gptq": Wild(
        _of("qwen1.5-moe-a2.7b", **_SAVER, quantization_config=_GPTQ | {"group_size": 128}), 14_315_784_192, "gptq"
    ),
    "qwen2-moe, tuned": Wild(_of("qwen2-57b-a14b", use_mrope=False, mlp_bias=False, **_SAVER), 57_408_658_944),
    "qwen3-moe, unsloth": Wild(_of("qwen3-30b-a3b", **_UNSLOTH), _QWEN3),
    "qwen3-moe, leftovers of qwen2": Wild(_of("qwen3-30b-a3b", **_LEGACY_QWEN), _QWEN3),
    "qwen3-moe, fp8": Wild(_of("qwen3-30b-a3b", quantization_config=_FP8), _QWEN3, "fp8"),
    "qwen3-moe, mlx, old": Wild(_of("qwen3-30b-a3b", quantization={"group_size": 32, "bits": 8}), _QWEN3, "MLX 8-bit"),
    "qwen3-moe, pruned, its list left": Wild(
        _of("qwen3-30b-a3b", num_hidden_layers=40, layer_types=["full_attention"] * 48),
        refusal="'layer_types' must be a list with one entry",
    ),
    "qwen3-vl": Wild(_QWEN3_VL, _QWEN3),
    "qwen3-vl, fp8": Wild(_QWEN3_VL | {"quantization_config": _FP8}, _QWEN3, "fp8"),
    "internvl around qwen3-moe": Wild(
        {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "template": "internvl2_5",
            "llm_config": _of("qwen3-30b-a3b", **_SAVER),
            "vision_config": {"hidden_size": 3200},
            "select_layer": -1,
        },
        _QWEN3,
    ),
    # Dense ones, bare and wrapped
    "llama 3.1, saved by everything": Wild(
        _of("llama-2-70b", **_TRAINER | _SAVER, rope_scaling=_LLAMA3_ROPE, rope_theta=500000.0, mlp_bias=False),
        68_976_648_192,
    ),
    "llama, as it was first spelled": Wild(
        _of("llama-2-70b", architectures=["LLaMAForCausalLM"], max_sequence_length=2048), 68_976_648_192
    ),
    "llava around mistral": Wild(
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": 32000,
            "text_config": {
                "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
                "architectures": ["MistralForCausalLM"],
                "intermediate_size": 14336,
                "max_position_embeddings": 32768,
                "model_type": "mistral",
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000000.0,
                "sliding_window": None,
                "torch_dtype": "bfloat16",
                "vocab_size": 32064,
            },
            "vision_config": {"hidden_size": 1024, "model_type": "clip_vision_model"},
            "projector_hidden_act": "gelu",
        },
        7_242_256_384,
    ),
    "a wrapper around nothing known": Wild(
        {"architectures": ["BlipModel"], "model_type": "blip", "text_config": {"model_type": "blip_text_model"}},
        refusal="'BlipModel' is not supported",
    ),
    # Encoder and decoder
    "switch, as converted first": Wild(_of("switch-base-16", **_SAVER, output_past=True), 1_072_397_568),
    "switch, no class named": Wild(_of("switch-c-2048", torch_dtype="bfloat16"), 1_571_375_798_688),
    "switch, gated": Wild(_of("switch-xxl-128", "is_gated_act"), 394_675_073_024),
    "switch with two experts a token": Wild(
        _of("switch-base-8", num_selected_experts=2), refusal="'num_selected_experts' is 2"
    ),
    "switch, the best first": Wild(
        _of("switch-base-8", batch_prioritized_routing=True), refusal="'batch_prioritized_routing' is true"
    ),
    "switch, a router in half precision": Wild(
        _of("switch-base-8", router_dtype="bfloat16"), refusal="'router_dtype' is \"bfloat16\""
    ),
    "switch, buckets beyond their distance": Wild(
        _of("switch-base-8", relative_attention_max_distance=16), refusal="too short for 32 buckets"
    ),
    # With states
    "nemotron 3.5, its layers as a list": Wild(_nemotron(), 31_577_940_288),
    "qwen3-next, tuned": Wild(_of("qwen3-next-80b-a3b", **_TRAINER | {"eos_token_id": 151645}), 79_674_391_296),
    "qwen3.5 with its eyes": Wild(_of("qwen3.5-35b-a3b", **_SAVER), 34_660_610_688),
    "qwen3.5, gates closed": Wild(
        _of("qwen3-next-80b-a3b", attn_output_gate=False), refusal="'attn_output_gate' is false"
    ),
    "lfm2, the older name of a tie": Wild(
        _of("lfm2-8b-a1b", "tie_word_embeddings", tie_embedding=True, block_auto_adjust_ff_dim=False), 8_339_930_560
    ),
    "kimi-linear, its sizes beside": Wild(
        _of("kimi-linear-48b-a3b", head_dim=72, linear_head_dim=64, **_SAVER), 49_122_681_728
    ),
    "kimi-linear, decays with a floor": Wild(
        _of("kimi-linear-48b-a3b", linear_attn_config={"gate_lower_bound": -5.0}), refusal="gate_lower_bound' is -5.0"
    ),
    "kimi-linear, layers of two minds": Wild(
        _of("kimi-linear-48b-a3b", layer_types=["full_attention"] * 27), refusal="'layer_types' is"
    ),
    "ling 3, by its name alone": Wild(
        {
            "architectures": ["BailingHybridForCausalLM"],
            "model_type": "bailing_hybrid",
            "model_max_length": 262_144,
            **_SAVER,
        },
        124_414_211_552,
    ),
    "ling 2.5, another model of that type": Wild(
        {"architectures": ["BailingMoeV2_5ForCausalLM"], "model_type": "bailing_hybrid"},
        refusal="'BailingMoeV2_5ForCausalLM' is not supported",
    ),
    "jamba, tuned": Wild(_of("jamba", **_SAVER, use_mamba_kernels=False), 51_570_323_328),
    "granite 4": Wild(_of("granite-4.0-h-tiny", normalization_function="rmsnorm", **_SAVER), 6_939_037_248),
    "granite 4, steps cut": Wild(_of("granite-4.0-h-tiny", time_step_limit=[0.0, 0.1]), refusal="'time_step_limit' is"),
    # Counted, not run
    "gpt-oss, tuned": Wild(
        _of("gpt-oss-20b", "quantization_config", unsloth_version="2025.8.4", **_SAVER), 20_914_757_184
    ),
}
