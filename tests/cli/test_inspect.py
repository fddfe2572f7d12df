"""`moecli inspect`: cards, comparisons and documents, from the catalog, config files and folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecli.model import catalog
from tests.support import headers

SCREENS = Path(__file__).parent / "screens"
FIVE = ("mixtral", "dbrx", "grok-1", "deepseek-v2", "llama-2-70b")
KEYS = {
    "model", "source", "family", "layers", "moe_layers", "hidden_size", "vocab_size", "context_length", "attention",
    "router", "experts", "parameters", "schema_version",
}  # fmt: skip
PARTS = {
    "total", "active", "active_without_input_embedding", "active_without_embeddings", "embedding", "attention",
    "router", "routed_experts", "shared_experts", "dense_ffn", "norms", "lm_head",
}  # fmt: skip


def golden(name: str, text: str) -> None:
    """The whole screen, as it was when somebody last looked at it."""
    assert text == (SCREENS / f"{name}.txt").read_text(encoding="utf-8")


def test_the_card_of_mixtral(moecli):
    card, here, rest = moecli("inspect", "mixtral").stdout.partition("\nfits here")
    golden("mixtral", f"{card}\n")
    assert here and rest.split()[0] in ("yes,", "no")  # this machine's own


@pytest.mark.parametrize("columns", ["80", "120"])
def test_five_models_side_by_side(moecli, columns):
    text = moecli("inspect", *FIVE, COLUMNS=columns).stdout
    golden("five", text)
    assert max(map(len, text.splitlines())) <= 80


def test_too_many_models_for_the_width_are_shown_in_blocks(moecli):
    text = moecli("inspect", *FIVE, COLUMNS="50").stdout
    golden("five-narrow", text)
    assert text.count("experts (+shared)") > 1


@pytest.mark.slow
@pytest.mark.parametrize("alias", [entry.alias for entry in catalog.known()])
def test_every_card_fits_80_columns(in_process, alias):
    lines = in_process("inspect", alias).splitlines()
    assert max(map(len, lines)) <= 80 and all(line == line.rstrip() for line in lines)


def test_no_colour_no_escape_codes(moecli):
    for more in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        assert "\x1b" not in moecli("inspect", "mixtral", **more).stdout
    assert "\x1b[" in moecli("inspect", "mixtral", NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color").stdout
    coloured = moecli("inspect", "mixtral", "--no-color", NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[34m" not in coloured


def test_bars_of_plain_characters_where_the_stream_has_no_others(moecli):
    text = moecli("inspect", "mixtral", PYTHONIOENCODING="ascii").stdout
    assert "#####." in text and text.isascii()


def test_the_document(moecli):
    document = json.loads(moecli("inspect", "dbrx", "--json").stdout)
    assert document.keys() >= KEYS and document["parameters"].keys() >= PARTS
    assert document["parameters"]["total"] == 131_596_523_520
    assert document["experts"] == {
        "routed": 16, "active": 4, "shared": 0, "intermediate_size": 10752, "parameters_each": 198_180_864,
    }  # fmt: skip
    assert document["attention"].items() >= {"kind": "gqa", "heads": 48, "kv_heads": 8, "head_dim": 128}.items()
    assert document["router"].items() >= {"rule": "softmax", "top_k": 4, "normalised": True}.items()
    assert document["kv_bytes_per_token"] == 163_840
    assert document["published"]["total"] == 132_000_000_000 and document["published"]["active"] == 36_000_000_000


def test_documents_of_several_models_are_an_array(moecli):
    documents = json.loads(moecli("inspect", *FIVE, "--json").stdout)
    experts = [(d["experts"]["routed"], d["experts"]["active"], d["experts"]["shared"]) for d in documents]
    assert experts == [(8, 2, 0), (16, 4, 0), (8, 2, 0), (160, 6, 2), (1, 1, 0)]
    assert all(d["cost"]["reference"] == "llama-2-70b" for d in documents)


def whole(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(whole, value.values()))
    if isinstance(value, list):
        return all(map(whole, value))
    return not isinstance(value, float)


def test_parts_sum_to_the_total_and_numbers_are_whole(in_process):
    aliases = [entry.alias for entry in catalog.known()]
    for document in json.loads(in_process("inspect", *aliases, "--json")):
        parameters = document["parameters"]
        parts = {name: number for name, number in parameters.items() if not name.startswith(("total", "active"))}
        assert sum(parts.values()) == parameters["total"], document["model"]
        del document["attention"]["rope_theta"]  # of a stretched rope, and 2.5 in DeepSeek-V3
        document["router"].pop("scaling", None)
        document.pop("bits_per_weight", None)
        assert whole(document), document["model"]


def test_a_figure_that_no_convention_gives_has_a_note(moecli):
    assert "86" in json.loads(moecli("inspect", "grok-1", "--json").stdout)["note"]
    assert "note" not in json.loads(moecli("inspect", "mixtral", "--json").stdout)


def test_a_bare_config_file(moecli, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(catalog.find("deepseek-v2").config()))
    document = json.loads(moecli("inspect", str(file), "--json").stdout)
    assert document["parameters"]["total"] == 235_741_434_880 and document["kv_bytes_per_token"] == 69_120
    assert document["source"] == "config" and document["stored_bytes"] is None


def test_the_built_in_model_agrees_with_its_files(moecli):
    result = moecli("inspect", "tiny")
    assert result.returncode == 0 and "The files agree with config.json." in result.stdout


def test_a_quantised_folder_shows_true_parameters_and_stored_bytes(moecli, tmp_path):
    folder = headers.write(tmp_path / "oss", catalog.find("gpt-oss-20b").config(), headers.gpt_oss())
    document = json.loads(moecli("inspect", str(folder), "--json").stdout)
    assert document["stored_bytes"] == 13_761_264_768 and document["stored_format"] == "mxfp4"
    assert document["stored_parameters"] == document["parameters"]["total"] == 20_914_757_184
    text = moecli("inspect", str(folder)).stdout
    assert "20,914,757,184 parameters, mostly mxfp4, in 13,761,264,768 bytes" in text


def test_what_is_published_quantised_shows_its_bytes_without_a_network(moecli):
    document = json.loads(moecli("inspect", "gpt-oss-20b", "--json").stdout)
    assert document["stored_bytes"] == 13_761_264_768 and document["stored_format"] == "mxfp4"
    assert "13,761,264,768 bytes (12.8 GiB) as published, mostly mxfp4" in moecli("inspect", "gpt-oss-20b").stdout
    memory = json.loads(moecli("memory", "gpt-oss-20b", "--json").stdout)
    assert memory["stored_bytes"] == 13_761_264_768 and memory["runnable"] and not memory["lacks"]
    assert "published in mxfp4, 13,761,264,768 bytes" in moecli("memory", "gpt-oss-20b").stdout


def test_what_run_refuses_is_not_called_runnable(moecli, tmp_path):
    """By the headers of a folder, by config.json where there are none, and side by side."""
    config = catalog.find("mixtral").config()
    fp4 = headers.write(tmp_path / "fp4", config, headers.packed(headers.mixtral(), "fp4"))
    plain = headers.write(
        tmp_path / "plain", config | {"quantization_config": {"quant_method": "fp8"}}, headers.plain(headers.mixtral())
    )
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))
    found = json.loads(moecli("inspect", str(fp4), str(plain), str(bare), "kimi-k2", "--json").stdout)
    assert [each["runnable"] for each in found] == [False, True, True, True]
    assert [each["lacks"] for each in found] == [["fp4 weights"], [], [], []]
    assert any("fp8" in note for note in found[1]["notes"])
    row = next(line for line in moecli("inspect", str(fp4), str(plain)).stdout.splitlines() if "engine" in line)
    assert row.split()[1:] == ["no", "yes"]
    assert "lacks fp4 weights" in moecli("inspect", str(fp4)).stdout
    assert "published in fp4" in moecli("memory", str(fp4)).stdout
    assert "cannot run" not in moecli("memory", str(plain)).stdout


def test_a_difference_is_shown_and_is_an_error(moecli, tmp_path):
    tensors = headers.plain(headers.mixtral())
    del tensors["model.layers.7.block_sparse_moe.experts.3.w1.weight"]
    folder = headers.write(tmp_path / "odd", catalog.find("mixtral").config(), tensors)
    result = moecli("inspect", str(folder))
    assert result.returncode == 1 and "58,720,256 fewer" in " ".join(result.stdout.split())
    assert result.stderr.startswith(
        "error: the weights of 'odd' differ from config.json: the files hold 46,644,072,448"
    )
    document = moecli("inspect", str(folder), "--json")
    assert document.returncode == 1 and len(json.loads(document.stdout)["differences"]) == 2
    red = moecli("inspect", str(folder), NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[1;31mthe files hold" in red


def test_a_cut_file_is_damaged_not_different(moecli, tmp_path):
    folder = headers.write(tmp_path / "cut", catalog.find("mixtral").config(), headers.plain(headers.mixtral()))
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10**9)
    result = moecli("inspect", str(folder))
    assert result.returncode == 1 and "cut short" in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["NovelForCausalLM"]}, "architecture 'NovelForCausalLM' is not supported"),
        ({"num_local_experts": None}, "num_local_experts"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rope_scaling": {"type": "novel", "factor": 2.0}}, "rope_scaling"),
        ({"hidden_act": "novel"}, "hidden_act"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_by_name(moecli, tmp_path, changes, words):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(catalog.find("mixtral").config() | changes))
    result = moecli("inspect", str(file))
    assert result.returncode == 1 and words in result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr


def test_an_unknown_name_shows_the_nearest(moecli):
    result = moecli("inspect", "mixtral", "mixtrl")
    assert result.returncode == 1 and "mixtral" in result.stderr and not result.stdout


@pytest.fixture
def in_process(monkeypatch, capsys):
    """The same program without a new process, for the many."""
    from moecli.cli.app import app

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run
