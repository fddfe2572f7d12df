"""Damaged weights of every encoding, given to the readers alone: milliseconds a case, where a command takes tens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moecli.checkpoint.encodings.ggml import TYPES
from moecli.checkpoint.gguf import read_model
from moecli.checkpoint.reading import read_slice
from moecli.library.gguf import unfolded
from moecli.model.tensors import dense_tensors, expert_shapes
from moecli.store.source import open_source
from moecli.text.gguf import texts_of
from moecli.text.tokenizer import Tokenizer
from tests.fuzz.mutations import Mutator
from tests.support import encodings, gguf_files, toy_tokenizers, vocabularies

Read = Callable[[], object]
Case = Callable[[Mutator], Read]  # writes its files, and says what reads them
_FAMILIES = (
    "mixtral", "qwen3_moe", "deepseek_v3", "dbrx", "glm4_moe", "bailing_moe", "granitemoe", "minimax_m2", "grok-1",
    "gpt_oss", "llama4", "laguna", "lfm2_moe", "jamba", "granitemoehybrid", "nemotron_h", "qwen3_5_moe",
)  # fmt: skip


def decode(folder: Path) -> None:
    """Open the model of a folder and read every tensor outside its experts, and two experts of each layer."""
    weights = open_source(folder)
    for tensor in dense_tensors(weights.spec):
        for part in weights.rows(tensor):
            read_slice(weights.checkpoint, part, torch.float32)
    for layer, mixture in weights.spec.mixtures:
        for expert in {0, mixture.router.experts - 1}:
            for matrix in expert_shapes(weights.spec.hidden_size, mixture.expert):
                read_slice(weights.checkpoint, weights.expert(layer, expert, matrix), torch.float32)


def quantised(folder: Path) -> Case:
    """Safetensors of each encoding: header, numbers, and what config.json says of how they were made."""
    seeds: dict[str, list[Seed]] = {}  # by encoding, each of which gets as many cases
    for name, seed in zip(encodings.CASES, seeds_of_encodings(folder), strict=True):
        seeds.setdefault(encodings.CASES[name].name, []).append(seed)
    model = folder / "case"
    model.mkdir()

    def case(mutator: Mutator) -> Read:
        write_damaged(mutator, mutator.random.choice(mutator.random.choice(list(seeds.values()))), model)
        return partial(decode, model)

    return case


Seed = tuple[dict[str, Any], dict[str, Any], bytes]  # config.json, header and numbers of a safetensors file


def seeds_of_encodings(folder: Path) -> list[Seed]:
    """A checkpoint of every encoding."""
    seeds = []
    for number, each in enumerate(encodings.CASES.values()):
        stored, _ = each.make().write(folder / f"{number}")
        content = (stored / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        seeds.append((json.loads((stored / "config.json").read_text()), json.loads(content[8:start]), content[start:]))
    return seeds


def write_damaged(mutator: Mutator, seed: Seed, model: Path) -> None:
    """One of three things of it changed: the scheme, the header, or the numbers."""
    config, header, data = seed
    start = json.dumps(header).encode()
    match mutator.random.randrange(4):
        case 0:
            config = config | {"quantization_config": mutator.document(config.get("quantization_config"))}
        case 1:
            start = mutator.encoded(header)
        case 2:
            data = data[: mutator.random.randrange(len(data))]
        case _:
            data = _spoiled(mutator, header, data)
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(len(start).to_bytes(8, "little") + start + data)


def _spoiled(mutator: Mutator, header: dict[str, Any], data: bytes) -> bytes:
    """Some bytes of what stands beside codes: zeros, no numbers, infinite or absurd ones."""
    beside = [each for name, each in header.items() if not name.endswith((".weight", "norm", "_blocks"))]
    spoiled = bytearray(data)
    for _ in range(mutator.some()):
        first, last = mutator.random.choice(beside)["data_offsets"]
        count = min(last - first, mutator.random.choice([1, 2, 4, 4, 64]))
        at = mutator.random.randrange(first, last - count + 1) // 4 * 4
        wrong = [bytes(count), b"\xff" * count, b"\x00\x00\x80\x7f" * 16, mutator.random.randbytes(count)]
        spoiled[at : at + count] = mutator.random.choice(wrong)[:count]
    return bytes(spoiled)


def blocks(folder: Path) -> Case:
    """GGUF files of every type of blocks: where tensors are, and any of their bytes."""
    seeds = []
    for kind in sorted(TYPES.keys() - {"Q1_0", "Q2_0"}):  # which llama.cpp's package does not write
        made = gguf_files.make("mixtral", folder / kind, kind)
        seeds.append((made.file.read_bytes(), _data_start(made.file)))
    file = folder / "case.gguf"

    def case(mutator: Mutator) -> Read:
        content, start = mutator.random.choice(seeds)
        names = content.index(b"token_embd.weight")  # behind the metadata, which `heads` damages
        if mutator.random.random() < 0.5:
            changed = mutator.nudged(content[names:start])
            content = content[:names] + changed + content[start:]
        else:
            content = content[:start] + mutator.random.choice([mutator.nudged, mutator.damaged])(content[start:])
        file.write_bytes(content)
        return lambda: decode(unfolded(file))

    return case


def heads(folder: Path) -> Case:
    """What GGUF files say: the parser, the architecture's reader, the family and the tokenizer."""
    seeds = list(seeds_of_heads(folder))
    file = folder / "case.gguf"

    def case(mutator: Mutator) -> Read:
        write_damaged_head(mutator, mutator.random.choice(seeds), file)

        def read() -> None:
            opened = unfolded(file)
            open_source(opened)
            if texts_of(read_model(file).metadata).keys() & {"tokenizer.json", "tokenizer.model"}:
                Tokenizer.load(opened)

        return read

    return case


def _data_start(file: Path) -> int:
    """Where the first tensor lies."""
    return min(part.offset for each in read_model(file).tensors.values() for part in each.parts)


def seeds_of_heads(folder: Path) -> list[bytes]:
    """The beginnings of files of several architectures, with vocabularies of both kinds."""
    merges = json.loads(toy_tokenizers.byte_level().to_str())
    tokenizers: dict[str, Any] = {
        "mixtral": gguf_files.with_pieces(vocabularies.sentencepiece()),
        "qwen3_moe": gguf_files.with_merges(merges, "gpt-2", "{{ x }}"),
    }
    seeds = []
    for family in _FAMILIES:
        given = tokenizers.get(family)
        made = gguf_files.make(family, folder / family, "Q8_0", tokenizer=given, vocab_size=1024)
        seeds.append(made.file.read_bytes()[: _data_start(made.file)])
    return seeds


def write_damaged_head(mutator: Mutator, head: bytes, file: Path) -> None:
    file.write_bytes(mutator.random.choice([mutator.damaged, mutator.nudged, mutator.nudged])(head))
    with file.open("r+b") as written:
        written.truncate(1 << 27)  # the tensors, as holes
