"""`moecli memory` as scripts and people use it, and its forecast against a real run."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

import moecli as moecli_package
from benchmarks import checkpoint
from moecli.model import families
from moecli.model.tensors import dense_tensors, expert_shapes

TWO = {"MOECLI_THREADS": "2"}
CONTRACT = {
    "model", "dtype", "context", "batch", "weights_bytes", "resident_bytes", "expert_bytes", "bytes_per_expert",
    "kv_cache_bytes", "kv_bytes_per_token", "activation_bytes", "total_bytes", "read_bytes_per_token", "plan", "fits",
    "gpus_needed", "speed", "peak_rss_bytes",
}  # fmt: skip


def document(moecli, *arguments):
    result = moecli("memory", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_holds_the_contract_and_adds_up(moecli):
    found = document(moecli, "grok-1", "--dtype", "bf16", "--ram", "64GiB")
    assert found.keys() >= CONTRACT
    assert found["speed"].keys() >= {"low", "high", "unit", "evidence"}
    assert found["plan"].keys() == {"device", "ram", "disk"}
    assert found["weights_bytes"] == 2 * 315_684_820_992
    assert found["total_bytes"] == found["weights_bytes"] + found["kv_cache_bytes"] + found["activation_bytes"]
    assert found["weights_bytes"] == found["resident_bytes"] + found["expert_bytes"]
    assert all(type(v) is int for k, v in found.items() if k.endswith("_bytes") and v is not None)
    assert not found["fits"] and found["gpus_needed"] is None
    assert found["plan"]["ram"]["total_bytes"] <= 64 << 30


def test_every_format_without_dtype(moecli):
    found = document(moecli, "mixtral", "--ram", "64GiB")
    assert [each["dtype"] for each in found["formats"]] == ["fp32", "bf16", "fp16", "q8", "int8", "q4", "nf4", "q3"]
    screen = moecli("memory", "mixtral", "--ram", "64GiB")
    assert all(dtype in screen.stdout for dtype in ("fp32", "bf16", "q4", "nf4"))
    assert max(map(len, screen.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "name", ("grok-1", "dbrx", "deepseek-v2", "gpt-oss-120b", "switch-base-8", "llama-2-70b", "kimi-k3")
)
def test_screens_fit_eighty_columns_without_colour(moecli, name):
    for more in (("--dtype", "bf16"), ("--dtype", "q4", "--gpu", "h100:2", "--explain"), ()):
        result = moecli("memory", name, "--ram", "128GiB", *more)
        assert result.returncode == 0, result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert "\x1b" not in result.stdout


def test_check_answers_by_exit_code(moecli):
    assert moecli("memory", "mixtral", "--dtype", "bf16", "--ram", "64GiB", "--check").returncode == 3
    assert moecli("memory", "mixtral", "--dtype", "bf16", "--ram", "128GiB", "--check").returncode == 0
    assert (
        moecli("memory", "mixtral", "--dtype", "bf16", "--ram", "16GiB", "--gpu", "h100:2", "--check").returncode == 0
    )


def test_a_refusal_names_the_smallest_budget_and_it_does(moecli):
    found = document(moecli, "olmoe", "--dtype", "bf16", "--ram", "4GiB")
    assert not found["fits"]
    enough = f"{found['smallest_ram_bytes']}B"
    assert document(moecli, "olmoe", "--dtype", "bf16", "--ram", enough)["fits"]
    screen = moecli("memory", "olmoe", "--dtype", "bf16", "--ram", "4GiB").stdout
    assert "yes, from disk" in screen and "least RAM" in screen and "with all of it in RAM" in screen


def test_explain_shows_formulas_and_keys(moecli):
    text = " ".join(moecli("memory", "mixtral", "--dtype", "bf16", "--explain", "--ram", "8GiB").stdout.split())
    assert "32 layers x 8 experts x 352,321,536" in text
    assert "sliding_window" in text and "vocab_size" in text


def test_max_ctx_prints_one_number(moecli):
    result = moecli("memory", "mixtral", "--dtype", "q4", "--ram", "26GiB", "--max-ctx")
    assert 0 < int(result.stdout) < 32768
    assert document(moecli, "mixtral", "--dtype", "q4", "--ram", "26GiB", "--ctx", result.stdout.strip())["fits"]


def test_given_speeds_are_labelled_and_used(moecli):
    slow = document(moecli, "mixtral", "--dtype", "bf16", "--ram", "16GiB")
    fast = document(moecli, "mixtral", "--dtype", "bf16", "--ram", "16GiB", "--disk-speed", "7GB")
    assert (slow["speed"]["evidence"], fast["speed"]["evidence"]) == ("typical", "given")
    assert fast["speed"]["low"] > 2 * slow["speed"]["low"]


def test_gpus_needed(moecli):
    assert document(moecli, "mixtral", "--dtype", "bf16", "--gpu", "rtx4090", "--ram", "64GiB")["gpus_needed"] == 4
    assert document(moecli, "mixtral", "--dtype", "q4", "--gpu", "h100", "--ram", "64GiB")["gpus_needed"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("mixtral", "--ram", "lots"), 2, "lots"),
        (("mixtral", "--gpu", "rtx9999"), 2, "rtx9999"),
        (("mixtral", "--gpu", "h100:0"), 2, "'0'"),
        (("mixtral", "--dtype", "q5"), 2, "q5"),
        (("mixtral", "--ctx", "0"), 2, "0"),
        (("mixtral", "--batch", "-1"), 2, "-1"),
        (("mixtral", "--ram", "0"), 2, "0"),
        (("mixtrl",), 1, "mixtral"),
    ],
)
def test_failures_are_one_clear_error(moecli, arguments, code, words):
    result = moecli("memory", *arguments)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error:") and words in result.stderr
    assert result.stdout == ""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A random checkpoint of 1.2 GB, gone after its tests."""
    folder = tmp_path_factory.mktemp("large")
    checkpoint.write("small", folder)
    yield str(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("context", (512, 8192))
@pytest.mark.parametrize("model", ("tiny", "large"))
def test_the_forecast_of_the_peak_is_near_the_measured_one(moecli, model, context, request):
    """Within a tenth, for a prompt that fills the context; `benchmarks/memory.py` prints the figures."""
    model = request.getfixturevalue("large") if model == "large" else model
    digits = "".join(random.Random(0).choices("0123456789", k=context - 16))  # the tokenizer splits every digit
    run = json.loads(moecli("run", model, "--ctx", str(context), "-n", "8", "--json", input=digits, **TWO).stdout)
    assert run["prompt_tokens"] > context - 24
    assert run["planned_bytes"]["ram"] == pytest.approx(run["peak_rss_bytes"], rel=0.1)
    planned = document(moecli, model, "--dtype", "bf16", "--ctx", str(run["context"]), "--ram", "64GiB")[
        "peak_rss_bytes"
    ]
    assert planned == run["planned_bytes"]["ram"]


@pytest.mark.parametrize("dtype", ("bf16", "q4"))
def test_the_shortest_run_keeps_to_its_forecast(moecli, dtype):
    """Where weights and cache are nothing beside the process."""
    run = json.loads(moecli("run", "tiny", "hi", "-n", "5", "--raw", "--dtype", dtype, "--json", **TWO).stdout)
    assert run["peak_rss_bytes"] == pytest.approx(run["planned_bytes"]["ram"], rel=0.05)


def test_a_model_too_large_for_this_machine_is_refused_before_loading(moecli, tmp_path):
    """A real header over a hole in a file: 1 TB that no machine here has."""
    config = {
        "architectures": ["MixtralForCausalLM"], "hidden_size": 8192, "num_attention_heads": 64, "num_hidden_layers": 8,
        "num_local_experts": 64, "intermediate_size": 32768, "vocab_size": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    family = families.find(config)
    spec = family.read(config)
    layout = family.layouts[0]
    header, end = {}, 0
    shapes = {}
    for tensor in dense_tensors(spec):
        rows = [8192, 1024, 1024] if tensor.role == "qkv" else [tensor.shape[0]]
        for name, count in zip(layout.dense[tensor.role], rows, strict=True):
            shapes[name.format(layer=tensor.layer)] = (count, *tensor.shape[1:])
    for layer, mixture in spec.mixtures:
        for expert in range(64):
            for matrix, shape in expert_shapes(8192, mixture.expert).items():
                shapes[getattr(layout.experts, matrix).name.format(layer=layer, expert=expert)] = shape
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(Path(moecli_package.__file__).parent / "tiny" / "tokenizer.json", tmp_path)
    result = moecli("run", str(tmp_path), "hello", "--ram", "700MiB")
    assert result.returncode == 1 and "needs" in result.stderr and "the budget is" in result.stderr
    slowly = moecli("run", str(tmp_path), "hello")  # from its own files, if somebody says yes
    assert slowly.returncode == 2 and f"moecli pack {tmp_path}" in " ".join(slowly.stderr.split())
    assert "Traceback" not in result.stderr + slowly.stderr
