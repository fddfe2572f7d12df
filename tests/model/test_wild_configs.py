"""Configurations as they are in the wild: read to the right counts or refused with a reason, whatever lies in them."""

from __future__ import annotations

import ast
import copy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.errors import ConfigError
from moecli.model import params
from moecli.model.families import find, read_spec, runnable
from moecli.model.spec import ModelSpec
from tests.support.checkpoints import FAMILIES, TEXT_CONFIGS, WRAPPED, configuration, configuration_class
from tests.support.oracle import transformers
from tests.support.wild_configs import WILD

READ = {name: wild for name, wild in WILD.items() if not wild.refusal}


@pytest.mark.parametrize("name", WILD)
def test_a_file_as_people_publish_it(name: str) -> None:
    wild = WILD[name]
    if wild.refusal:
        with pytest.raises(ConfigError) as caught:
            read_spec(wild.config)
        assert wild.refusal in caught.value.message
        return
    spec = read_spec(wild.config)
    assert (params.count(spec).total, spec.quantization) == (wild.total, wild.quantization)


def test_every_family_that_runs_is_among_them() -> None:
    families = {id(family): name for name, family in runnable().items()}
    found = {read_spec(wild.config).family for wild in READ.values()}
    assert {name.replace("grok_1", "grok-1") for name in families.values()} <= found


def test_a_wrapper_says_that_its_towers_are_left_out() -> None:
    for name in ("qwen3-vl", "kimi-k2.5", "internvl around qwen3-moe", "llava around mistral"):
        assert any("text model alone" in note for note in read_spec(WILD[name].config).notes), name
        assert find(WILD[name].config).layouts


def test_the_outer_level_says_whether_the_tables_are_tied() -> None:
    """The inner level often has but its class's default."""
    wrapped = copy.deepcopy(WILD["qwen3-vl"].config)
    wrapped["text_config"]["tie_word_embeddings"] = True
    assert not read_spec(wrapped).tied_embeddings
    assert read_spec(wrapped | {"tie_word_embeddings": True}).tied_embeddings


# A key that nothing reads

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.text(min_size=1, max_size=12).map(lambda text: f"zz_{text}") | st.sampled_from(
    ["unsloth_version", "_attn_implementation", "model_max_length", "keys_to_ignore_at_inference", "use_mrope",
     "rope_ratio", "kv_channels_", "max_sequence_length", "router_z_loss_coef", "neftune_noise_alpha"]
)  # fmt: skip


@settings(max_examples=100)
@given(st.sampled_from(sorted(READ)), st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=5), st.data())
def test_keys_that_nothing_reads_change_nothing(name: str, extra: dict[str, Any], data: st.DataObject) -> None:
    config = copy.deepcopy(READ[name].config)
    plain = read_spec(config)
    places = [config, *(value for value in config.values() if isinstance(value, dict) and "hidden_size" in value)]
    place = data.draw(st.sampled_from(places))
    place.update({key: value for key, value in extra.items() if key not in place})
    assert read_spec(config) == plain


# The tables of the families, held against transformers

# What its code reads, and what changes no text: training, outputs beside the logits, how something is computed.
WITHOUT_EFFECT = set(
    """
    _attn_implementation attention_dropout attn_pdrop emb_pdrop resid_pdrop initializer_range output_router_logits
    router_aux_loss_coef router_jitter_noise router_z_loss_coef moe_jitter_eps moe_loss_weight pad_token_id
    add_router_probs dropout_rate initializer_factor input_jitter_noise rescale_prenorm_residual _is_quantized
    chunk_size mamba_chunk_size use_mamba_kernels use_mambapy use_associative_scan num_logits_to_keep
    get_text_config
    """.split()
)


def _reads(family: str) -> set[str]:
    """The attributes of a configuration that transformers' modeling file of this family asks for.

    A property of the class that computes it from others is none: no file can set it.
    """
    path = Path(transformers().__file__).parent / "models" / family / f"modeling_{family}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    if family in TEXT_CONFIGS:  # beside other towers
        tree = ast.Module([each for each in classes if re.search("Text|CausalLM", each.name)], [])
    if family in WRAPPED:
        others = re.compile(r"Vision|Conditional|[a-z\d]Model(Output\w*)?$")
        tree = ast.Module([each for each in classes if not others.search(each.name)], [])
    owner = configuration_class(family)
    return {key for key in _attributes(tree) if not isinstance(getattr(owner, key, None), property)}


def _attributes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_config(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            owner, name, *_ = node.args
            if _is_config(owner) and isinstance(name, ast.Constant):
                yield str(name.value)


def _is_config(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.endswith("config")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_reads_is_used_or_refused(family: str) -> None:
    """A key that its code reads may not pass as one without effect, whatever its value."""
    full = configuration(family).to_dict()
    full = full["text_config"] if family in WRAPPED else full
    nested = [value for value in full.values() if isinstance(value, dict)]
    for key in _reads(family) - WITHOUT_EFFECT:
        if any(key in part for part in nested) and key not in full:
            continue  # read inside its object
        try:
            spec = read_spec(full | {key: "never such a value"})
        except ConfigError as error:
            assert key in error.message
            continue
        assert key not in spec.unread_keys, f"{family} does not know '{key}', which transformers reads"
        assert key in _DERIVED.get(family, ()), f"{family} takes '{key}' for what it is not"


# Set by the configuration class itself, whatever a file says; start values of training, where no step is that small.
_DERIVED = {
    "nemotron_h": ("time_step_min", "time_step_max", "time_step_floor"),
    "deepseek_v2": ("head_dim", "num_key_value_heads"),
    "deepseek_v3": ("head_dim", "num_key_value_heads"),
    "kimi_linear": ("num_key_value_heads",),
    "bailing_hybrid": ("head_dim", "num_key_value_heads"),
    "deepseek_v32": ("head_dim", "num_key_value_heads"),
    "glm_moe_dsa": ("head_dim", "num_key_value_heads"),
    "mistral4": ("head_dim", "num_key_value_heads"),
    "gemma4": ("vocab_size_per_layer_input",),  # read where layers have inputs of their own
    "switch_transformers": ("is_decoder",),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_of_a_key_are_known(family: str) -> None:
    """The attribute maps of the configuration classes, in both directions."""
    config = configuration(family)
    full = config.to_dict()
    for other, key in type(config).attribute_map.items():
        known = key if key in full else other
        if known not in full:
            continue
        spelled = {name: value for name, value in full.items() if name not in (key, other)}
        assert read_spec(spelled | {other: full[known]}) == read_spec(full) == read_spec(spelled | {key: full[known]})
        with pytest.raises(ConfigError, match="contradicts"):
            others = full[known][:-1] if isinstance(full[known], list) else full[known] + 1
            read_spec(spelled | {key: full[known], other: others})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fields_of_a_configuration_class_are_all_known(family: str) -> None:
    """What transformers itself writes is never a surprise: used, neutral or known to have no effect."""
    assert read_spec(configuration(family).to_dict()).unread_keys == ()


# Sizes that no model has


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9}, {"num_local_experts": 10**6}, {"vocab_size": 10**18}, {"hidden_size": 10**30},
        {"num_hidden_layers": 1000, "num_local_experts": 100_000}, {"intermediate_size": 2**31 - 1},
        {"num_attention_heads": 2**30, "hidden_size": 2**31 - 2, "num_key_value_heads": 1},
        {"max_position_embeddings": 2**31 - 1}, {"layer_types": ["full_attention"] * 10**6},
        {"num_experts_per_tok": 10**5, "num_local_experts": 10**5, "num_hidden_layers": 1000},
    ],
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_absurd_sizes_are_refused_or_counted_at_once(changes: dict[str, Any]) -> None:
    config = WILD["mixtral, merged from four"].config | changes
    begun = time.process_time()
    try:
        spec = read_spec(config)
        assert isinstance(spec, ModelSpec) and params.count(spec).total > 0
    except ConfigError as error:
        assert len(error.message) < 300
    assert time.process_time() - begun < 1
