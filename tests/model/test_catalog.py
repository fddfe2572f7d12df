"""The catalog: every name leads to its model, every bundled file is whole, typos get good suggestions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from moecli.model import catalog

PACKAGE = Path(catalog.__file__).parent
ALIASES = [entry.alias for entry in catalog.known()]

# Other names people and papers use for a model, and the alias they must lead to.
NAMES = {
    "mixtral-8x7b": "mixtral",
    "mixtral-8x7b-instruct": "mixtral",
    "Mixtral-8x7B-Instruct-v0.1": "mixtral",
    "Mixtral-8x7B-v0.1": "mixtral-base",
    "mixtral:8x22b": "mixtral-8x22b",
    "mixtral-8x22b-instruct": "mixtral-8x22b",
    "mixtral-8x22b-instruct-v0.1": "mixtral-8x22b",
    "mixtral-8x22b-v0.1": "mixtral-8x22b-base",
    "DBRX": "dbrx",
    "dbrx-instruct": "dbrx",
    "Grok 1": "grok-1",
    "DeepSeek-V2": "deepseek-v2",
    "deepseek_v2_lite": "deepseek-v2-lite",
    "deepseek-v2-chat": "deepseek-v2",
    "deepseek-v3": "deepseek-v3",
    "deepseek-r1": "deepseek-r1",
    "deepseek-v3.2": "deepseek-v3.2",
    "deepseek-v4-flash": "deepseek-v4-flash",
    "DeepSeek-MoE-16B": "deepseek-moe-16b",
    "kimi-k2": "kimi-k2",
    "Kimi-Linear-48B-A3B-Instruct": "kimi-linear-48b-a3b",
    "Qwen1.5-MoE-A2.7B": "qwen1.5-moe-a2.7b",
    "Qwen2-57B-A14B": "qwen2-57b-a14b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b",
    "qwen3-coder-480b": "qwen3-coder-480b",
    "qwen3-coder-480b-a35b": "qwen3-coder-480b",
    "qwen3-next-80b-a3b": "qwen3-next-80b-a3b",
    "qwen3.5-35b-a3b": "qwen3.5-35b-a3b",
    "OLMoE-1B-7B": "olmoe",
    "olmoe-1b-7b-instruct": "olmoe",
    "OLMoE-1B-7B-0924": "olmoe-base",
    "gpt-oss": "gpt-oss-20b",
    "gpt-oss-120b": "gpt-oss-120b",
    "phi-3.5-moe": "phi-3.5-moe",
    "llama-4-scout": "llama-4-scout",
    "llama4:scout": "llama-4-scout",
    "llama-4-maverick": "llama-4-maverick",
    "glm-4.5-air": "glm-4.5-air",
    "glm-4.7-flash": "glm-4.7-flash",
    "glm-5": "glm-5",
    "granite-3.1-1b-a400m": "granite-3.1-1b-a400m",
    "granite-3.1-3b-a800m": "granite-3.1-3b-a800m",
    "switch-base-8": "switch-base-8",
    "switch-c": "switch-c-2048",
    "glam-64b-64e": "glam-64b-64e",
    "arctic": "arctic",
    "snowflake-arctic-instruct": "arctic",
    "minimax-m1-80k": "minimax-m1",
    "minimax-m2": "minimax-m2",
    "ernie-4.5-21b-a3b": "ernie-4.5-21b-a3b",
    "hunyuan-a13b": "hunyuan-a13b",
    "jamba-v0.1": "jamba",
    "jetmoe-8b": "jetmoe-8b",
    "ling-mini-2.0": "ling-mini-2.0",
    "nemotron-3-nano-30b-a3b": "nemotron-3-nano-30b-a3b",
    "gemma-4-26b-a4b": "gemma-4-26b-a4b",
    "mimo-v2-flash": "mimo-v2-flash",
    "llama-2-70b": "llama-2-70b",
}


def entry(name: str) -> catalog.Entry:
    found = catalog.find(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize(("name", "alias"), NAMES.items())
def test_a_name_leads_to_its_model(name: str, alias: str) -> None:
    assert entry(name).alias == alias


def test_no_name_belongs_to_two_models() -> None:
    names = [n for e in catalog.known() for n in (e.alias, *e.names, *([e.repo.lower()] if e.repo else []))]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert catalog.BUILT_IN not in names
    assert all(catalog.find(name) is not None for name in names)


def test_an_alias_can_be_typed_and_stored_as_a_folder_name() -> None:
    assert [alias for alias in ALIASES if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", alias)] == []


def test_a_hub_id_finds_its_entry_in_any_case() -> None:
    assert entry("mistralai/mixtral-8x7b-instruct-V0.1").repo == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert entry("allenai/OLMoE-1B-7B-0924").alias == "olmoe-base"
    assert catalog.find("somebody/Mixtral-8x7B-Instruct-v0.1") is None


@pytest.mark.parametrize("name", ["", " ", "qwen3", "mixtrl", "org/name", "../configs/dbrx", "x" * 100_000])
def test_other_names_find_nothing(name: str) -> None:
    assert catalog.find(name) is None


def test_a_bare_name_answers_questions_and_base_continues_text() -> None:
    for name in (
        "mixtral",
        "mixtral-8x22b",
        "dbrx",
        "deepseek-v2",
        "deepseek-v2-lite",
        "olmoe",
        "qwen2-57b-a14b",
    ):
        repo, base = entry(name).repo or "", entry(f"{name}-base").repo or ""
        assert repo.endswith(("-Chat", "-Instruct", "-instruct", "-Instruct-v0.1")), name
        assert not re.search("chat|instruct", base, re.IGNORECASE), name


@pytest.mark.parametrize("alias", ALIASES)
def test_the_bundled_config_is_that_of_a_model(alias: str) -> None:
    config = entry(alias).config()
    text = config.get("text_config", config)
    assert isinstance(text, dict)
    layers = {"num_hidden_layers", "n_layers", "num_layers", "n_layer"}
    assert layers & text.keys(), "no key says how many layers there are"
    if entry(alias).kind == "moe":
        assert any("expert" in key or "moe" in key for key in [*text, *text.get("ffn_config", {})])


def test_every_bundled_file_is_used_and_has_one_owner() -> None:
    bundled = {path.name for path in (PACKAGE / "configs").iterdir()}
    assert bundled == {e.config_file for e in catalog.known()}
    for file in bundled:
        users = [e for e in catalog.known() if e.config_file == file]
        assert len([e for e in users if e.config_status != "sibling"]) == 1, file


def test_two_releases_differ_where_their_files_differ() -> None:
    assert entry("mixtral-8x22b").config()["vocab_size"] == 32768
    assert entry("mixtral-8x22b-base").config()["vocab_size"] == 32000
    assert entry("qwen1.5-moe-a2.7b").config()["eos_token_id"] == 151645
    assert entry("qwen1.5-moe-a2.7b-base").config()["eos_token_id"] == 151643
    assert entry("grok-1").config()["num_experts"] == 8


def test_a_caller_cannot_change_the_bundled_config() -> None:
    entry("dbrx").config()["n_layers"] = 1
    assert entry("dbrx").config()["n_layers"] == 40


def test_the_dense_reference_has_the_published_size() -> None:
    c = entry("llama-2-70b").config()
    width, ffn, layers, vocabulary = (
        int(str(c[key])) for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    kv_width = width // int(str(c["num_attention_heads"])) * int(str(c["num_key_value_heads"]))
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * ffn + 2 * width
    assert layers * layer + 2 * vocabulary * width + width == 68_976_648_192
    assert entry("llama-2-70b").kind == "dense-reference"


def test_published_figures_are_quoted_one_by_one() -> None:
    figure = re.compile(r"[0-9]+(\.[0-9]+)?[TBM]?")
    for e in catalog.known():
        if e.published:
            assert figure.fullmatch(e.published.total), e.alias
            assert e.published.active is None or figure.fullmatch(e.published.active), e.alias
            assert e.published.source and e.published.status in {"seen", "partly seen", "recalled"}
    mixtral = entry("mixtral").published
    assert mixtral and (mixtral.total, mixtral.active) == ("46.7B", "12.9B")
    grok = entry("grok-1").published
    assert grok and grok.active == "86B" and grok.note


def test_a_revision_is_a_commit_or_unknown() -> None:
    for e in catalog.known():
        assert e.revision is None or re.fullmatch("[0-9a-f]{40}", e.revision), e.alias
        assert e.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", e.repo), e.alias
    assert entry("glam").repo is None and entry("glam").kind == "paper"


def test_a_provenance_is_a_sentence_about_public_sources() -> None:
    for e in catalog.known():
        assert e.provenance.endswith("."), e.alias
        assert not re.search(r"(^|\s)/\w|https?:|[0-9]{9}", e.provenance), "no path, address or private number"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("mixtrl", ["mixtral", "mixtral-8x22b"]),
        ("mistral", ["mistral-small-4", "mixtral"]),
        ("deepseekv2", ["deepseek-v2"]),
        ("deepseek-v2-light", ["deepseek-v2-lite"]),
        ("qwen3", ["qwen3-30b-a3b", "qwen3-235b-a22b"]),
        ("grok1x", ["grok-1"]),
        ("gptoss", ["gpt-oss-20b", "gpt-oss-120b"]),
        ("dbxr", ["dbrx"]),
        ("dbrx-bas", ["dbrx-base", "dbrx"]),
        ("snowflake", ["arctic"]),
        ("tinny", ["tiny"]),
    ],
)
def test_a_typo_finds_the_nearest_aliases(typed: str, expected: list[str]) -> None:
    assert catalog.find(typed) is None
    assert catalog.nearest(typed)[: len(expected)] == expected


@pytest.mark.parametrize("typed", ["", "x", "xyzzy", "claude", "starcoder", "-/-", "\0\0\0", "m" * 100_000])
def test_nonsense_finds_no_suggestion(typed: str) -> None:
    assert catalog.nearest(typed) == []


def test_suggestions_stop_at_the_limit_and_can_be_typed_back() -> None:
    assert len(catalog.nearest("deepseek")) == 3
    assert len(catalog.nearest("deepseek", limit=5)) == 5
    assert all(catalog.find(alias) for alias in catalog.nearest("deepseek", limit=50))


def run(code: str, path: Path) -> str:
    """What a fresh interpreter prints that finds moecli at `path`, a folder or a zip."""
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_catalog_works_from_inside_a_zip(tmp_path: Path) -> None:
    copy = tmp_path / "unpacked" / "moecli"
    shutil.copytree(PACKAGE, copy / "model" / "catalog")
    for package in (PACKAGE.parent, PACKAGE.parents[1]):
        shutil.copy(package / "__init__.py", copy / package.relative_to(PACKAGE.parents[1]))
    archive = shutil.make_archive(str(tmp_path / "wheel"), "zip", copy.parent)
    code = "from moecli.model import catalog as c; print(c.__file__, c.find('dbrx').config()['n_layers'])"
    file, layers = run(code, Path(archive)).split()
    assert file.startswith(archive) and layers == "40"


def test_looking_up_a_name_loads_nothing_heavy() -> None:
    code = (
        "import sys; from moecli.library.resolve import resolve; from moecli.model import catalog\n"
        "catalog.nearest('mixtrl'); resolve('mixtral')\n"
        "heavy = {'torch', 'numpy', 'rich', 'typer', 'huggingface_hub', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code, PACKAGE.parents[2]) == "[]"
