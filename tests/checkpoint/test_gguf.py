"""GGUF files run, are packed and inspected: their weights are those of llama.cpp's own package, to the bit."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from moecli.checkpoint.encodings.ggml import TYPES
from moecli.checkpoint.gguf import read_model
from moecli.errors import MoecliError
from moecli.library.gguf import unfolded
from moecli.store.source import open_source
from moecli.text.chat import Message
from moecli.text.defaults import read_generation_defaults
from moecli.text.gguf import _COMPOSED, _PATTERNS, texts_of
from moecli.text.tiktoken import GPT4
from moecli.text.tokenizer import Tokenizer
from tests.fuzz.mutations import Mutator
from tests.support.checkpoints import prompt
from tests.support.gguf_files import FAMILIES, gguf, goldens, make, random_blocks, with_merges, with_pieces
from tests.support.in_process import moecli
from tests.support.llama_cpp import PRE, PROMPT, TOKENS, digest, hashed, texts, with_tokenizer
from tests.support.running import greedy, load, score
from tests.support.stores import contents, packed
from tests.support.toy_tokenizers import byte_level
from tests.support.vocabularies import sentencepiece, varied_texts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_decoded_as_by_llama_cpp(kind: str) -> None:
    """By its C, whose hashes are kept; and by its package, where that knows the type."""
    blocks = random_blocks(kind)
    numbers = TYPES[kind].decode(torch.from_numpy(blocks)).float()
    assert digest(numbers.numpy().tobytes()) == goldens()["types"][kind]
    if kind not in ("Q1_0", "Q2_0"):
        code = gguf.GGMLQuantizationType[kind]
        assert gguf.GGML_QUANT_SIZES[code] == (TYPES[kind].block, TYPES[kind].size)
        assert np.array_equal(gguf.quants.dequantize(blocks, code), numbers.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_s_own_files_are_read_and_give_its_tokens(family: str, tmp_path: Path) -> None:
    """What its converter wrote of a checkpoint means what config.json means, and goes on as llama.cpp goes on."""
    golden = goldens()["families"][family]
    made = make(family, tmp_path)
    reader = gguf.GGUFReader(made.file)
    written = {
        each.name: [each.tensor_type.name, each.shape.tolist()[::-1], digest(each.data.tobytes())]
        for each in reader.tensors
    }
    assert written == golden["tensors"]
    ours, plain = open_source(unfolded(made.file)).spec, open_source(made.plain).spec
    if family != "glm4_moe_lite":  # which llama.cpp calls DeepSeek's
        assert ours == replace(plain, stored_dtype=ours.stored_dtype)
    assert greedy(load(unfolded(made.file), "fp32"), prompt(PROMPT), TOKENS) == golden["tokens"]


CASES = [
    ("mixtral", "F16", {}), ("mixtral", "BF16", {}), ("mixtral", "Q8_0", {"single": True}), ("mixtral", "Q4_K", {}),
    ("olmoe", "Q4_0", {"most": 9}), ("qwen3_moe", "Q6_K", {}), ("deepseek_v2", "Q8_0", {"joined": True}),
    ("deepseek_v3", "Q5_K", {}), ("dbrx", "IQ4_XS", {}), ("grok-1", "Q5_0", {}), ("mixtral", "IQ2_S", {}),
    ("qwen3_moe", "TQ1_0", {"fused": True}), ("granitemoe", "F16", {}), ("ernie4_5_moe", "Q8_0", {}),
    ("llama", "Q5_1", {"tie_word_embeddings": True}), ("gpt_oss", "MXFP4", {}), ("qwen3_5_moe", "F16", {}),
    ("jamba", "F16", {}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "changes"), CASES, ids=lambda value: str(value))
def test_it_says_what_the_decoded_weights_say(
    family: str, kind: str, changes: dict[str, object], tmp_path: Path
) -> None:
    made = make(family, tmp_path, kind, **changes)
    folder = unfolded(made.file)
    ours, plain = load(folder, "fp32"), load(made.plain, "fp32")
    ids = prompt(40)
    assert torch.equal(score(ours, ids), score(plain, ids))
    assert greedy(ours, ids[:8], 12) == greedy(plain, ids[:8], 12)
    one, other = (contents(packed(each, tmp_path / f"{each.name}.q8", "q8").folder) for each in (folder, made.plain))
    assert all(one[name] == other[name] for name in one if name.startswith("experts"))
    found = moecli("inspect", made.file, "--json").json
    assert found["runnable"] and not found["differences"] and found["location"] == str(made.file)
    assert found["parameters"] == moecli("inspect", made.plain, "--json").json["parameters"]
    assert found["stored_format"] == {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(kind, kind)
    assert open_source(folder).dtype == {"F32": "fp32", "F16": "fp16"}.get(kind, "bf16")


_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CUT = {"gpt-2": None, "llama-bpe": GPT4.pattern}  # how text is split: llama.cpp's name of a pattern, and the pattern


@pytest.mark.parametrize("pre", CUT)
def test_a_vocabulary_of_bytes_gives_the_ids_of_its_tokenizer_json(pre: str, tmp_path: Path) -> None:
    """And its special tokens, its chat template and the tokens that end an answer."""
    document = json.loads(byte_level().to_str())
    if CUT[pre] is not None:
        splits = [
            {"type": "Split", "pattern": {"Regex": CUT[pre]}, "behavior": "Isolated", "invert": False},
            document["pre_tokenizer"] | {"use_regex": False},
        ]
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splits}
    made = make("mixtral", tmp_path, tokenizer=with_merges(document, pre, _TEMPLATE), vocab_size=512)
    ours, theirs = Tokenizer.load(unfolded(made.file)), Backend.from_str(json.dumps(document))
    for text in varied_texts(400):
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False).ids, text
    ids = ours.encode("the cat <|im_end|> sat")
    assert ids[0] == ours.bos_id == theirs.token_to_id("<|bos|>") and theirs.token_to_id("<|im_end|>") in ids
    assert ours.decode(ids) == "the cat  sat" and ours.eos_id == theirs.token_to_id("<|eos|>")
    assert read_generation_defaults(unfolded(made.file)).eos_ids == {ours.eos_id}
    rendered = "<|im_start|>user\nhi<|im_end|>\n"
    assert ours.encode_chat([Message("user", "hi")]) == ours.encode(rendered, special=False)


def test_pieces_give_the_ids_of_the_sentencepiece_model(tmp_path: Path) -> None:
    made = make("mixtral", tmp_path, tokenizer=with_pieces(sentencepiece()), vocab_size=1024)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "tokenizer.model").write_bytes(sentencepiece())
    ours, theirs = Tokenizer.load(unfolded(made.file)), Tokenizer.load(made.plain, tmp_path / "given")
    for text in varied_texts(400):
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)


def test_a_file_goes_through_every_command(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_merges(json.loads(byte_level().to_str()), "gpt-2")
    made = make("qwen3_moe", tmp_path, "Q4_K", tokenizer=tokenizer, vocab_size=512)
    greedily = ("The sea", "-n", "4", "--temperature", "0", "--json")
    answer = moecli("run", made.file, *greedily).json
    monkeypatch.chdir(tmp_path)
    assert answer["model"] == "tiny" and moecli("run", "tiny.gguf", *greedily).json["text"] == answer["text"]
    assert moecli("inspect", made.file, "--routing", "--prompt", "The sea", "--max-tokens", "2", "--json").code == 0
    memory = moecli("memory", made.file, "--json").json
    assert memory["runnable"] and memory["stored_format"] == "Q4_K"
    packing = moecli("pack", made.file, "--dtype", "auto", "-o", tmp_path / "packed")
    assert "changed weights by" in packing.err and "q4 " in packing.err
    assert moecli("verify", tmp_path / "packed").code == 0
    assert str(made.file) in (tmp_path / "packed" / "manifest.json").read_text()
    shutil.rmtree(home)
    made.file.unlink()
    assert len(moecli("run", tmp_path / "packed", *greedily).json["text"])
    assert moecli("inspect", tmp_path / "packed", "--json").json["runnable"]


def test_a_file_that_changed_is_read_anew(tmp_path: Path, home: Path) -> None:
    made, other = make("mixtral", tmp_path / "one"), make("olmoe", tmp_path / "other")
    assert moecli("inspect", made.file, "--json").json["family"] == "mixtral"
    assert moecli("memory", made.file, "--json").code == 0 and len(list((home / "gguf").iterdir())) == 1
    other.file.replace(made.file)
    assert moecli("inspect", made.file, "--json").json["family"] == "olmoe"


@pytest.mark.parametrize("pre", _PATTERNS)
def test_however_words_are_split_no_text_is_lost(pre: str) -> None:
    document = json.loads(byte_level().to_str())
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in document["model"]["merges"]]
    said = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges}
    made = texts_of({f"tokenizer.ggml.{key}": value for key, value in said.items()})
    backend = Backend.from_str(made["tokenizer.json"].decode())
    for text in varied_texts(300):
        composed = unicodedata.normalize("NFC", text) if pre in _COMPOSED else text
        assert backend.decode(backend.encode(text).ids, skip_special_tokens=False) == composed


# Texts of which llama.cpp's ids are others, where it departs from the models' own patterns: a long s is no 's to it; it
# takes whatever is not a to z for upper case, and no mark for a letter; V2's digits stay together.
OTHERS = {
    **dict.fromkeys(("llama-bpe", "dbrx", "glm4", "qwen2", "qwen35", "hunyuan", "bailingmoe"), 1),
    "minimax-m2": 4, "tekken": 3, "kimi-k2": 5, "deepseek-llm": 36,
}  # fmt: skip


@pytest.mark.parametrize("pre", PRE)
def test_ids_are_those_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    """Of texts with every script, on vocabularies in which each cut between two words changes ids."""
    made = make("llama", tmp_path, tokenizer=with_tokenizer(pre), vocab_size=1024)
    ours = Tokenizer.load(unfolded(made.file))
    pairs = list(zip(texts(), goldens()["tokenizers"][pre], strict=True))
    assert sum(hashed(ours.encode(text)) != ids for text, ids in pairs) == OTHERS.get(pre, 0) and len(pairs) > 100


def test_deepseek_cuts_as_its_own_tokenizer_does() -> None:
    """Its words have letters with a case and no others; digits are alone in V2 and in threes in V3."""
    expected = {
        "deepseek-llm": ["Sea", " ", "1", "2", "3", "4", "\n", "\n", "漢字かな", "!?", " x"],
        "deepseek-v3": ["Sea", " ", "123", "4", "\n\n", "漢字かな", "!?", " x"],
    }
    for pre, words in expected.items():
        said = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["a"]}
        made = json.loads(texts_of(said | {"tokenizer.ggml.merges": []})["tokenizer.json"])
        splits = made["pre_tokenizer"]["pretokenizers"][:-1]
        patterns = [Regex(each["pattern"]["Regex"]) for each in splits]
        splitter = pre_tokenizers.Sequence([pre_tokenizers.Split(each, "isolated") for each in patterns])
        assert [word for word, _ in splitter.pre_tokenize_str("Sea 1234\n\n漢字かな!? x")] == words


def refused(file: Path) -> str:
    """The sentence that `inspect` and `run` end with."""
    sentences = set()
    for command in (("inspect", file), ("run", file, "hi"), ("memory", file), ("pack", file)):
        ended = moecli(*command)
        assert ended.code == 1 and re.fullmatch(r"error: [^\n]+\n(hint: [^\n]+\n)?", ended.failure), ended.err
        sentences.add(ended.failure.splitlines()[0])
    assert len(sentences) == 1
    return sentences.pop()


def written(file: Path, write: Callable[[gguf.GGUFWriter], object], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(file, architecture)
    write(writer)
    writer.add_tensor("token_embd.weight", np.zeros((8, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    other = written(tmp_path / "a.gguf", lambda writer: None, "rwkv7")
    assert "of the architecture 'rwkv7' are not read" in refused(other)
    assert "lacks 'llama.attention.head_count'" in refused(written(tmp_path / "b.gguf", lambda writer: None))
    made = make("mixtral", tmp_path / "c", "Q8_0")
    content = made.file.read_bytes()
    place = content.index(b"blk.0.ffn_down_exps.weight") + len(b"blk.0.ffn_down_exps.weight") + 4 + 3 * 8
    made.file.write_bytes(content[:place] + (9).to_bytes(4, "little") + content[place + 4 :])
    assert "'blk.0.ffn_down_exps.weight' in Q8_1, which is not read" in refused(made.file)
    strange = {"llama.attention.sliding_window": 4096, "llama.residual_scale": 0.5}
    assert "says 'llama.attention.sliding_window' (and 1 more), which is not known" in refused(
        make("mixtral", tmp_path / "f", said=strange).file
    )
    sharp = {"llama.expert_gating_func": 2}
    assert "'llama.expert_gating_func' of the GGUF file is '2', which is not supported" in refused(
        make("mixtral", tmp_path / "g", said=sharp).file
    )
    scaled = written(tmp_path / "i.gguf", lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)))
    assert "scales positions by the tensor 'rope_freqs.weight', which is not read" in refused(scaled)
    part = written(tmp_path / "h.gguf", lambda writer: writer.add_type("adapter"))
    assert "is a low-rank adapter, no model" in refused(part)
    assert "is no GGUF file" in refused(Path(shutil.copy(made.plain / "model.safetensors", tmp_path / "d.gguf")))
    for version, said in ((b"\1\0\0\0", "version 1"), (b"\0\0\0\3", "another byte order")):
        (tmp_path / "e.gguf").write_bytes(b"GGUF" + version + content[8:])
        assert said in refused(tmp_path / "e.gguf")


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    """They stand behind the others, are counted among the blocks, and change nothing."""
    said = {"glm4moe.block_count": 3, "glm4moe.nextn_predict_layers": 1}
    more = make(
        "glm4_moe", tmp_path / "more", said=said,
        tokenizer=lambda writer: writer.add_tensor("blk.2.nextn.eh_proj.weight", np.ones((32, 64), np.float32)),
    )  # fmt: skip
    found = moecli("inspect", more.file, "--json").json
    assert found["layers"] == 2 and not found["differences"]
    assert [(each["reason"], each["parameters"]) for each in found["excluded"]] == [("multi-token prediction", 2048)]
    golden = goldens()["families"]["glm4_moe"]["tokens"]
    assert greedy(load(unfolded(more.file), "fp32"), prompt(PROMPT), TOKENS) == golden


def test_parts_that_are_missing_or_mixed_up(tmp_path: Path) -> None:
    made = make("olmoe", tmp_path, most=9)
    assert made.file.name == "tiny-00001-of-00003.gguf"
    assert moecli("inspect", tmp_path / "tiny-00002-of-00003.gguf", "--json").json["family"] == "olmoe"
    second = tmp_path / "tiny-00002-of-00003.gguf"
    content = second.read_bytes()
    second.unlink()
    assert "1 of 3 parts are missing, tiny-00002-of-00003.gguf first" in refused(made.file)
    second.write_bytes((tmp_path / "tiny-00003-of-00003.gguf").read_bytes())
    assert "it is another part of its model than its name says" in refused(made.file)
    second.write_bytes(content[:-64])
    assert "it is cut short" in refused(made.file)


def test_a_scale_that_is_no_number_ends_in_one_sentence(tmp_path: Path) -> None:
    made = make("mixtral", tmp_path, "Q8_0")
    stored = read_model(made.file).tensors["blk.1.ffn_up_exps.weight"]
    with made.file.open("r+b") as file:
        file.seek(stored.offset)
        file.write(b"\0\x7c")  # infinite
    ended = moecli("pack", made.file, "-o", tmp_path / "packed", "--yes")
    assert ended.code == 1 and "holds a scale that is infinite or no number" in ended.failure


def test_a_file_without_a_tokenizer_that_is_read_asks_for_one(tmp_path: Path) -> None:
    made = make("mixtral", tmp_path)
    ended = moecli("run", made.file, "hi")
    assert ended.code == 1 and "no tokenizer that can be read" in ended.failure and "--tokenizer" in ended.failure
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert moecli("run", made.file, "hi", "-n", "2", "--tokenizer", tmp_path / "tokenizer.json").code == 0


def test_mutations_of_the_head_end_in_one_sentence(tmp_path: Path) -> None:
    """Any byte of it changed: what is read is a model, or one error."""
    made = make("mixtral", tmp_path, "Q8_0", tokenizer=with_pieces(sentencepiece()), vocab_size=1024)
    content = made.file.read_bytes()
    start = min(each.offset for each in read_model(made.file).tensors.values())
    mutator = Mutator("gguf")
    (tmp_path / "case.gguf").touch()
    ended = Counter()
    for number in range(40):
        head = mutator.random.choice([mutator.damaged, mutator.nudged])(content[:start])
        (tmp_path / "case.gguf").write_bytes(head.ljust(start, b"\0")[:start] + content[start:])
        try:
            folder = unfolded(tmp_path / "case.gguf")
            open_source(folder)
            Tokenizer.load(folder)
            ended["read"] += 1
        except MoecliError as error:
            assert "\n" not in error.message and error.message.isprintable(), number
            ended["refused"] += 1
    assert ended["read"] > 2 and ended["refused"] > 10
