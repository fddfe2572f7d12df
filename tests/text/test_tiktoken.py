"""Ranks of tiktoken without its library: ids and texts equal to tiktoken's own, and no file does harm."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from moecli.errors import TextError
from moecli.text import tiktoken
from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer
from tests.support.toy_tokenizers import CORPUS, write_json
from tests.support.vocabularies import packaged, small_ranks, varied_texts, written

library = pytest.importorskip("tiktoken")

# As the programs that go with each vocabulary write them.
PATTERNS: dict[str, str] = {
    "GPT-4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s",
    "Kimi": "|".join(
        [
            r"[\p{Han}]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
            r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
            r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
        ]
    ),
    "Qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}  # fmt: skip
OURS = {"GPT-4": tiktoken.GPT4, "Kimi": tiktoken.KIMI, "Qwen": tiktoken.QWEN}


def agree(ranks: Mapping[bytes, int], kind: str, texts: list[str]) -> None:
    encoding = OURS[kind]
    special = {text: len(ranks) + place for place, text in encoding.special.items()}
    special |= {f"<|reserved_token_{n}|>": n for n in range(len(ranks), len(ranks) + encoding.reserved)}
    theirs = library.Encoding(
        kind, pat_str=PATTERNS[kind], mergeable_ranks=dict(ranks), special_tokens=special,
    )  # fmt: skip
    ours = tiktoken.backend(ranks, encoding, {})
    if encoding.composed:
        import unicodedata

        texts = [unicodedata.normalize("NFC", text) for text in texts]
    for text in texts:
        ids = theirs.encode(text, allowed_special="all")
        assert ours.encode(text).ids == ids, text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
    chance = random.Random(7)
    for _ in range(300):  # bytes that are no text
        ids = chance.choices(range(len(ranks)), k=8)
        assert ours.decode(ids) == theirs.decode(ids), ids


@pytest.mark.parametrize("kind", PATTERNS)
def test_ids_and_texts_are_those_of_tiktoken(kind: str) -> None:
    agree(small_ranks(), kind, [*CORPUS, *varied_texts(400)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", PATTERNS)
def test_ids_and_texts_with_the_vocabulary_of_gpt_4_which_is_dbrx_s(kind: str) -> None:
    ranks = tiktoken.read(packaged("tiktoken_ext", "data/cl100k_base.tiktoken"), "cl100k_base.tiktoken")
    assert tiktoken.encoding_of("a.tiktoken", None, len(ranks)) is tiktoken.GPT4
    agree(ranks, kind, varied_texts(2000))


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, **config: Any) -> Path:
        (tmp_path / name).write_bytes(written(small_ranks()))
        write_json(tmp_path / "tokenizer_config.json", config)
        return tmp_path

    return make


def test_special_tokens_of_dbrx(model_folder: Callable[..., Path]) -> None:
    path = model_folder("cl100k_base.tiktoken", bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer, count = Tokenizer.load(path), len(small_ranks())
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|><|endoftext|>")
    assert (ids[0], ids[-2], ids[-1]) == (count + 22, count + 23, count + 1) == (ids[0], ids[-2], tokenizer.eos_id)
    assert tokenizer.decode(ids) == "user\nhi"
    assert tokenizer.size == count + 24
    assert tokenizer.encode("hi") == tokenizer.encode("hi", special=False), "no BOS"


def test_special_tokens_of_kimi_are_those_it_declares_and_reserved_ones(model_folder: Callable[..., Path]) -> None:
    count = len(small_ranks())
    declared = {
        count: {"content": "[BOS]", "special": True}, count + 1: {"content": "[EOS]", "special": True},
        count + 4: {"content": "<think>", "special": False},
    }  # fmt: skip
    path = model_folder(
        "tiktoken.model", added_tokens_decoder=declared, bos_token="[BOS]", tokenizer_class="TikTokenTokenizer"
    )
    tokenizer = Tokenizer.load(path)
    assert tokenizer.bos_id == count
    assert tokenizer.encode("[EOS]<think>", special=False) == [count + 1, count + 4]
    assert tokenizer.encode(f"<|reserved_token_{count + 257}|>") == [count + 257]
    assert tokenizer.decode([count + 1, count + 4, count + 257]) == "<think>"
    assert tokenizer.size == count + 258


def test_half_characters_wait_in_a_stream(model_folder: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(model_folder("qwen.tiktoken"))
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("a 世🎉!")
    pieces = [stream.push(number) for number in ids] + [stream.finish()]
    assert "".join(pieces) == "a 世🎉!"
    assert not any("\ufffd" in piece for piece in pieces)


def test_ranks_may_be_called_tokenizer_model(model_folder: Callable[..., Path]) -> None:
    path = model_folder("tokenizer.model", tokenizer_class="TikTokenTokenizer")
    ids = Tokenizer.load(path).encode("the fox jumped")
    (path / "tokenizer.model").rename(path / "tiktoken.model")
    write_json(path / "tokenizer_config.json", {})
    assert Tokenizer.load(path).encode("the fox jumped") == ids


def test_ranks_of_nobody_known_are_refused(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(TextError, match="how text is split") as caught:
        Tokenizer.load(model_folder("own.tiktoken", tokenizer_class=["a list"]))
    assert "--tokenizer" in str(caught.value.hint)


BYTES = written({bytes([byte]): byte for byte in range(256)})
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not every byte"),
    "text": (b"not at all ranks\n", "line 1"),
    "no base64": (BYTES + b"*** 256\n", "line 257"),
    "no rank": (BYTES + b"YWE=\n", "line 257"),
    "a rank below zero": (BYTES + b"YWE= -1\n", "ranks are not"),
    "a token twice": (BYTES + b"YQ== 256\n", "line 257"),
    "a rank twice": (BYTES + b"YWE= 255\n", "ranks are not"),
    "a gap": (BYTES + b"YWE= 300\n", "ranks are not"),
    "a rank beyond all": (BYTES + b"YWE= 99999999999999999999\n", "line 257"),
    "an empty token": (BYTES + b" 256\n", "line 257"),
    "too long a token": (BYTES + base64.b64encode(b"a" * 2000) + b" 256\n", "line 257"),
    "cut short": (BYTES[:1500], "line|not every byte"),
    "not UTF-8": (b"\xff\xfe" + BYTES, "line 1"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_explained(case: str, tmp_path: Path) -> None:
    content, said = DAMAGE[case]
    (tmp_path / "tiktoken.model").write_bytes(content)
    with pytest.raises(TextError, match=said) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tiktoken.model").open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(TextError, match="larger than 256 MiB"):
        Tokenizer.load(tmp_path)


def test_declared_ids_that_no_model_has_are_refused(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(TextError, match="not a tokenizer"):
        Tokenizer.load(model_folder("tiktoken.model", added_tokens_decoder={str(2**60): {"content": "x"}}))
