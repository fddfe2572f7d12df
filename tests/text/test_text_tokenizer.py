"""Ids and text of a model folder, compared with transformers where it is the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as Backend

from moecli.errors import TextError
from moecli.text.chat import Message
from moecli.text.tokenizer import Tokenizer
from tests.support.oracle import transformers
from tests.support.toy_tokenizers import byte_level, metaspace, write_json

Folder = Callable[..., Path]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TEXTS = [
    "Hello world",
    " leading",
    "two  spaces",
    "世界 🎉 é",
    "",
    "a</s>b",
    "<|im_start|>user\nhi<|im_end|>\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_agree_with_transformers(folder: Folder, backend: Backend, text: str) -> None:
    path = folder(backend, tokenizer_config=SPECIALS if backend.token_to_id("<s>") else {})
    ours, theirs = Tokenizer.load(path), transformers().PreTrainedTokenizerFast.from_pretrained(path)
    for special in (True, False):
        ids = ours.encode(text, special=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_bos_is_added_once_also_when_the_text_brings_it(folder: Folder) -> None:
    tokenizer = Tokenizer.load(folder(metaspace(), tokenizer_config=SPECIALS))
    assert tokenizer.encode("hi")[0] == tokenizer.bos_id == 1
    assert tokenizer.encode("<s>hi").count(1) == 1
    assert tokenizer.encode("hi", special=False).count(1) == 0
    assert tokenizer.encode("") == [1]


def test_add_bos_token_counts_where_the_post_processor_adds_none(folder: Folder) -> None:
    backend = metaspace()
    backend.post_processor = processors.ByteLevel()
    plain = Tokenizer.load(folder(backend, tokenizer_config=SPECIALS)).encode("hi")
    with_bos = Tokenizer.load(folder(backend, tokenizer_config=SPECIALS | {"add_bos_token": True}))
    assert with_bos.encode("hi") == [1, *plain]
    without = Tokenizer.load(folder(backend, tokenizer_config=SPECIALS | {"add_bos_token": False}))
    assert without.encode("hi") == plain


def test_add_bos_token_does_not_double_what_the_post_processor_adds(folder: Folder) -> None:
    path = folder(metaspace(), tokenizer_config=SPECIALS | {"add_bos_token": True, "add_eos_token": True})
    theirs = transformers().PreTrainedTokenizerFast.from_pretrained(path)
    assert Tokenizer.load(path).encode("hi") == theirs.encode("hi")


@pytest.mark.parametrize("config", [SPECIALS, {}])
def test_no_eos_ends_a_prompt(folder: Folder, config: dict[str, str]) -> None:
    backend = metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    path = folder(backend, tokenizer_config=config)
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode("hi") == backend.encode("hi").ids[:-1]
    assert tokenizer.encode("hi</s>")[-1] == 2, "an EOS the user wrote stays"
    write_json(path / "config.json", {"is_encoder_decoder": True})
    assert Tokenizer.load(path).encode("hi") == backend.encode("hi").ids, "T5 wants it"


def test_other_tokens_before_the_text_stay(folder: Folder) -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> <|bos|> $A", special_tokens=[("<|im_start|>", 2), ("<|bos|>", 0)]
    )
    tokenizer = Tokenizer.load(folder(backend))
    assert tokenizer.encode("hi")[:2] == [2, 0]


def test_truncation_and_padding_of_training_are_off(folder: Folder) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ids = Tokenizer.load(folder(backend)).encode("The quick brown fox jumps over the lazy dog.")
    assert 4 < len(ids) < 64


@pytest.mark.parametrize("written", ["</s>", {"content": "</s>", "lstrip": False, "__type": "AddedToken"}])
def test_special_tokens_are_strings_or_objects(folder: Folder, written: Any) -> None:
    assert Tokenizer.load(folder(metaspace(), tokenizer_config={"eos_token": written})).eos_id == 2


def test_special_tokens_map_answers_like_transformers(folder: Folder) -> None:
    path = folder(metaspace(), tokenizer_config={"eos_token": "<s>"}, special_tokens_map={"eos_token": "</s>"})
    theirs = transformers().PreTrainedTokenizerFast.from_pretrained(path)
    assert Tokenizer.load(path).eos_id == theirs.eos_token_id == 2
    declared = {"eos_token": "<s>", "added_tokens_decoder": {"1": {"content": "<s>", "special": True}}}
    write_json(path / "tokenizer_config.json", declared)
    theirs = transformers().PreTrainedTokenizerFast.from_pretrained(path)
    assert Tokenizer.load(path).eos_id == theirs.eos_token_id == 1


def test_unknown_special_tokens_have_no_id(folder: Folder) -> None:
    tokenizer = Tokenizer.load(folder(byte_level(), tokenizer_config={"bos_token": "<nowhere>", "eos_token": None}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.id_of("<|eos|>")) == (None, None, 1)


def test_tokens_only_the_config_declares_are_added(folder: Folder) -> None:
    backend = byte_level()
    size = backend.get_vocab_size()
    declared = {str(size): {"content": "<|tool|>", "special": True, "normalized": False}}
    path = folder(backend, tokenizer_config={"added_tokens_decoder": declared})
    tokenizer, theirs = Tokenizer.load(path), transformers().PreTrainedTokenizerFast.from_pretrained(path)
    assert tokenizer.encode("a<|tool|>b") == theirs.encode("a<|tool|>b")
    assert tokenizer.id_of("<|tool|>") == size
    assert tokenizer.size == size + 1
    declared = {str(size + 7): {"content": "<|far|>", "special": True}}
    write_json(path / "tokenizer_config.json", {"added_tokens_decoder": declared})
    assert Tokenizer.load(path).id_of("<|far|>") is None, "never under an id the model did not learn"


ADDED: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens": {"<|end|>": 1, "<|start|>": 0}},
    "special by the map": {
        "added_tokens": {"<|start|>": 0, "<|end|>": 1},
        "special_tokens_map": {"additional_special_tokens": ["<|start|>", "<|end|>"]},
    },
    "the map alone": {"special_tokens_map": {"pad_token": "<|start|>", "additional_special_tokens": ["<|end|>"]}},
    "the config's list": {"tokenizer_config": {"pad_token": "<|start|>", "extra_special_tokens": ["<|end|>"]}},
    "the config's table": {
        "tokenizer_config": {"added_tokens_decoder": {"1": {"content": "<|end|>", "special": True},
                                                      "0": {"content": "<|start|>", "special": True}}}},
}  # fmt: skip


@pytest.mark.parametrize("case", ADDED)
def test_tokens_that_other_files_name_are_added_as_transformers_adds_them(folder: Folder, case: str) -> None:
    backend = byte_level()
    size = backend.get_vocab_size()
    files = {name: dict(value) for name, value in ADDED[case].items()}
    if "added_tokens" in files:
        files["added_tokens"] = {token: size + place for token, place in files["added_tokens"].items()}
    if (table := files.get("tokenizer_config", {}).get("added_tokens_decoder")) is not None:
        files["tokenizer_config"]["added_tokens_decoder"] = {str(size + int(place)): it for place, it in table.items()}
    path = folder(backend, config={"vocab_size": size + 2}, **{"tokenizer_config": {}, **files})
    tokenizer = Tokenizer.load(path)
    text = "<|start|>user\nhi<|end|>"
    assert tokenizer.encode(text)[0] == size and tokenizer.encode(text)[-1] == size + 1
    (path / "config.json").unlink()
    assert tokenizer.encode(text) == transformers().PreTrainedTokenizerFast.from_pretrained(path).encode(text)
    write_json(path / "config.json", {"vocab_size": size + 1})
    if case in ("the map alone", "the config's list"):
        assert Tokenizer.load(path).id_of("<|end|>") is None, "the model has no row for it"


def test_a_token_of_the_vocabulary_becomes_one_when_it_is_declared(folder: Folder) -> None:
    """Its merges are not there, so the vocabulary alone would never make it."""
    content = json.loads(byte_level().to_str())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["<|tool|>"] = size
    path = folder(Backend.from_str(json.dumps(content)), tokenizer_config={})
    assert size not in Tokenizer.load(path).encode("a<|tool|>b")
    write_json(path / "added_tokens.json", {"<|tool|>": size})
    assert size in Tokenizer.load(path).encode("a<|tool|>b")
    write_json(path / "added_tokens.json", {"<|tool|>": size + 1})
    assert size not in Tokenizer.load(path).encode("a<|tool|>b"), "another id than the model learned"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("<|user|>\nhi", ["<|user|>"]),
        ("<|im_start|>user\nhi<|im_end|>", []),
        ("<|eot_id|><|im_start|><|eot_id|><|header|>", ["<|eot_id|>", "<|header|>"]),
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>hi", ["<\uff5cbegin\u2581of\u2581sentence\uff5c>"]),
        ("<start_of_turn>user", ["<start_of_turn>"]),
        ("<nowhere>", ["<nowhere>"]),
        ("a <b> c | d |> <| e, <s>, x < y, [INST]", []),
        ("<||> <| |> <|\n|>", []),
    ],
)
def test_special_tokens_that_are_none_are_named(folder: Folder, text: str, named: list[str]) -> None:
    tokenizer = Tokenizer.load(folder(byte_level(), tokenizer_config={"bos_token": "<nowhere>"}))
    assert tokenizer.notes == ()
    tokenizer.encode(text)
    assert list(tokenizer.unknown) == named
    assert [note.split()[5].rstrip(":") for note in tokenizer.notes] == named


def test_a_template_that_names_an_unknown_token_is_named(folder: Folder) -> None:
    template = "{% for m in messages %}<|turn|>{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = Tokenizer.load(folder(byte_level(), tokenizer_config={"chat_template": template}))
    tokenizer.encode_chat([Message("user", "hi")])
    assert list(tokenizer.unknown) == ["<|turn|>"]


def test_size_counts_holes(folder: Folder) -> None:
    backend = Backend(models.BPE(vocab={"a": 0, "b": 9}, merges=[]))
    backend.add_special_tokens([AddedToken("b", special=True)])
    tokenizer = Tokenizer.load(folder(backend))
    assert tokenizer.size == 10
    assert tokenizer.decode([5, 1000]) == "", "padding rows of the embedding table have no text"


def test_special_tokens_in_chat_text_are_parsed(folder: Folder) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    path = folder(metaspace(), tokenizer_config=SPECIALS | {"chat_template": template})
    tokenizer, theirs = Tokenizer.load(path), transformers().PreTrainedTokenizerFast.from_pretrained(path)
    ids = tokenizer.encode_chat([Message("user", "hello")])
    expected = theirs.apply_chat_template([{"role": "user", "content": "hello"}], return_dict=False)
    assert ids == expected
    assert (ids[0], ids.count(1), ids[-1]) == (1, 1, 2)


@pytest.mark.parametrize("name", ["file", "text", "list"])
def test_where_a_template_lies(folder: Folder, name: str) -> None:
    named = [{"name": "tool_use", "template": "wrong"}, {"name": "default", "template": "right"}]
    inside = {"file": "wrong", "text": "right", "list": named}[name]
    path = folder(byte_level(), tokenizer_config={"chat_template": inside})
    if name == "file":
        (path / "chat_template.jinja").write_text("right", encoding="utf-8")
    template = Tokenizer.load(path).chat_template
    assert template is not None
    assert template.render([Message("user", "")]) == "right"


def test_a_base_model_has_no_template(bytes_tokenizer: Tokenizer) -> None:
    assert bytes_tokenizer.chat_template is None
    with pytest.raises(TextError, match="no chat template"):
        bytes_tokenizer.encode_chat([Message("user", "hi")])


def test_half_a_surrogate_pair_is_explained(bytes_tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match="surrogate"):
        bytes_tokenizer.encode("a\ud800")


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.tok.json", "tekken.json"])
def test_another_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(TextError, match="has no tokenizer that can be read") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint is not None
    assert name in caught.value.hint


DAMAGE: dict[str, tuple[str, bytes]] = {
    "empty": ("tokenizer.json", b""),
    "no model": ("tokenizer.json", b"{}"),
    "cut": ("tokenizer.json", byte_level().to_str().encode()[:-40]),
    "deep": ("tokenizer.json", b"[" * 100_000),
    "config not JSON": ("tokenizer_config.json", b"{"),
    "config deep": ("tokenizer_config.json", b"[" * 200_000),
    "config a list": ("tokenizer_config.json", b"[]"),
    "config not UTF-8": ("tokenizer_config.json", b'{"a": "\xff"}'),
    "declared a list": ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
    "declared no content": ("tokenizer_config.json", b'{"added_tokens_decoder": {"1": {}}}'),
    "template a number": ("tokenizer_config.json", b'{"chat_template": 3}'),
    "template not UTF-8": ("chat_template.jinja", b"\xff\xfe"),
    "map not JSON": ("special_tokens_map.json", b"nope"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_explained(folder: Folder, case: str) -> None:
    path = folder(byte_level())
    name, content = DAMAGE[case]
    (path / name).write_bytes(content)
    with pytest.raises(TextError, match=name.split(".")[0]):
        Tokenizer.load(path)


def test_a_panic_of_the_library_is_explained(folder: Folder) -> None:
    """A post-processor that names a token it does not define makes the Rust code panic."""
    path = folder(metaspace())
    content = json.loads((path / "tokenizer.json").read_bytes())
    content["post_processor"]["special_tokens"] = {}
    write_json(path / "tokenizer.json", content)
    with pytest.raises(TextError, match="cannot encode"):
        Tokenizer.load(path)


def test_a_file_beyond_the_bound_is_not_read(folder: Folder) -> None:
    path = folder(byte_level())
    with (path / "tokenizer.json").open("r+b") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(TextError, match="larger than 256 MiB"):
        Tokenizer.load(path)
