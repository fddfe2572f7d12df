"""Small real tokenizers of the kinds that MoE models ship, built with the `tokenizers` library."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, how are you? I am fine, thank you.",
    "STOP at the end of the story. User: hello Assistant: hi there Ünïcödé 你好 世界",
    "1 2 3 4 5 once upon a time there was a cat; the cat sat on the mat.",
] * 3


def byte_level() -> Backend:
    """Bytes in GPT-2's alphabet: a character may need several tokens (Qwen, DeepSeek, OLMoE, gpt-oss)."""
    return Backend.from_str(_trained_byte_level())


def metaspace() -> Backend:
    """SentencePiece style: "▁" for spaces, `<0x..>` for what is in no token (Mixtral, Phi-3.5-MoE)."""
    return Backend.from_str(_trained_metaspace())


def with_sentinels(size: int) -> Backend:
    """T5's kind (Switch): pieces by their likelihood, EOS behind a text, and sentinels up to `size` ids."""
    backend = Backend.from_str(_trained_unigram())
    count = size - backend.get_vocab_size()
    names = [f"<extra_id_{number}>" for number in reversed(range(count))]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return backend


@cache
def _trained_unigram() -> str:
    specials = ["<pad>", "</s>", "<unk>"]
    backend = Backend(models.Unigram([(token, 0.0) for token in specials], 2, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return str(backend.to_str())


@cache
def _trained_byte_level() -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return str(backend.to_str())


@cache
def _trained_metaspace() -> str:
    words = Backend(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False, limit_alphabet=50)
    words.train_from_iterator(CORPUS, trainer)
    learned = json.loads(words.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece in learned["vocab"] if piece not in specials]
    backend = Backend(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return str(backend.to_str())


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
