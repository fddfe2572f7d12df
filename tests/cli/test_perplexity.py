"""`moecli perplexity` and `moecli compare`: files, windows, formats and documents; and transformers' own figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import moecli as package
from tests.support import forked
from tests.support.in_process import moecli
from tests.support.oracle import transformers

TINY = Path(package.__file__).parent / "tiny"
TEXT = (Path(package.__file__).parent / "routing" / "prompts" / "english.txt").read_text(encoding="utf-8")[:2500]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def losses(size: int, stride: int) -> torch.Tensor:
    """By transformers alone: BOS and a window of text, what no earlier window held is scored."""
    backend = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = backend.encode(TEXT, add_special_tokens=False).ids
    model = transformers().AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    scored, end = [], 0
    for start in range(0, len(ids), stride):
        window = torch.tensor([[model.config.bos_token_id, *ids[start : start + size - 1]]])
        with torch.no_grad():
            logits = model(window).logits[0]
        each = F.cross_entropy(logits[:-1], window[0, 1:], reduction="none")
        scored.append(each[max(end - start, 0) :])
        end = start + size - 1
        if end >= len(ids):
            return torch.cat(scored)
    raise AssertionError


@pytest.mark.parametrize(("size", "stride"), [(256, None), (200, 64)])
def test_a_text_is_foretold_as_transformers_says(text: Path, size: int, stride: int | None) -> None:
    options = () if stride is None else ("--stride", f"{stride}")
    found = moecli("perplexity", "tiny", text, "--dtype", "fp32", "--ctx", f"{size}", *options, "--json").json
    plain = losses(size, stride or size - 1)
    assert (found["scored_tokens"], found["window_tokens"], found["stride_tokens"]) == (
        len(plain), size, stride or size - 1,
    )  # fmt: skip
    assert found["loss"] == pytest.approx(float(plain.mean()), abs=2e-5)
    assert found["perplexity"] == pytest.approx(float(plain.mean().exp()), rel=2e-5)
    assert 0 < found["perplexity_error"] < found["perplexity"] / 2


def test_windows_of_ids_are_read_and_a_short_text_has_no_error(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    file.write_text("[1, 50, 60, 70]\n[1, 80, 90]\n")
    found = moecli("perplexity", "tiny", file, "--json").json
    assert (found["windows"], found["tokens"], found["scored_tokens"], found["window_tokens"]) == (2, 7, 5, None)
    file.write_text("[1, 50, 60, 70]\n")
    found = moecli("perplexity", "tiny", file)
    assert found.code == 0 and "3 of 4 tokens, in 1 window\n" in found.out and "+/-" not in found.out


@pytest.mark.parametrize(
    ("arguments", "failure"),
    [
        (("perplexity", "tiny"), "error: stdin holds no text\n"),
        (("perplexity", "tiny", "none.txt"), "error: FILE none.txt cannot be read: No such file"),
        (("perplexity", "tiny", "{text}", "--ctx", "2"), "error: --ctx 2 has no room"),
        (("perplexity", "tiny", "{text}", "--stride", "4000"), "error: --stride 4000 would leave out text"),
        (("perplexity", "tiny", "{text}", "--policy", "best"), "error: unknown --policy 'best'"),
        (("compare", "tiny"), "error: two models are compared, not 1\nhint: moecli compare tiny --dtype q8,q4\n"),
        (("compare", "tiny", "tiny", "tiny"), "error: two models are compared, not 3\n"),
        (("compare", "tiny", "--dtype", "q8,q4,q3"), "error: --dtype q8,q4,q3 names 3 formats\n"),
        (("compare", "tiny", "--dtype", "q8,q5"), "error: unknown --dtype 'q5'"),
        (("compare", "tiny", "--dtype", "q8,q4", "--stride", "9"), "error: --stride goes with --file\n"),
        (("compare", "tiny", "tiny", "-f", "a", "--prompts", "b"), "error: --file and --prompts cannot both be meant"),
        (("compare", "tiny", "tiny", "--ram", "100MiB"), "error: 'tiny' in bf16 and 'tiny' in bf16 side by side need"),
        (("run", "tiny", "x", "--echo"), "error: --echo goes with --logprobs\n"),
    ],
)
def test_what_cannot_be_meant_is_told(text: Path, arguments: tuple[str, ...], failure: str) -> None:
    found = moecli(*(each.format(text=text) for each in arguments))
    assert found.code in (1, 2) and found.failure.startswith(failure), found.err
    assert not found.out and "Traceback" not in found.err


def test_two_formats_are_compared_on_a_text_and_on_prompts(text: Path, tmp_path: Path) -> None:
    found = moecli("compare", "tiny", "--dtype", "bf16,q3", "-f", text, "--ctx", "256", "--json").json
    assert [each["dtype"] for each in found["models"]] == ["bf16", "q3"]
    first, second = found["models"]
    assert second["loss"] - first["loss"] == pytest.approx(found["loss_difference"], abs=1e-5)
    assert first["loss"] == moecli("perplexity", "tiny", text, "--ctx", "256", "--json").json["loss"]
    assert 0 < found["kl_divergence"]["median"] < found["kl_divergence"]["mean"] < found["kl_divergence"]["largest"]
    assert 0.5 < found["same_top"] < 1 and 0.5 < found["routing"]["equal_sets"] < 1
    assert len(found["routing"]["layers"]) == 7 and found["routing"]["tokens"] == found["tokens"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "The sea is wide"}\n{"text": "def f(x):"}\n')
    shown = moecli("compare", "tiny", "tiny:q8", "--prompts", prompts)
    assert shown.code == 0 and "in 2 windows\n" in shown.out and "Routing flips" in shown.out
    assert [line.split()[:2] for line in shown.out.splitlines()[1:3]] == [["tiny", "bf16"], ["tiny", "q8"]]
    json.dumps(found)


@pytest.mark.slow
def test_a_text_comes_by_a_pipe_too() -> None:
    found = forked.moecli("perplexity", "tiny", "--json", stdin=b"The sea is wide.\n")
    assert found.code == 0 and json.loads(found.out)["windows"] == 1


def test_the_tokens_of_a_prompt_are_scored_as_those_of_a_text(tmp_path: Path) -> None:
    """`run --echo` in one pass and in blocks, of a prompt that is a decode step, and of one that is not."""
    for prompt in ("The sea", TEXT[:900]):
        command = ("run", "tiny", prompt, "--temperature", "0", "-n", "4", "--json", "--dtype", "fp32")
        plain, found = moecli(*command).json, moecli(*command, "--echo", "--logprobs", "1").json
        assert found["text"] == plain["text"] and "prompt_logprobs" not in plain
        scores = found["prompt_logprobs"]
        assert len(scores) == found["prompt_tokens"] and scores[0]["logprob"] is None
        assert all(each["logprob"] <= each["top"][0]["logprob"] < 0 for each in scores[1:])
        file = tmp_path / "windows.jsonl"
        file.write_text(json.dumps([each["token_id"] for each in scores]))
        loss = moecli("perplexity", "tiny", file, "--dtype", "fp32", "--json").json["loss"]
        mean = sum(each["logprob"] for each in scores[1:]) / (len(scores) - 1)
        assert mean == pytest.approx(-loss, abs=1e-4)
