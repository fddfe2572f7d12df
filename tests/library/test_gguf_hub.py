"""GGUF files of the Hub, through the real huggingface_hub: looked at by their heads, listed, fetched and run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moecli.checkpoint.gguf import read_model
from moecli.checkpoint.gguf_names import Variant, variants
from tests.support import hub_server
from tests.support.gguf_files import Made, make, with_merges
from tests.support.in_process import moecli
from tests.support.toy_tokenizers import byte_level

pytestmark = pytest.mark.slow
REPO = "somebody/tiny-GGUF"
ONE, PARTS = "tiny-UD-Q4_K_M.gguf", "BF16/tiny-BF16-{:05}-of-00003.gguf"
GREEDY = ("The sea", "-n", "4", "--temperature", "0", "--json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """One file of few bits, and one of more in three parts, of the same model."""
    tokenizer = with_merges(json.loads(byte_level().to_str()), "gpt-2")
    folder = tmp_path_factory.mktemp("gguf")
    made = {"Q4_K": make("qwen3_moe", folder / "q4", "Q4_K", tokenizer=tokenizer, vocab_size=512)}
    made["BF16"] = make("qwen3_moe", folder / "bf16", "BF16", tokenizer=tokenizer, vocab_size=512, most=12)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: dict[str, Made]) -> Iterator[hub_server.Hub]:
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with hub_server.serve_library(monkeypatch) as running:
        running.put(f"{REPO}/{ONE}", made["Q4_K"].file.read_bytes())
        for number, part in enumerate(sorted(made["BF16"].file.parent.glob("tiny-*.gguf")), 1):
            running.put(f"{REPO}/{PARTS.format(number)}", part.read_bytes())
        running.put(f"{REPO}/mmproj-F16.gguf", b"GGUF")
        running.put(f"{REPO}/README.md", b"# tiny")
        yield running


def test_a_file_is_known_by_its_head_alone(hub: hub_server.Hub, made: dict[str, Made]) -> None:
    here, there = (moecli("inspect", name, "--json").json for name in (made["Q4_K"].file, f"{REPO}:q4_k_m"))
    head = min(stored.offset for stored in read_model(made["Q4_K"].file).tensors.values())
    size = made["Q4_K"].file.stat().st_size
    assert head < hub.sent_of[ONE] <= max(2 * head, 1 << 16) < size / 4
    for key in ("parameters", "stored_format", "stored_bytes", "router", "experts", "differences", "runnable"):
        assert there[key] == here[key], key
    assert there["source"] == "hub" and there["revision"] == hub.commit and there["model"] == f"{REPO}:q4_k_m"
    assert moecli("memory", f"{REPO}/{ONE}", "--json").json["stored_format"] == "Q4_K"
    parts = moecli("inspect", f"{REPO}:BF16", "--json").json
    assert parts["parameters"] == here["parameters"] and parts["stored_format"] == "bf16"
    assert all(hub.sent_of[name.rpartition("/")[2]] <= 1 << 16 for name in map(PARTS.format, (1, 2, 3)))


def test_files_are_listed_with_what_fits_here(hub: hub_server.Hub, made: dict[str, Made]) -> None:
    rows = {row["label"]: row for row in moecli("memory", REPO, "--files", "--json").json}
    assert list(rows) == ["BF16", "UD-Q4_K_M"]
    total = moecli("inspect", made["Q4_K"].file, "--json").json["parameters"]["total"]
    for row in rows.values():
        size = sum(hub.files[f"{REPO}/{name}"].size for name in row["files"])
        assert row["bytes"] == size and row["bits_per_weight"] == pytest.approx(8 * size / total, abs=1e-3)
        assert row["parameters"] == total and row["runs"] and row["has_room"] and not row["here"]
    assert (rows["BF16"]["packs_to"], rows["UD-Q4_K_M"]["packs_to"]) == ("bf16", "q4")
    screen = moecli("memory", REPO, "--files").out
    assert "moecli pull somebody/tiny-GGUF:BF16" in screen and "UD-Q4_K_M" in screen and "mmproj" not in screen
    few = moecli("memory", REPO, "--files", "--ram", "1MiB")
    assert "nothing here runs" in few.out and "no" in few.out
    assert moecli("memory", made["Q4_K"].file, "--files").failure.startswith("error: 'tiny' is no repository")


@pytest.mark.parametrize(("named", "kind"), [(f"{REPO}:Q4_K_M", "Q4_K"), (f"{REPO}:BF16", "BF16")])
def test_a_file_is_pulled_run_packed_verified_and_removed(
    named: str, kind: str, hub: hub_server.Hub, made: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = moecli("pull", named, "--yes")
    file = Path(pulled.out.strip())
    assert pulled.code == 0 and file.is_file() and f"moecli run {named}" in pulled.err
    assert {name for name in hub.sent_of if name.endswith(".md") or name.startswith("mmproj")} == set()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = moecli("run", named, *GREEDY).json
    assert answer["token_ids"] == moecli("run", made[kind].file, *GREEDY).json["token_ids"]
    assert moecli("run", REPO, *GREEDY).json["token_ids"] == answer["token_ids"]  # the only one that is here
    found = moecli("inspect", named, "--json").json
    assert found["revision"] == hub.commit and found["source"] == "cache"
    listed = next(each for each in moecli("list", "--json").json if each["name"] == REPO)
    assert listed["complete"] and listed["format"] == ("UD-Q4_K_M" if kind == "Q4_K" else kind)
    assert moecli("verify", named).code == 0
    packed = moecli("pack", named, "--dtype", "q4")
    assert Path(packed.out.strip()).name == f"{named.replace('/', '--').replace(':', '-')}-q4"
    assert moecli("run", named, *GREEDY).json["dtype"] == "q4"
    assert moecli("pull", named).code == 0, "nothing is to be fetched"
    assert moecli("rm", named, "--yes").code == 0 and not file.exists()


def test_what_is_not_there_is_told_with_what_is(hub: hub_server.Hub) -> None:
    absent = moecli("inspect", f"{REPO}:Q8_0").failure
    assert absent == (f"error: {REPO} holds no GGUF file called Q8_0\nhint: it holds BF16, UD-Q4_K_M\n")
    plain = moecli("inspect", REPO).failure
    assert "holds its weights as GGUF" in plain and f"moecli memory {REPO} --files" in plain
    assert "once it is here" in moecli("pull", f"{REPO}:BF16", "--dtype", "q4").failure
    del hub.files[f"{REPO}/{PARTS.format(2)}"]
    assert "holds 2 of the 3 parts" in moecli("inspect", f"{REPO}:BF16").failure


LABELS = {
    "mixtral-8x7b.Q4_K_M.gguf": "Q4_K_M", "Qwen3-30B-A3B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL", "model-f16.gguf": "F16",
    "UD-IQ1_M/DeepSeek-R1-UD-IQ1_M-00001-of-00004.gguf": "UD-IQ1_M", "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "gpt-oss-20b-MXFP4_MOE.gguf": "MXFP4_MOE", "BF16/x-00001-of-00002.gguf": "BF16", "x.gguf": "x",
    "OLMoE-1B-7B-0924-Instruct-TQ1_0.gguf": "TQ1_0",
}  # fmt: skip


def test_labels_of_files_as_people_call_them() -> None:
    found = {name: [each.label for each in variants([name])] for name in LABELS}
    assert found == {name: [label] for name, label in LABELS.items()}
    assert variants(["mmproj-F16.gguf", "imatrix_x.gguf", "x.imatrix.gguf", "README.md"]) == []
    parts = [f"a-Q8_0-0000{number}-of-00002.gguf" for number in (2, 1)]
    assert variants(parts) == [Variant("Q8_0", (parts[1], parts[0]))] and variants(parts)[0].whole
