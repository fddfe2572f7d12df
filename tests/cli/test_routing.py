"""`inspect --routing` and `run --trace` as real processes: counts, inputs, traces, memory, explained failures."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moecli
from moecli import __version__ as moecli_version
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import fit_layerwise, place
from moecli.routing import files, trace_file
from moecli.routing.prompts import bundled
from moecli.routing.provenance import digest
from moecli.routing.published import paper
from moecli.routing.trace import RoutingTrace, bare
from tests.support.checkpoints import write
from tests.support.oracle import transformers
from tests.support.stores import packed

TINY = Path(moecli.__file__).parent / "tiny"
LAYER = {
    "layer", "counts", "entropy", "max_violation", "cv2", "gini", "dead", "repeat_top1", "repeat_any", "baseline"
}  # fmt: skip
BASELINE = {"entropy", "max_violation", "cv2", "gini", "dead", "repeat_top1", "repeat_any"}
DOMAINS = {"code", "english", "french", "german", "italian", "mathematics", "spanish"}


def recount(path: Path) -> tuple[dict[int, Counter[int]], dict[str, int]]:
    """Assignments by layer and tokens by domain, from the lines of an exported trace."""
    counts: dict[int, Counter[int]] = {}
    domains: Counter[str] = Counter()
    for line in path.read_text().splitlines()[1:]:
        token = json.loads(line)
        domains[token["domain"]] += 1
        for layer, row in token["layers"].items():
            counts.setdefault(int(layer), Counter()).update(row["experts"])
    return counts, domains


def test_counts_are_a_plain_recount_and_domains_differ_beyond_noise(moecli, tmp_path):
    kept = tmp_path / "trace.jsonl"
    result = moecli("inspect", "tiny", "--routing", "--json", "--save-trace", str(kept))
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["model"] == "tiny" and document["experts"]["active"] == 2
    routing = document["routing"]
    counts, domains = recount(kept)
    assert [row["layer"] for row in routing["layers"]] == sorted(counts) == list(range(7))
    for row in routing["layers"]:
        assert row.keys() >= LAYER and row["baseline"].keys() >= BASELINE
        assert row["counts"] == [counts[row["layer"]][expert] for expert in range(8)]
        assert sum(row["counts"]) == 2 * routing["tokens"]
    assert routing["domains"] == domains and domains.keys() == DOMAINS
    assert routing["prompts"] == 56 and routing["generated_tokens"] == 0
    assert routing["cache"].keys() >= {"budget_bytes", "lru", "lfu", "belady"}
    memory = routing["memory"]
    assert memory["fixed_bytes"] < routing["recommended_ram_bytes"] <= memory["full_bytes"]
    distances = routing["domain_distance"]["layers"]
    assert all(layer["beyond_noise"] and layer["p_value"] <= 0.01 for layer in distances)
    assert all(layer["mean"] > 0.2 > 2 * layer["noise"] for layer in distances[2:])
    made = routing["provenance"]
    assert made["command"].endswith(f"inspect tiny --routing --json --save-trace {kept}")
    assert (made["moecli"], made["model"], made["dtype"], made["seed"]) == (moecli_version, "tiny", "bf16", 0)
    assert (made["revision"], made["prompts"]) == ("built in", "bundled") and made["prompts_sha256"] == digest(
        bundled()
    )
    assert files.read(kept).provenance["prompts_sha256"] == made["prompts_sha256"]


def test_a_run_leaves_a_trace_of_what_it_read_and_wrote(moecli, tmp_path):
    kept = tmp_path / "run.trace"
    greedy = ("--temperature", "0", "-n", "12")
    said = moecli("run", "tiny", "The sea", *greedy, "--json", "--trace", str(kept))
    spoken = json.loads(said.stdout)
    trace = trace_file.load(kept)
    assert trace.ids[trace.generated].tolist() == spoken["token_ids"][:-1]  # the last one was never fed
    assert (~trace.generated).sum() == spoken["prompt_tokens"]
    assert (trace.model, trace.family, trace.dtype) == ("tiny", "mixtral", "bf16")
    result = moecli("inspect", "--routing", "--from", str(kept), "--json", "--layers", "0,5-6")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    routing = document["routing"]
    assert (document["model"], routing["generated_tokens"]) == ("tiny", 11)
    assert [row["layer"] for row in routing["layers"]] == [0, 5, 6]
    assert routing["layers"][1]["counts"] == np.bincount(trace.layers[5].chosen.ravel(), minlength=8).tolist()
    assert routing["recommended_ram_bytes"] is None
    named = json.loads(moecli("inspect", "tiny", "--routing", "--from", str(kept), "--json").stdout)
    assert named["routing"]["recommended_ram_bytes"] > 0 and named["parameters"]["total"] > 0


def test_piped_text_is_the_prompt(moecli, tmp_path):
    text = "The sea was calm and the ship came home."
    kept = tmp_path / "trace"
    piped = moecli("inspect", "tiny", "--routing", "--save-trace", str(kept), input=text + "\n")
    assert piped.returncode == 0 and "\x1b" not in piped.stdout and "tiny" in piped.stdout
    spelled = moecli(
        "inspect", "tiny", "--routing", "--json", "--prompt", text, "--max-tokens", "3", "--capacity", "1,3"
    )
    routing = json.loads(spelled.stdout)["routing"]
    trace = trace_file.load(kept)
    assert "".join(trace.pieces[number] for number in trace.ids.tolist()).endswith(text)
    assert (routing["prompt_tokens"], routing["generated_tokens"]) == (trace.tokens, 3)
    assert routing["layers"][0]["overflow"].keys() == {"1", "3"}


def test_prompts_with_domains_against_another_format(moecli, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"text": "The sea was calm.", "domain": "sea"},
        {"text": "import os, sys"},
        {"text": "x = 1", "domain": "sea"},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    result = moecli("inspect", "tiny", "--routing", "--prompts", str(prompts), "--json", "--against", "dtype=q4")
    assert result.returncode == 0, result.stderr
    routing = json.loads(result.stdout)["routing"]
    assert (routing["prompts"], routing["domains"].keys()) == (3, {"sea", ""})
    against = routing["against"]
    assert against["name"] == "tiny in q4" and against["reason"] is None
    assert 0.7 < against["agreement"]["equal_sets"] <= 1
    assert against["agreement"]["layers"][0]["baseline"]["equal_sets"] == pytest.approx(1 / 28)


def small(tmp_path: Path, layers: int = 3, experts: int = 8, active: int = 2, **about: Any) -> RoutingTrace:
    random = np.random.default_rng(0)
    order = random.random((layers, 50, experts)).argsort(-1)[..., :active]
    path = tmp_path / "small.trace"
    trace = replace(bare({layer: (experts, rows.astype(np.uint16)) for layer, rows in enumerate(order)}), **about)
    trace_file.save(trace, path)
    return trace


@pytest.mark.parametrize(
    ("suffix", "begins"), [("html", "<!doctype html"), ("svg", "<"), ("pdf", "%pdf"), ("md", "#"), ("csv", "")]
)
def test_every_format_is_written(suffix, begins, moecli, tmp_path):
    if suffix == "pdf":
        pytest.importorskip("matplotlib")
    small(tmp_path)
    target = tmp_path / f"routing.{suffix}"
    result = moecli("inspect", "--routing", "--from", str(tmp_path / "small.trace"), "-o", str(target))
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert target.read_bytes().decode("latin-1").lower().startswith(begins)
    assert f"wrote {target} (" in result.stderr


def test_csv_and_jsonl_keep_the_choices(moecli, tmp_path):
    trace = small(tmp_path)
    for suffix in ("csv", "jsonl"):
        exported = tmp_path / f"exported.{suffix}"
        came_from = str(tmp_path / "small.trace")
        result = moecli("inspect", "--routing", "--from", came_from, "--save-trace", str(exported), "--format", "csv")
        assert result.returncode == 0 and "\x1b" not in result.stdout and "," in result.stdout
        again = files.read(exported)
        for ours, theirs in zip(trace.layers, again.layers, strict=True):
            assert np.array_equal(ours.chosen, theirs.chosen)
    compared = moecli(
        "inspect", "--routing", "--from", str(tmp_path / "exported.csv"), "--against", came_from, "--json"
    )
    assert json.loads(compared.stdout)["routing"]["against"]["agreement"]["equal_sets"] == 1


def test_mixtral_stands_beside_its_paper(moecli, tmp_path):
    trace = small(tmp_path, layers=32, family="mixtral", model="mixtral")
    result = moecli("inspect", "--routing", "--from", str(tmp_path / "small.trace"), "--json")
    published = json.loads(result.stdout)["routing"]["published"]
    assert published["temporal_locality"]["published"]["ArXiv"] == {
        "first": [0.14, 0.279, 0.227],
        "either": [0.465, 0.623, 0.529],
    }
    first = [
        float((rows[1:, 0] == rows[:-1, 0]).mean()) for rows in (trace.layers[layer].chosen for layer in (0, 15, 31))
    ]
    assert published["temporal_locality"]["measured"][""]["first"] == pytest.approx(first)
    github = published["domain_shares"]["published"]["github"]
    assert [sum(layer) for layer in github] == pytest.approx([1, 1, 1]) and github[0][5] == pytest.approx(
        0.1621, abs=5e-5
    )
    shares = published["domain_shares"]["measured"][""][2]
    assert shares == pytest.approx((trace.layers[15].counts() / 100).tolist())
    small(tmp_path, layers=31, family="mixtral")
    assert paper(trace_file.load(tmp_path / "small.trace")) is None


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["inspect"], 2, "no MODEL"),
        (["inspect", "--routing"], 2, "no MODEL"),
        (["inspect", "tiny", "--layers", "0"], 2, "--layers goes with --routing"),
        (["inspect", "tiny", "dbrx", "--routing"], 2, "--against"),
        (["inspect", "tiny", "--routing", "--layers", "3-1"], 2, "3-1"),
        (["inspect", "--routing", "--from", "{trace}", "--layers", "9"], 2, "--layers 9"),
        (["inspect", "tiny", "--routing", "--format", "gif"], 2, "gif"),
        (["inspect", "tiny", "--routing", "--dpi", "600", "-o", "{folder}/x.svg"], 2, "--dpi goes with png"),
        (["inspect", "tiny", "--routing", "--colormap", "jet", "-o", "{folder}/x.svg"], 2, "viridis"),
        (["inspect", "tiny", "--routing", "-o", "{folder}/none/x.svg"], 2, "no folder"),
        (["inspect", "tiny", "--routing", "--prompt", "a", "--prompts", "b"], 2, "--prompts"),
        (["inspect", "tiny", "--routing", "--limit", "0"], 2, "0"),
        (["inspect", "tiny", "--routing", "--prompts", "{folder}/none"], 1, "cannot read the prompts"),
        (["inspect", "tiny", "--routing", "--prompts", "{bad}"], 1, "line 2"),
        (["inspect", "tiny", "--routing", "--probabilities", "--save-trace", "{folder}/x.csv"], 2, "no room"),
        (["inspect", "tiny", "--routing", "--from", "{trace}"], 2, "not recorded of tiny"),
        (["inspect", "--routing", "--from", "{trace}", "--against", "tiny"], 2, "another trace"),
        (["inspect", "--routing", "--from", "{damaged}"], 1, "damaged"),
        (["inspect", "--routing", "--from", "{bad}"], 1, "JSON|token"),
        (["inspect", "--routing", "--from", "{folder}/none"], 1, "cannot read"),
        (["inspect", "llama-2-70b", "--routing"], 1, "'llama-2-70b' has no routed experts"),
        (["run", "tiny", "a", "--trace", "{folder}/none/x"], 2, "no folder"),
    ],
)
def test_failures_are_explained(arguments, code, says, moecli, tmp_path):
    small(tmp_path)
    whole = (tmp_path / "small.trace").read_bytes()
    (tmp_path / "damaged.trace").write_bytes(whole[:-5] + b"wrong")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"no": "text"}\n')
    names = {"trace": "small.trace", "damaged": "damaged.trace", "bad": "bad.jsonl", "folder": "."}
    filled = [part.format(**{name: tmp_path / file for name, file in names.items()}) for part in arguments]
    result = moecli(*filled)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert any(word in result.stderr for word in says.split("|")), result.stderr


def test_a_hint_repeats_the_folder_as_it_was_typed(moecli, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    result = moecli("inspect", str(folder), "--routing", "--ram", "1MiB")
    assert result.returncode == 1 and f"moecli pack {folder} --dtype q4" in result.stderr


def test_a_store_larger_than_the_memory_limit_is_analysed_within_it(moecli, tmp_path):
    config = transformers().MixtralConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, num_local_experts=32, max_position_embeddings=512,
    )  # fmt: skip
    folder = write(transformers().MixtralForCausalLM(config).bfloat16(), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    store = packed(folder, tmp_path / "store", "bf16")
    least = place(estimate_memory(store.spec, "bf16", 512), 0)
    budget = least.least_ram + least.disk.expert_bytes // 4
    assert not fit_layerwise(store.spec, "bf16", 200, 900, budget, streams=True).fits
    result = moecli("inspect", str(store.folder), "--routing", "--limit", "900", "--json", "--ram", f"{budget}B")
    routing = json.loads(result.stdout)["routing"]
    assert routing["tokens"] == 900
    assert routing["peak_rss_bytes"] < 1.05 * budget < budget + least.disk.expert_bytes // 2
