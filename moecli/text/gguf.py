"""The tokenizer inside a GGUF file -> the small files that a model folder would have it in."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from moecli.errors import TextError
from moecli.text.sentencepiece import Algorithm, Kind
from moecli.text.tiktoken import GPT4, KIMI

_DAMAGED = "the file is damaged: fetch it again"
_KINDS = frozenset(map(int, Kind))
_LETTERS = r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u10d0-\u10ff]]"  # as they were when DeepSeek listed them: Georgian had no case
_PUNCTUATION = r"[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_DEEPSEEK_V2 = (
    r"[\r\n]", rf"\s?{_LETTERS}+", rf"\s?{_PUNCTUATION}+", r"\s+$", r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)  # fmt: skip
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}", r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)  # fmt: skip
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_QWEN35 = rf"{_ENDINGS}|{_MARKED}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _SIGNS = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
)
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS}|{_SPACES}"
_LING = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
# By llama.cpp's name of them: the patterns of the words that are cut each by itself.
_PATTERNS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "olmo"), (_GPT2,)),
    **dict.fromkeys(("refact", "starcoder", "smollm"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), (GPT4.pattern,)),
    **dict.fromkeys(("glm4", "chatglm-bpe"), (GPT4.pattern,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "hunyuan", "megrez"), (_QWEN2,)),
    "qwen35": (_QWEN35,),
    **dict.fromkeys(("bailingmoe", "bailingmoe2"), (_LING,)),
    **dict.fromkeys(("gpt-4o", "minimax-m2"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
    "kimi-k2": (KIMI.pattern,),
    "deepseek-llm": _DEEPSEEK_V2,
    **dict.fromkeys(("deepseek-v3", "deepseek-r1"), _DEEPSEEK_V3),
}
# A word that is a token is not cut, whatever merging makes of it; where no key says so, text begins with bos as well.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
_COMPOSED = ("qwen2", "qwen35", "deepseek-r1-qwen", "megrez", "hunyuan")  # text is brought to Unicode's form C before
_ENDS = ("eos", "eot", "eom")


def tokenizer_in(metadata: Mapping[str, Any]) -> str | None:
    """The file that `texts_of` makes of its tokenizer; None where it holds none that is read."""
    tokens, kind = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.model")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    if kind == "llama":
        return "tokenizer.model"
    return "tokenizer.json" if kind == "gpt2" and metadata.get("tokenizer.ggml.pre") in _PATTERNS else None


def texts_of(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The files by name: tokenizer.json or tokenizer.model, tokenizer_config.json, generation_config.json.

    None of the first two where the file holds no tokenizer that is read: `run` then says what to do about it.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    settings = _settings(metadata, tokens if isinstance(tokens, list) else [])
    found = {
        "tokenizer_config.json": _written(settings),
        "generation_config.json": _written({"eos_token_id": list(_end_ids(metadata))}),
    }
    if (name := tokenizer_in(metadata)) == "tokenizer.model":
        found[name] = _sentencepiece(metadata, tokens or [])
    elif name is not None:
        found[name] = _written(_byte_level(metadata, tokens or []))
    return found


def _settings(metadata: Mapping[str, Any], tokens: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("bos", "eos", "unknown", "padding"):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(number) is int and 0 <= number < len(tokens) and isinstance(tokens[number], str):
            found[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[number]
    default = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    found["add_bos_token"] = metadata.get("tokenizer.ggml.add_bos_token", default) is True
    template = metadata.get("tokenizer.chat_template")
    return found | ({"chat_template": template} if isinstance(template, str) else {})


def _end_ids(metadata: Mapping[str, Any]) -> Iterator[int]:
    for name in _ENDS:
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(number) is int and 0 <= number < 2**31:
            yield number


def _kinds(metadata: Mapping[str, Any], count: int) -> list[int]:
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return [Kind.NORMAL] * count
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in _KINDS for kind in kinds):
        raise TextError("the GGUF file has tokens without a kind", _DAMAGED)
    return kinds


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> bytes:
    """The model as SentencePiece's own file has it: pieces, and what of the training and the normaliser matters."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(type(each) is float for each in scores):
        raise TextError("the GGUF file has tokens without a score", _DAMAGED)
    kinds = _kinds(metadata, len(tokens))
    pieces = b"".join(
        _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _whole(3, kind))
        for text, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    trained = _whole(3, Algorithm.BPE) + _whole(35, Kind.BYTE in kinds)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    remove = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False) is True
    return pieces + _bytes(2, trained) + _bytes(3, _whole(3, prefix) + _whole(4, remove) + _whole(5, 1))


def _bytes(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _whole(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """tokenizer.json of a vocabulary in GPT-2's alphabet of bytes."""
    merges, pre = metadata.get("tokenizer.ggml.merges"), metadata["tokenizer.ggml.pre"]
    if not isinstance(merges, list) or not all(isinstance(pair, str) for pair in merges):
        raise TextError("the GGUF file has tokens without merges", _DAMAGED)
    kinds = _kinds(metadata, len(tokens))
    kept = {text: number for number, text in enumerate(tokens) if kinds[number] != Kind.UNUSED}
    added = [
        {
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kinds[number] == Kind.CONTROL,
        }
        for number, text in enumerate(tokens)
        if kinds[number] in (Kind.CONTROL, Kind.USER_DEFINED) and text
    ]  # fmt: skip
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in _PATTERNS[pre]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "post_processor": None,
        "decoder": level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS, "vocab": kept, "merges": merges,
        },
    }  # fmt: skip


def _written(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
