"""Parameter counts of every model in the catalog: exact integers, from its bundled config.json alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moecli.errors import ConfigError
from moecli.model import catalog, families
from moecli.model.params import Counts, count, explain_published, kv_numbers, kv_numbers_per_token
from moecli.model.spec import Part
from tests.support.specs import spec_of

EXPECTED = json.loads(Path(__file__).parents[1].joinpath("data", "params.json").read_text(encoding="utf-8"))["models"]


def counts(alias: str) -> Counts:
    return count(spec_of(alias))


@pytest.mark.parametrize("alias", EXPECTED)
def test_counts_equal_the_reference(alias: str) -> None:
    expected, found = EXPECTED[alias], counts(alias)
    assert found.total == expected["total"]
    assert found.active == expected["active"]
    assert found.tied == expected.get("tied", False)
    assert (found.experts, found.active_experts) == (expected["experts"], expected["top_k"])
    if "breakdown" in expected:
        assert {part.value: number for part, number in found.parts.items()} == expected["breakdown"]
        assert found.active_without_input_embedding == expected["active_without_input_embedding"]
        assert found.active_without_embeddings == expected["active_without_embeddings"]
    if "expert_parameters" in expected:
        assert found.expert_parameters == expected["expert_parameters"]


@pytest.mark.parametrize("alias", [alias for alias, model in EXPECTED.items() if "kv_bytes_per_token" in model])
def test_cache_numbers_equal_the_reference(alias: str) -> None:
    assert 2 * kv_numbers_per_token(spec_of(alias)) == EXPECTED[alias]["kv_bytes_per_token"]


@pytest.mark.parametrize("entry", catalog.known(), ids=lambda entry: entry.alias)
def test_every_model_of_the_catalog_is_read(entry: catalog.Entry) -> None:
    spec = families.read_spec(entry.config())
    found = count(spec)
    assert 0 < found.active_without_embeddings <= found.active <= found.total
    assert found.expert_parameters > 0


@pytest.mark.parametrize("entry", catalog.known(), ids=lambda entry: entry.alias)
def test_a_key_that_nothing_reads_changes_no_count(entry: catalog.Entry) -> None:
    plain = families.read_spec(entry.config())
    for level in ("", "text_config"):
        config = entry.config()
        target = config.get(level) if level else config
        if isinstance(target, dict):
            target["experts_dance"] = 2
            assert families.read_spec(config) == plain


@pytest.mark.parametrize(
    ("alias", "key", "value"),
    [
        ("hunyuan-a13b", "use_cla", True),
        ("hunyuan-a13b", "moe_topk", [8] * 31 + [4]),
        ("arctic", "moe_layer_frequency", 2),
        ("minimax-m1", "attn_type_list", [0] * 79),
        ("minimax-m2", "shared_intermediate_size", 512),
        ("nemotron-3-nano-30b-a3b", "hybrid_override_pattern", "MEX" + "M" * 49),
        ("nemotron-3-nano-30b-a3b", "num_hidden_layers", 51),
        ("mimo-v2-flash", "moe_layer_freq", [2] * 48),
        ("deepseek-v4-flash", "num_key_value_heads", 2),
        ("switch-base-8", "num_selected_experts", 2),
        ("ernie-4.5-21b-a3b", "use_bias", True),
        ("glm-4.5-air", "partial_rotary_factor", 0.01),
        ("glm-5", "mlp_layer_types", ["sparse"] * 77),
    ],
)
def test_a_key_that_changes_the_counts_is_read_or_refused(alias: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        spec_of(alias, **{key: value})


def test_a_head_of_its_own_adds_a_table() -> None:
    untied = count(spec_of("grok-1", tie_word_embeddings=False))
    assert untied.total == EXPECTED["grok-1"]["untied_total"]
    assert untied.active - untied.active_without_input_embedding == untied.parts[Part.EMBEDDING]


def test_windows_and_states_are_the_fixed_part_of_the_cache() -> None:
    spec = spec_of("gpt-oss-20b")
    for tokens in (1, 127, 128, 129, 100_000):
        assert 2 * kv_numbers(spec, tokens) == 24576 * tokens + 12 * 2048 * min(tokens, 128)
    linear = spec_of("minimax-m1")
    assert kv_numbers(linear, 7) == 7 * kv_numbers_per_token(linear) + 70 * 64 * 128 * 128


def test_shared_latents_and_indexers_are_in_the_cache() -> None:
    assert kv_numbers_per_token(spec_of("deepseek-v3.2")) == 61 * (512 + 64 + 128)
    assert kv_numbers_per_token(spec_of("deepseek-v4-flash")) == 21 * (512 + 128) // 4 + 20 * 512 // 128
    assert kv_numbers_per_token(spec_of("mimo-v2-flash")) == 9 * 4 * (192 + 128)


def test_windows_with_other_heads_are_counted() -> None:
    setting = {"attention_type": "sliding_attention", "num_attention_heads": 96, "num_attention_groups": 8}
    wider = count(spec_of("step-3.7-flash", attention_other_setting={**setting, "head_dim": 128})).total
    assert wider - EXPECTED["step-3.7-flash"]["total"] == 33 * 32 * 4096 * (2 * 128 + 1)


@pytest.mark.parametrize(
    ("alias", "total", "active", "ways"),
    [
        ("mixtral", "46.7B", "12.9B", ("everything",)),
        ("dbrx", "132B", "36 B", ("everything", "without the input embedding")),
        ("gpt-oss-20b", "20.91B", "3.61B", ("without the input embedding",)),
        ("deepseek-v2-lite", "15.7B", "2.4B", ("without the input embedding",)),
        ("minimax-m1", "456B", "45.9B", ("without the embedding tables",)),
        ("granite-3.1-3b-a800m", "3.3B", "800M", ("without the embedding tables",)),
        ("switch-base-8", "619,339,008", None, ()),
    ],
)
def test_published_figures_are_explained(alias: str, total: str, active: str | None, ways: tuple[str, ...]) -> None:
    explanation = explain_published(counts(alias), total, active)
    assert explanation is not None
    assert explanation.complete
    assert "everything" in explanation.total
    assert explanation.active == ways


@pytest.mark.parametrize(
    ("alias", "total", "active"), [("grok-1", "314B", "86B"), ("kimi-k2", "1.04T", "32.6B"), ("mixtral", "odd", "13")]
)
def test_published_figures_that_nothing_explains(alias: str, total: str, active: str) -> None:
    explanation = explain_published(counts(alias), total, active)
    assert explanation is not None
    assert not explanation.complete
    assert not explanation.active
    assert f"{active} is not reproduced" in explanation.text


def test_a_coarse_figure_is_no_licence() -> None:
    found = counts("llama-2-70b")  # 68.98B
    for figure, explained in (("70B", True), ("71B", False), ("100B", False)):
        explanation = explain_published(found, figure)
        assert explanation is not None
        assert explanation.complete == explained


def test_a_cut_figure_is_said_to_be_cut() -> None:
    explanation = explain_published(counts("qwen3-30b-a3b"), "30.5B", "3.3B")
    assert explanation is not None
    assert "cut off" in explanation.text
    assert explain_published(counts("mixtral"), None) is None


@pytest.mark.parametrize("alias", [alias for alias, model in EXPECTED.items() if "published" in model])
def test_published_totals_of_the_reference_are_explained(alias: str) -> None:
    published = EXPECTED[alias]["published"]
    explanation = explain_published(counts(alias), published["total"], published["active"])
    assert explanation is not None
    assert bool(explanation.total) == (alias != "llama-4-scout"), explanation.text  # its figure includes vision


def test_counting_loads_no_torch() -> None:
    code = "import sys, moecli.model.params, moecli.model.families as f; f.families(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
