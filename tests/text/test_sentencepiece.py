"""tokenizer.model without its library: ids and texts equal to sentencepiece's own, and no file does harm."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moecli.errors import TextError
from moecli.text import sentencepiece
from moecli.text.tokenizer import Tokenizer
from tests.support.toy_tokenizers import write_json
from tests.support.vocabularies import packaged, varied_texts

spm = pytest.importorskip("sentencepiece")

CORPUS = [
    "the sea and the ship and the bell", "def f(x):", "    return x", "one two three, four  five", "日本語 テキスト",
    "Привет мир, как дела", "naïve café ﬁne ① Ⅷ ½", "你好 世界 🎉🎉", "aaaa aaa aa a aaaaa baaab",
] * 30  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Llama's": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False},
    "Grok's, with pieces of its users": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "user_defined_symbols": ["<sep>", "\n\n", "aa ", "  ", "\t"]},
    "bpe, characters mapped": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc"},
    "bpe without bytes": {"model_type": "bpe", "normalization_rule_name": "nfkc_cf", "vocab_size": 180},
    "bpe across words": {"model_type": "bpe", "byte_fallback": True, "split_by_whitespace": False,
                         "allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
    "no dummy space": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "T5's": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "vocab_size": 180},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity",
                           "remove_extra_whitespaces": False},
    "unigram with pieces of its users": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc",
                                         "user_defined_symbols": ["<sep>", "aa ", "日本"]},
    "the space after": {"model_type": "unigram", "byte_fallback": True, "treat_whitespace_as_suffix": True},
}  # fmt: skip


@cache
def trained(kind: str) -> bytes:
    file = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=file, character_coverage=0.98, hard_vocab_limit=False,
        minloglevel=2, control_symbols=["<ctl>"], num_threads=1, **{"vocab_size": 420} | KINDS[kind],
    )  # fmt: skip
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_sentencepiece(kind: str) -> None:
    theirs = spm.SentencePieceProcessor(model_proto=trained(kind))
    ours = sentencepiece.backend(sentencepiece.read(trained(kind)))
    for text in varied_texts(2000 if kind.startswith(("Llama", "Grok")) else 500):
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
    chance = random.Random(7)
    for _ in range(120):
        ids = [
            number for number in chance.choices(range(theirs.get_piece_size()), k=8) if not theirs.is_control(number)
        ]
        assert ours.decode(ids) == theirs.decode(ids), ids


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(kind: str = "Llama's", **config: Any) -> Path:
        (tmp_path / "tokenizer.model").write_bytes(trained(kind))
        write_json(tmp_path / "tokenizer_config.json", config)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("config", "before"),
    [({}, [1]), ({"add_bos_token": True}, [1]), ({"add_bos_token": False}, []), ({"add_bos_token": None}, [1]),
     ({"bos_token": "</s>"}, [2]), ({"bos_token": {"content": "<s>"}}, [1])],
)  # fmt: skip
def test_bos_is_added_as_llamas_classes_do(config: Any, before: list[int], model_folder: Callable[..., Path]) -> None:
    theirs = spm.SentencePieceProcessor(model_proto=trained("Llama's"))
    tokenizer = Tokenizer.load(model_folder(**config))
    assert tokenizer.encode("the  sea\n") == before + theirs.encode("the  sea\n")
    assert tokenizer.eos_id == 2 and len(tokenizer.byte_ids) == 256


def test_groks_own_code_adds_no_bos(model_folder: Callable[..., Path]) -> None:
    theirs = spm.SentencePieceProcessor(model_proto=trained("Grok's, with pieces of its users"))
    path = model_folder("Grok's, with pieces of its users")
    write_json(path / "config.json", {"architectures": ["Grok1ModelForCausalLM"]})
    assert Tokenizer.load(path).encode("the  sea\n\n") == theirs.encode("the  sea\n\n")
    write_json(path / "config.json", {"architectures": ["MixtralForCausalLM"]})
    assert Tokenizer.load(path).encode("the sea") == [1, *theirs.encode("the sea")]


@pytest.mark.parametrize(("legacy", "spaced"), [({}, True), ({"legacy": True}, True), ({"legacy": False}, False)])
def test_text_after_a_special_token(legacy: Any, spaced: bool, model_folder: Callable[..., Path]) -> None:
    theirs = spm.SentencePieceProcessor(model_proto=trained("Llama's"))
    ids = Tokenizer.load(model_folder(**legacy)).encode("<s>sea", special=False)
    assert ids[0] == 1 and theirs.decode(ids) == "sea"
    assert (theirs.id_to_piece(ids[1])[0] == "\u2581") is spaced


def test_added_tokens_are_cut_out(model_folder: Callable[..., Path]) -> None:
    path = model_folder()
    size = spm.SentencePieceProcessor(model_proto=trained("Llama's")).get_piece_size()
    write_json(path / "added_tokens.json", {"<|im_end|>": size + 1, "<|im_start|>": size})
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode("<|im_start|><|im_end|>", special=False) == [size, size + 1]
    assert tokenizer.size == size + 2


def field(number: int, wire: int, value: bytes) -> bytes:
    return bytes([number << 3 | wire]) + (bytes([len(value)]) if wire == 2 else b"") + value


def piece(text: bytes, kind: int = 1) -> bytes:
    return field(1, 2, field(1, 2, text) + field(3, 0, bytes([kind])))


UNKNOWN = piece(b"<unk>", 2)
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no pieces"),
    "text": (b"not at all a model", "wire type|claims|cut short"),
    "no unknown piece": (piece(b"a"), "0 of its pieces are the unknown one"),
    "two unknown pieces": (UNKNOWN + piece(b"x", 2), "2 of its pieces are the unknown one"),
    "a piece twice": (UNKNOWN + piece(b"a") * 2, "there twice"),
    "an empty piece": (UNKNOWN + piece(b""), "empty"),
    "not UTF-8": (UNKNOWN + piece(b"\xff"), "cannot be read"),
    "an unknown kind": (UNKNOWN + piece(b"a", 9), "cannot be read"),
    "bytes without fallback": (UNKNOWN + piece(b"<0x0A>", 6), "may not be one"),
    "fallback without bytes": (UNKNOWN + field(2, 2, field(3, 0, b"\x02") + b"\x98\x02\x01"), "0 of the 256 bytes"),
    "a field too long": (b"\x0a\xff\xff\xff\xff\x7f", "claims"),
    "a varint without end": (b"\x08" + b"\xff" * 50, "cut short"),
    "a float cut short": (field(1, 2, b"\x15\x00"), "cannot be read"),
    "a damaged table": (UNKNOWN + field(3, 2, field(2, 2, b"\xff" * 40)), "table of characters"),
    "words": (UNKNOWN + field(2, 2, field(3, 0, b"\x03")), "cuts text by word"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_explained(case: str, tmp_path: Path) -> None:
    content, said = DAMAGE[case]
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TextError, match=said):
        Tokenizer.load(tmp_path)


@pytest.mark.slow
def test_any_change_of_a_file_is_read_or_refused() -> None:
    chance = random.Random(3)
    for _ in range(120):
        content = bytearray(trained("T5's"))
        for _ in range(chance.randint(1, 5)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            made = sentencepiece.backend(sentencepiece.read(bytes(content[: chance.choice([None, 5000])])))
            made.decode(made.encode("the ﬁne sea ①\n").ids)
        except TextError:
            pass


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_ids_and_texts_of_mixtrals_own_vocabularies(file: str) -> None:
    content = packaged("mistral_common", f"data/{file}")
    theirs = spm.SentencePieceProcessor(model_proto=content)
    ours = sentencepiece.backend(sentencepiece.read(content))
    for text in varied_texts(2000):
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
