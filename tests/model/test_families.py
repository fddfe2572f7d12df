"""Reading config.json: what has an effect is used or refused, in both dialects, with transformers' defaults."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.engine.layers import frequencies
from moecli.engine.load import open_model
from moecli.errors import ConfigError
from moecli.model import catalog
from moecli.model.families import families, find, load_config, read_spec, runnable
from moecli.model.spec import MLA, Activation, GroupedQuery, Mixture, ModelSpec, RopeKind
from moecli.model.tensors import Part, dense_tensors, expert_shapes
from tests.support.checkpoints import (
    FAMILIES,
    LAYOUTS,
    class_name,
    configuration,
    configuration_class,
    make,
    write,
)
from tests.support.wild_configs import WILD

DATA = Path(__file__).parents[1] / "data" / "reference"
CONFIGS: dict[str, dict[str, Any]] = {
    path.parent.name: json.loads(path.read_text()) for path in sorted(DATA.glob("*/config.json"))
}


def config(name: str, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(CONFIGS[name]) | changes


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_spec(values)
    assert len(caught.value.message) < 300
    return caught.value.message


# The file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not readable JSON"), (b"{", "not readable JSON"), (b"\xff\xfe", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"), (b'{"a":' * 100_000, "not readable JSON"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "not readable JSON"),
        (b"[]", "does not hold a JSON object"), (b"null", "does not hold a JSON object"), (b"3", "JSON object"),
        (b" " * (16 * 1024**2 + 1), "too large for a config.json"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_model(tmp_path)


@pytest.mark.parametrize("key", ["hidden_size", "architectures", "hidden_act", "rope_parameters", "made_up", "dtype"])
def test_nesting_of_any_depth_is_read_past_or_refused(key: str, tmp_path: Path) -> None:
    """Also where it is just shallow enough to be read, and too deep to be shown."""
    path = tmp_path / "config.json"
    whole = {name: value for name, value in CONFIGS["mixtral"].items() if name not in (key, "model_type")}
    text = json.dumps(whole)[:-1] + f', "{key}": '
    for depth in (10, 100, *range(800, 1010, 6), 5000):
        for opened, closed in (("[", "]"), ('{"a":', "}")):
            path.write_text(text + opened * depth + "1" + closed * depth + "}")
            try:
                spec = read_spec(load_config(path))
            except ConfigError:
                continue
            assert key == "made_up" and spec.unread_keys == (key,) and depth < 1010


@pytest.mark.parametrize("entry", catalog.known(), ids=lambda entry: entry.alias)
def test_what_stands_for_a_part_and_is_none_is_refused_or_read_past(entry: catalog.Entry) -> None:
    """Whoever looks into a part of the file looks first whether it is one."""
    whole = entry.config()
    inner = next((name for name in ("text_config", "llm_config", "language_config") if name in whole), None)
    parts = {name for name, value in whole.items() if isinstance(value, dict | list)}
    for key in parts | {"text_config", "quantization_config", "quantization", "rope_scaling", "architectures"}:
        for value in (3, 1.5, True, "x", "", [], [1], [[]], {}, {"a": 1}, None):
            texts = [whole | {key: value}]
            if inner and isinstance(whole[inner], dict):
                texts.append(whole | {inner: whole[inner] | {key: value}})
            for text in texts:
                try:
                    read_spec(text)
                except ConfigError as error:
                    assert error.message


# The family


def test_minimax_is_read_as_its_vendor_and_as_transformers_write_it() -> None:
    ours = configuration("minimax").to_dict()
    halves = {"full_attn": "full_attention", "linear_attn": "linear_attention", "mlp": "mlp"}
    keys = {
        f"{half}_{side}_factor": f"layernorm_{name}_{side}"
        for half, name in halves.items()
        for side in ("alpha", "beta")
    }
    vendor = {keys.get(key, key): value for key, value in ours.items() if key not in ("layer_types", "model_type")}
    vendor |= {"architectures": ["MiniMaxM1ForCausalLM"], "attn_type_list": [0, 1, 0, 0], "postnorm": True}
    assert read_spec(vendor) == read_spec(ours)
    assert read_spec(vendor | {"rotary_dim": 6}).layers[1].attention.rope.dims == 6
    for change in ({"postnorm": False}, {"layer_types": ["full_attention"] * 4}, {"num_attention_heads": 6}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            read_spec(vendor | change)


def test_architectures_come_before_model_types() -> None:
    assert read_spec(config("grok1", architectures=["Grok1ModelForCausalLM"], model_type="mixtral")).family == "grok-1"
    assert read_spec(config("grok1")).family == "grok-1"  # neither: by the key that only it has
    assert read_spec(config("deepseek_v3", model_type="kimi_k2")).family == "deepseek_v3"
    nameless = config("mixtral")
    del nameless["architectures"]
    assert read_spec(nameless).family == "mixtral"


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "MixtralForSequenceClassification", "", 3, ["MixtralForCausalLM"]])
def test_an_unknown_architecture_is_refused_whatever_its_model_type(name: object) -> None:
    assert "is not supported" in refusal(config("mixtral", architectures=[name]))


@pytest.mark.parametrize("values", [{}, {"model_type": "gpt2"}, {"model_type": None}, {"architectures": "Mixtral"}])
def test_no_known_family(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not supported") as caught:
        find(values)
    assert caught.value.hint is not None and "moecli list --known" in caught.value.hint


# Its place


def specs_by_family() -> dict[str, list[ModelSpec]]:
    names = {family.architectures: name for name, family in families().items()}
    found: dict[str, list[ModelSpec]] = {}
    made = [configuration(family).to_dict() for family in FAMILIES]
    made.append(WILD["qwen3-vl"].config)  # of a family that transformers has only behind its tower
    for each in [*made, *CONFIGS.values(), *(entry.config() for entry in catalog.known())]:
        found.setdefault(names[find(each).architectures], []).append(read_spec(each))
    return found


def test_a_family_lies_where_its_specs_say() -> None:
    """Beside the engine's own if all of its models run, in `facts` if none does; each has a model to tell by."""
    specs = specs_by_family()
    assert specs.keys() == families().keys()
    for name, models in specs.items():
        assert {not spec.unsupported for spec in models} == {name in runnable()}, name


# Keys and values


@pytest.mark.parametrize("name", CONFIGS)
def test_a_key_that_nothing_reads_is_noted_and_changes_nothing(name: str) -> None:
    plain = read_spec(config(name))
    changed = read_spec(config(name, made_up_key=1, another={"deep": [None]}))
    assert changed == plain
    assert set(changed.unread_keys) - set(plain.unread_keys) == {"another", "made_up_key"}


def test_a_key_inside_an_object_is_noted_with_its_place() -> None:
    changed = config("dbrx")
    changed["attn_config"]["made_up"] = changed["ffn_config"]["made_up"] = 1
    assert {"attn_config.made_up", "ffn_config.made_up"} <= set(read_spec(changed).unread_keys)
    changed = config("deepseek_v2")
    changed["rope_scaling"]["made_up"] = 1
    assert "rope_scaling.made_up" in read_spec(changed).unread_keys


@pytest.mark.parametrize("value", [0, -1, 1.5, 32.0, True, "32", None, [32], {}, 2**31, 2**70, math.nan, math.inf])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "num_experts_per_tok"])
def test_a_count_is_a_whole_number_in_a_sane_range(key: str, value: object) -> None:
    assert f"config key '{key}'" in refusal(config("mixtral", **{key: value}))


@pytest.mark.parametrize("value", [0, -1e-5, True, "1e-5", None, [], math.nan, math.inf, 10**400])
def test_a_number_is_finite_and_positive(value: object) -> None:
    assert "config key 'rms_norm_eps'" in refusal(config("mixtral", rms_norm_eps=value))


def test_numbers_that_json_should_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999"):
        path.write_text(json.dumps(config("mixtral", rms_norm_eps="?")).replace('"?"', text))
        assert "rms_norm_eps" in refusal(load_config(path))


@pytest.mark.parametrize("value", [0, 1, "false", "true", [], {}])
@pytest.mark.parametrize(
    ("name", "key"),
    [("olmoe", "norm_topk_prob"), ("deepseek_v2", "norm_topk_prob"), ("deepseek_v3", "norm_topk_prob"),
     ("qwen3_moe", "attention_bias"), ("mixtral", "tie_word_embeddings"), ("qwen2_moe", "use_sliding_window")],
)  # fmt: skip
def test_a_flag_is_true_or_false(name: str, key: str, value: object) -> None:
    assert f"config key '{key}'" in refusal(config(name, **{key: value}))


@pytest.mark.parametrize(("family", "key"), [("llama", "mlp_bias"), ("mistral", "attention_bias")])
def test_what_a_dense_family_does_not_compute_is_refused_by_name(family: str, key: str) -> None:
    assert f"config key '{key}'" in refusal(configuration(family).to_dict() | {key: True})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"attention_bias": True}, "'attention_bias' is true"),
    ("mixtral", {"n_shared_experts": 1}, "'n_shared_experts' is 1"),
    ("mixtral", {"layer_types": ["full_attention"]}, "'layer_types' must be a list with one entry"),
    ("mixtral", {"num_experts": 5}, "'num_experts' is 5, which contradicts 'num_local_experts'"),
    ("mixtral", {"per_layer_config": {"0": {"num_attention_heads": 2}}}, "'per_layer_config'"),
    ("olmoe", {"sliding_window": 16}, "'sliding_window' is 16, shorter than the context"),
    ("deepseek_v3", {"attention_chunk_size": 16}, "'attention_chunk_size' is 16"),
    ("dbrx", {"hidden_size": 5}, "'hidden_size' is 5, which contradicts 'd_model'"),
    ("mixtral", {"num_hidden_layers": 1001}, "no model is that deep"),
    ("mixtral", {"num_key_value_heads": 3}, "does not divide the 4 heads"),
    ("mixtral", {"head_dim": 7}, "needs an even number"),
    ("mixtral", {"num_attention_heads": 64, "num_key_value_heads": 64}, "head_dim"),
    ("mixtral", {"num_experts_per_tok": 7}, "more than the 6 experts"),
    ("mixtral", {"hidden_act": "swiglu"}, "unknown activation, 'swiglu'"),
    ("mixtral", {"hidden_act": None}, "must be text"),
    ("mixtral", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
    ("mixtral", {"is_encoder_decoder": True}, "'is_encoder_decoder' is true"),
    ("mixtral", {"sliding_window": 0}, "'sliding_window' is 0"),
    ("mixtral", {"rope_theta": 0}, "'rope_theta'"),
    ("mixtral", {"rope_theta": "1e6"}, "'rope_theta'"),
    ("mixtral", {"quantization_config": "gptq"}, "'quantization_config' must be an object"),
    ("mixtral", {"dtype": 16}, "'torch_dtype' must be text"),
    ("mixtral", {"architectures": ["OlmoeForCausalLM"]}, "olmoe: config key 'model_type' is \"mixtral\""),
    ("dbrx", {"n_heads": 5}, "'n_heads' is 5"),
    ("dbrx", {"n_heads": 32}, "'n_heads' is 32"),
    ("dbrx", {"attn_config": {"kv_n_heads": 3}}, "over 3 key/value heads"),
    ("dbrx", {"attn_config": {"clip_qkv": 0}}, "'attn_config.clip_qkv' is 0"),
    ("dbrx", {"attn_config": []}, "'attn_config' must be an object"),
    ("dbrx", {"ffn_config": {"ffn_act_fn": {"name": "silu", "alpha": 2}}}, "'ffn_config.ffn_act_fn.alpha'"),
    ("dbrx", {"ffn_config": {"moe_top_k": 9, "moe_num_experts": 8}}, "more than the 8 experts"),
    ("dbrx", {"ffn_config": {"uniform_expert_assignment": True}}, "uniform_expert_assignment"),
    ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": -1.0}}, "moe_normalize_expert_weights"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "'topk_method' is \"noaux_tc\""),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "'scoring_func' is \"sigmoid\""),
    ("deepseek_v2", {"n_group": 3}, "'n_group' is 3"),
    ("deepseek_v2", {"topk_group": 5}, "keeping 5"),
    ("deepseek_v2", {"topk_group": 1}, "the groups kept hold fewer than 3 experts"),
    ("deepseek_v2", {"qk_rope_head_dim": 5}, "needs an even number"),
    ("deepseek_v2", {"rope_interleave": False}, "'rope_interleave' is false"),
    ("deepseek_v2", {"mlp_bias": True}, "'mlp_bias' is true"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "'scoring_func' is \"softmax\""),
    ("deepseek_v3", {"first_k_dense_replace": -1}, "'first_k_dense_replace' is -1"),
    ("olmoe", {"clip_qkv": 0}, "'clip_qkv' is 0"),
    ("qwen2_moe", {"mlp_only_layers": [3]}, "layer indices below 3"),
    ("qwen2_moe", {"mlp_only_layers": [True]}, "layer indices"),
    ("qwen2_moe", {"mlp_only_layers": "0"}, "layer indices"),
    ("qwen2_moe", {"decoder_sparse_step": 0}, "'decoder_sparse_step' is 0"),
    ("qwen2_moe", {"layer_types": ["full_attention"]}, "must name 3 layers"),
    ("qwen2_moe", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "must name 3 layers"),
    ("qwen2_moe", {"layer_types": 3}, "must name 3 layers"),
    ("qwen3_moe", {"use_qk_norm": False}, "'use_qk_norm' is false"),
    ("qwen3_moe", {"shared_expert_intermediate_size": 64}, "'shared_expert_intermediate_size' is 64"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "said"), REFUSED, ids=[f"{n}-{next(iter(c))}-{i}" for i, (n, c, _) in enumerate(REFUSED)]
)
def test_what_cannot_be_run_is_refused_by_its_key(name: str, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(config(name, **changes))


ALLOWED_NULLS = [
    ("mixtral", "sliding_window"), ("mixtral", "head_dim"), ("mixtral", "rope_scaling"), ("mixtral", "rope_theta"),
    ("mixtral", "num_key_value_heads"), ("mixtral", "torch_dtype"), ("mixtral", "quantization_config"),
    ("deepseek_v2", "q_lora_rank"), ("deepseek_v2", "norm_topk_prob"), ("deepseek_v3", "q_lora_rank"),
    ("deepseek_v3", "first_k_dense_replace"), ("olmoe", "clip_qkv"), ("qwen2_moe", "sliding_window"),
    ("qwen2_moe", "mlp_only_layers"), ("qwen2_moe", "layer_types"), ("qwen3_moe", "sliding_window"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key"), ALLOWED_NULLS)
def test_null_where_files_have_it(name: str, key: str) -> None:
    assert isinstance(read_spec(config(name, **{key: None})), ModelSpec)


def test_null_means_none_and_not_zero() -> None:
    attention = read_spec(config("olmoe", clip_qkv=None)).layers[0].attention
    assert isinstance(attention, GroupedQuery) and attention.clip is None
    latent = read_spec(config("deepseek_v2", q_lora_rank=None)).layers[0].attention
    assert isinstance(latent, MLA) and latent.query_rank is None
    changed = config("dbrx")
    changed["attn_config"]["clip_qkv"] = changed["ffn_config"]["moe_normalize_expert_weights"] = None
    layer = read_spec(changed).layers[0]
    assert isinstance(layer.attention, GroupedQuery) and isinstance(layer.ffn, Mixture)
    assert layer.attention.clip is None and layer.ffn.router.norm_power is None


def test_activations_under_their_other_names() -> None:
    for name, meant in {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "relu": "relu"}.items():
        layer = read_spec(config("mixtral", hidden_act=name)).layers[0].ffn
        assert isinstance(layer, Mixture) and layer.expert.activation is Activation(meant)


def test_a_window_that_is_switched_off_may_be_zero() -> None:
    """transformers 5 writes Qwen2's unused window so."""
    spec = read_spec(config("qwen2_moe", sliding_window=0, use_sliding_window=False))
    assert all(layer.attention.window is None for layer in spec.layers)


# Rope in both dialects

YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", **YARN},
    {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 0.8, "truncate": False},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 4.0,
     "original_max_position_embeddings": 64},
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=[s["rope_type"] for s in SCALINGS])
def test_both_dialects_say_the_same(scaling: dict[str, Any]) -> None:
    base = config("mixtral")
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        base.pop(key, None)
    new = read_spec(base | {"rope_parameters": scaling | {"rope_theta": 5e5}})
    old = read_spec(base | {"rope_theta": 5e5, "rope_scaling": scaling})
    older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    assert new == old == read_spec(base | {"rope_theta": 5e5, "rope_scaling": older})
    assert new.layers[0].attention.rope.theta == 5e5
    assert new.layers[0].attention.rope.kind is RopeKind(scaling["rope_type"])


def test_dtype_is_written_two_ways() -> None:
    base = {key: value for key, value in CONFIGS["mixtral"].items() if key not in ("dtype", "torch_dtype")}
    assert read_spec(base | {"dtype": "bfloat16"}) == read_spec(base | {"torch_dtype": "bfloat16"})
    assert read_spec(base | {"dtype": "bfloat16"}).stored_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "alibi"}, "unknown kind, 'alibi'"), ({"type": 3}, "must be text"), ("yarn", "must be an object"),
        ({"rope_type": "linear"}, "'rope_scaling.factor' is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor"), ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}, "original_max"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": "x"}, "mscale"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "must hold 4 numbers"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, None, 3.0]}, "long_factor[2]"),
        ({"rope_type": "longrope", "short_factor": [0.0] * 4, "long_factor": [1.0] * 4}, "short_factor[0]"),
        ({"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1.0] * 4}, "must be a list"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"full_attention": {"rope_type": "default"}}, "'rope_scaling.full_attention' holds settings of its own"),
    ],
)  # fmt: skip
def test_a_rope_that_is_not_understood_is_refused(scaling: Any, said: str) -> None:
    assert said in refusal(config("mixtral", rope_scaling=scaling))


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2"])
@pytest.mark.parametrize("parameters", [{}, {"rope_type": "default", "rope_theta": 1e4}])
def test_two_ropes_that_disagree_are_refused(name: str, parameters: dict[str, Any]) -> None:
    scaling = {"rope_type": "yarn", **YARN, "mscale_all_dim": "x"}
    assert "rope_" in refusal(config(name, rope_parameters=parameters, rope_scaling=scaling))


@pytest.mark.parametrize("theta", [1, 0.5, 1e-300])
def test_a_rope_base_that_does_not_slow_down_is_refused(theta: float) -> None:
    assert "rope_theta" in refusal(config("mixtral", rope_theta=theta))
    assert "rope_theta" in refusal(config("mixtral", rope_scaling={"rope_type": "yarn", **YARN, "rope_theta": theta}))


# Defaults and counts


# What transformers itself cannot do without.
WITHOUT_DEFAULT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4": {
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "glm4_moe": {"head_dim": 128},
    "step3p7": {"vision_config": {}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_key_means_what_it_means_to_transformers(family: str) -> None:
    needed = {"architectures": [class_name(family)]} | WITHOUT_DEFAULT.get(family, {})
    full = configuration_class(family)(**{k: v for k, v in needed.items() if k != "architectures"}).to_dict()
    spelled = read_spec(json.loads(json.dumps(full)) | needed)
    assert read_spec(needed) == spelled


SPECIAL: dict[str, list[dict[str, Any]]] = {
    "mixtral": [{}, {"head_dim": 12, "tie_word_embeddings": True}],
    "dbrx": [{}],
    "deepseek_v2": [{}, {"q_lora_rank": None}, {"attention_bias": True, "tie_word_embeddings": True}],
    "deepseek_v3": [{}, {"attention_bias": True, "n_shared_experts": 2, "first_k_dense_replace": 0}],
    "dots1": [{}, {"attention_bias": True}],
    "ernie4_5_moe": [{}, {"tie_word_embeddings": False, "moe_num_shared_experts": 0}],
    "afmoe": [{}, {"attention_bias": True}],
    "cohere2_moe": [{}, {"num_shared_experts": 1, "attention_bias": True, "tie_word_embeddings": False}],
    "exaone_moe": [{}],
    "laguna": [{}, {"gating": "per-element", "attention_bias": True}],
    "llama4": [{}, {"attention_bias": True, "use_qk_norm": False}],
    "mimo_v2_flash": [{}, {"attention_bias": True}],
    "mistral4": [{}, {"q_lora_rank": None, "attention_bias": True}],
    "phimoe": [{}, {"attention_bias": False, "lm_head_bias": False}],
    "gemma4": [{}, {"attention_k_eq_v": False, "tie_word_embeddings": False}],
    "glm4_moe": [{}, {"use_qk_norm": True, "n_shared_experts": 2}],
    "glm4_moe_lite": [{}],
    "hunyuan_v1_moe": [{}, {"attention_bias": True}],
    "granitemoehybrid": [{}, {"mamba_proj_bias": True, "num_local_experts": 0}],
    "jamba": [{}, {"mamba_proj_bias": True, "mamba_conv_bias": False}],
    "bailing_hybrid": [{}, {"attention_bias": True, "short_conv_kernel_size": 2}],
    "kimi_linear": [{}, {"q_lora_rank": 12, "attention_bias": True, "linear_conv_kernel_dim": 2}],
    "lfm2_moe": [{}, {"conv_bias": True}],
    "minimax": [{}, {"layer_types": None, "head_dim": None, "tie_word_embeddings": True}],
    "minimax_m2": [{}],
    "nemotron_h": [{}, {"use_conv_bias": False}],
    "olmoe": [{}, {"attention_bias": True}],
    "qwen2_moe": [{}, {"qkv_bias": False}, {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]}],
    "qwen3_moe": [{}, {"attention_bias": True, "tie_word_embeddings": True}],
    "qwen3_next": [{}],
    "qwen3_5_moe": [{}, {"tie_word_embeddings": True}],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "number"), [(f, n) for f, cases in SPECIAL.items() for n in range(len(cases))])
def test_a_spec_implies_exactly_the_numbers_that_are_stored(
    family: str, number: int, layout: str, tmp_path: Path
) -> None:
    model = make(family, **SPECIAL[family][number])
    weights = open_model(write(model, tmp_path, layout)).weights
    spec = weights.spec
    dense = sum(tensor.count for tensor in dense_tensors(spec))
    experts = sum(
        mixture.router.experts * math.prod(shape)
        for _, mixture in spec.mixtures
        for shape in expert_shapes(spec.hidden_size, mixture.expert).values()
    )
    names = re.compile(r"correction_bias|expert_bias|scalar")
    buffers = sum(value.numel() for name, value in model.named_buffers() if names.search(name))
    assert dense + experts == sum(value.numel() for value in model.parameters()) + buffers
    decays = re.compile(r"self_attn\.(slope_rate|\w+_decay)")  # MiniMax's, which follow from the layer's number
    stored = {name: each for name, each in weights.checkpoint.tensors.items() if not decays.search(name)}
    assert dense + experts == sum(math.prod(each.shape) for each in stored.values())
    norms = sum(tensor.count for tensor in dense_tensors(spec) if tensor.part is Part.NORMS)
    assert norms == sum(
        v.numel()
        for n, v in model.named_parameters()
        if "norm" in n
        and v.dim() == 1
        and ("bias" not in n or spec.norm_bias)
        and not re.search(r"(linear_attn|mamba|mixer)\.\w*norm|self_attn\.(o_)?norm", n)
    )


# Anything at all

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from([2**31, 2**63, 1e300, 1e-300, "silu", "yarn", "linear", "longrope", "dynamic", "llama3", [], {}]),
    st.lists(st.integers(-1, 3), max_size=4), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
ROPE_KEYS = (
    "rope_type type factor rope_theta mscale mscale_all_dim attention_factor beta_fast beta_slow truncate "
    "original_max_position_embeddings low_freq_factor high_freq_factor short_factor long_factor"
).split()


@pytest.mark.slow
@settings(max_examples=400)
@given(st.data())
def test_any_config_is_read_or_refused(data: st.DataObject) -> None:
    values = config(data.draw(st.sampled_from(sorted(CONFIGS))))
    for _ in range(data.draw(st.integers(1, 4))):
        action = data.draw(st.sampled_from(["replace", "drop", "rope", "nested", "add"]))
        key = data.draw(st.sampled_from(sorted(values)))
        if action == "replace":
            values[key] = data.draw(VALUES)
        elif action == "drop" and len(values) > 1:
            del values[key]
        elif action == "add":
            values[data.draw(st.sampled_from(["head_dim", "sliding_window", "rope_parameters", "layer_types"]))] = (
                data.draw(VALUES)
            )
        else:
            place = data.draw(
                st.sampled_from(
                    ["rope_scaling", "rope_parameters"] if action == "rope" else ["attn_config", "ffn_config"]
                )
            )
            inner = values[place] if isinstance(values.get(place), dict) else {}
            keys = ROPE_KEYS if action == "rope" else sorted(inner) or ["clip_qkv"]
            values[place] = inner | {data.draw(st.sampled_from(keys)): data.draw(VALUES)}
    try:
        spec = read_spec(values)
    except ConfigError as error:
        assert error.message and len(error.message) < 400
        return
    assert isinstance(spec, ModelSpec)
    rope = spec.layers[0].attention.rope
    if rope.dims < 10_000:
        for length in (1, 5000):
            assert torch.isfinite(frequencies(rope, length)).all()
