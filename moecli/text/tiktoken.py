"""Ranks of tiktoken (tiktoken.model, *.tiktoken), read without its library into a tokenizer with the same ids."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from moecli.errors import TextError
from moecli.text.segmentation import Segmenter

if TYPE_CHECKING:
    from tokenizers import NormalizedString, PreTokenizedString
    from tokenizers import Tokenizer as Backend

_MOST_RANKS = 4_000_000
_LONGEST_TOKEN = 1024  # bytes; the longest of any public vocabulary has 128
_HINT = "the file is damaged, or no vocabulary of tiktoken: download it again"

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a file of ranks leaves to the program that reads it.

    `special` gives special tokens by their distance from the number of ranks; `reserved` is how many ids behind the
    ranks are special whatever they are called, `composed` whether the text is brought to Unicode's form C before.
    """

    pattern: str  # of the words that are cut each by itself
    special: Mapping[int, str]
    reserved: int = 0
    composed: bool = False


_GPT4_PATTERN = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
# GPT-4's cl100k_base, with what DBRX adds.
GPT4 = Encoding(
    _GPT4_PATTERN,
    {
        1: "<|endoftext|>", 2: "<|fim_prefix|>", 3: "<|fim_middle|>", 4: "<|fim_suffix|>", 20: "<|endofprompt|>",
        21: "<|pad|>", 22: "<|im_start|>", 23: "<|im_end|>",
    },
)  # fmt: skip
KIMI = Encoding(
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDINGS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    {},
    reserved=258,
)
_ONE_DIGIT = _GPT4_PATTERN.replace("{1,3}", "")
_EXTRAS = {number: f"<|extra_{number}|>" for number in range(205)}
HUNYUAN = Encoding(
    _ONE_DIGIT,
    dict(enumerate(("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *_EXTRAS.values()))),
    composed=True,
)
QWEN = Encoding(
    _ONE_DIGIT,
    dict(enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_EXTRAS.values()))),
    composed=True,
)
# By the name of the file, of the class in tokenizer_config.json, or by the number of ranks.
ENCODINGS: Mapping[str | int, Encoding] = {
    "cl100k_base.tiktoken": GPT4, "TiktokenTokenizerWrapper": GPT4, 100_256: GPT4,
    "tiktoken.model": KIMI, "TikTokenTokenizer": KIMI, 163_584: KIMI,
    "hy.tiktoken": HUNYUAN, "HYTokenizer": HUNYUAN,
    "qwen.tiktoken": QWEN, "QWenTokenizer": QWEN, 151_643: QWEN,
}  # fmt: skip


def read(content: bytes, name: str) -> dict[bytes, int]:
    """The rank of each token, which is its id, in a file of that name. TextError if it is none."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            word, rank = line.split()
            token = base64.b64decode(word, validate=True)
            fits = 0 < len(token) <= _LONGEST_TOKEN and token not in ranks and len(rank) < 9
            ranks[token] = int(rank)
        except ValueError:
            fits = False
        if not fits or len(ranks) > _MOST_RANKS:
            raise TextError(f"{name} cannot be read: line {number} is no token and its rank", _HINT)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TextError(f"{name} cannot be read: its ranks are not 0 to {len(ranks) - 1}", _HINT)
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise TextError(f"{name} cannot be read: not every byte is a token", _HINT)
    return ranks


def encoding_of(name: str, tokenizer_class: Any, ranks: int) -> Encoding:
    """The encoding that a file of that name with so many ranks belongs to. TextError if none is known."""
    for key in (tokenizer_class, name, ranks):
        if isinstance(key, (str, int)) and key in ENCODINGS:
            return ENCODINGS[key]
    raise TextError(
        f"{name} does not say how text is split before its {ranks:,} ranks count, and no model is known that uses it",
        "those of DBRX (cl100k_base.tiktoken), Kimi, Hunyuan and Qwen are; add a tokenizer.json, or --tokenizer",
    )


def backend(ranks: Mapping[bytes, int], encoding: Encoding, declared: Mapping[int, str]) -> Backend:
    """A tokenizer with the special tokens of the encoding, but for those that the model has `declared` by id."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    count = len(ranks)
    special = {count + place: text for place, text in encoding.special.items()}
    special |= {number: f"<|reserved_token_{number}|>" for number in range(count, count + encoding.reserved)}
    special = {number: text for number, text in special.items() if number not in declared}
    letters = _alphabet()
    scores = {token.decode("latin-1").translate(letters): -float(rank) for token, rank in ranks.items()}
    vocabulary = {piece: int(-score) for piece, score in scores.items()}
    vocabulary |= {text: number for number, text in (special | dict(declared)).items() if number >= count}
    made = Backend(models.WordLevel(vocabulary, unk_token="!"))  # a token of every file; no piece is unknown
    if encoding.composed:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.PreTokenizer.custom(_Cutter(scores)),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special.values()])
    return made


class _Cutter:
    """Cuts a word into tokens, as the part of a `tokenizers` tokenizer that makes words."""

    def __init__(self, scores: Mapping[str, float]) -> None:
        self._whole = scores.keys()
        self._segmenter = Segmenter(scores, frozenset(), frozenset(), frozenset(), unigram=False)

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(self._split)

    def _split(self, _: int, text: NormalizedString) -> list[NormalizedString]:
        from tokenizers import NormalizedString

        return [NormalizedString(piece) for piece in self._pieces(str(text.normalized))]

    def _pieces(self, word: str) -> Iterator[str]:
        if word in self._whole:  # also one that no pair of tokens makes
            yield word
        else:
            yield from (piece for piece, _ in self._segmenter.cut(word))


@cache
def _alphabet() -> dict[int, str]:
    """GPT-2's character for each byte: itself where it shows, else one of those from U+0100 on."""
    shows = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {byte: chr(byte) for byte in shows} | {
        byte: chr(256 + place) for place, byte in enumerate(byte for byte in range(256) if byte not in shows)
    }
