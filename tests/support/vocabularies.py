"""Vocabularies of other programs, small ones made here and real ones that packages ship, and texts that try them."""

from __future__ import annotations

import base64
import io
import random
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from moecli.text import tiktoken
from tests.support.toy_tokenizers import CORPUS, byte_level

PARTS = [
    "a", "aa", "the ", "sea", " ", "  ", "   ", "\n", "\t", "\r\n", "\u2581", "é", "e\u0301", "ﬁ", "①", "日本", "ｱ",
    "한국", "Привет", "مرحبا", "🎉", "👨\u200d👩\u200d👧", "\0", "\x07", "\x7f", "\u200b", "\ufeff", "\u3000", "\xa0",
    "<0x0A>", "x", "def f(x):\n    return x", "123", "\n\n", "½", "\u2028", "İ", "ẞ", "🇩🇪", "\ufffd",
    "\U000e0001", "<sep>", "I'll", "DON'T", "it'ſ", "we’ve", "HTTPServer", "snake_case", "  \n \n", "3.14", "1234567",
    "२०२६", "नमस्ते", "ไทย", "漢字かな", "中文abc", "中文'S", "ǅ", "ʰ", "\u0300", "!!!", "?!", "/* */", "https://x.org/a?b=c",
    "\x85", "\x1b[0m", "𝔘𝔫𝔦", "\U0010ffff", "\u0378", "<|im_start|>",
]  # fmt: skip
_FIXED = ["", " ", "  ", "a ", " a", "  a  b  ", "\u2581", "aaaaaaa", "\n", "\n ", " \n", "'s", "a" * 3000, " " * 300]


def varied_texts(count: int) -> list[str]:
    """So many and a few: many scripts, emoji, control characters, spaces and new lines at all places, odd ones."""
    chance = random.Random(5)
    found = ["".join(chance.choice(PARTS) for _ in range(chance.randint(1, 20))) for _ in range(count - count // 8)]
    for _ in range(count // 8):
        points = (chance.choice((0x250, 0x3000, 0x11000, 0x1FB00)) for _ in range(chance.randint(1, 12)))
        found.append("".join(chr(chance.randrange(end)) for end in points).encode(errors="ignore").decode())
    return _FIXED + found


def packaged(package: str, file: str) -> bytes:
    """A file that lies inside an installed package, which is not imported; the test is skipped where it is missing."""
    spec = find_spec(package)
    paths = [Path(place) / file for place in (spec.submodule_search_locations or ())] if spec else []
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        pytest.skip(f"{package} is not installed")
    return path.read_bytes()


def pairs_of_bytes(texts: list[str]) -> dict[str, Any]:
    """A tokenizer.json of bytes, and of the pairs of them that these texts have most: whatever cuts a pair is seen."""
    letters = tiktoken._alphabet()
    spelled = ["".join(letters[byte] for byte in text.encode()) for text in texts]
    counted = Counter(text[at : at + 2] for text in spelled for at in range(len(text) - 1))
    pairs = sorted((pair for pair in counted if len(pair) == 2), key=lambda pair: (-counted[pair], pair))[:700]
    tokens = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", *sorted(letters.values()), *pairs]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    added = [{"id": number, "content": token, "special": True} for number, token in enumerate(tokens[:4])]
    return {"model": {"vocab": vocabulary, "merges": [list(pair) for pair in pairs]}, "added_tokens": added}


@cache
def small_ranks() -> Mapping[bytes, int]:
    """Some hundred tokens as merging makes them, one that no two others make, and one that only whole words are."""
    letters = {character: byte for byte, character in tiktoken._alphabet().items()}
    pieces = sorted(byte_level().get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    found = [bytes(letters[c] for c in piece) for piece, _ in pieces if not piece.startswith("<|")]
    found += [b" fox jumped", " 世".encode()[:2], b"zqzq"]
    return {token: rank for rank, token in enumerate(dict.fromkeys(found))}


def written(ranks: Mapping[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


@cache
def sentencepiece() -> bytes:
    """A small tokenizer.model of Llama's kind."""
    import sentencepiece as library

    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 10), model_writer=out, model_type="bpe", byte_fallback=True, vocab_size=400,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return out.getvalue()
