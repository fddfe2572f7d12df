"""What is fuzzed: each target writes one changed input and says with which command, or by what, it is read."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moecli.model import catalog
from moecli.routing import files
from moecli.routing.trace import LayerTrace, RoutingTrace
from tests.fuzz import decoders
from tests.fuzz.mutations import Mutator
from tests.support import headers, hub_server, toy_tokenizers, vocabularies
from tests.support.stores import packed, random_mixtral
from tests.support.torch_files import rezipped, saved
from tests.support.traces import drifting

Command = list[str]
Target = Callable[[Mutator], Command]  # writes its files, and says how they are read
_SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_local_experts": 4}
_LOOK = (
    *(["inspect"], ["inspect", "--json"]) * 6, ["memory"], ["memory", "--json", "--dtype", "q4"], ["memory", "--check"],
)  # fmt: skip


def configs(folder: Path) -> Target:
    """config.json: every one that is bundled, changed."""
    seeds = [entry.config() for entry in catalog.known()]
    file = folder / "config.json"

    def case(mutator: Mutator) -> Command:
        file.write_bytes(mutator.encoded(mutator.random.choice(seeds)))
        return [*mutator.random.choice(_LOOK), str(file)]

    return case


def indexes(folder: Path) -> Target:
    """model.safetensors.index.json beside two whole shards."""
    shards = headers.split(_tensors(), 2)
    model = headers.write(folder / "model", _config(), *shards)
    document = headers.index(shards)

    def case(mutator: Mutator) -> Command:
        (model / "model.safetensors.index.json").write_bytes(mutator.encoded(document))
        return [*mutator.random.choice(_LOOK), str(model)]

    return case


def shards(folder: Path) -> Target:
    """The header of a safetensors file, its length and the length of the file."""
    model = headers.write(folder / "model", _config(), _tensors())
    file = model / "model.safetensors"
    start, size = headers.header(_tensors())
    data = size - len(start)
    about = {f"note {number}": f"{number}" for number in range(150)}  # what readers skip, changed as often as the rest
    document = {"__metadata__": {"format": "pt", **about}, **json.loads(start[8:])}

    def case(mutator: Mutator) -> Command:
        text, chance = mutator.encoded(document), mutator.random
        length = len(text) if chance.random() < 0.8 else chance.choice([0, 1, len(text) + 1, 2**31, 2**63, 2**64 - 1])
        with file.open("wb") as written:
            written.write(length.to_bytes(8, "little") + text)
            written.truncate(
                8 + len(text) + data if chance.random() < 0.8 else chance.choice([0, 7, 8, 9, size - 1, size + 1])
            )
        return [*mutator.random.choice([*_LOOK, ["verify"]]), str(model)]

    return case


def pickles(folder: Path) -> Target:
    """A file of torch.save: its pickle, its directory, or any byte of it."""
    model = headers.write(folder / "model", _config(), {})
    (model / "model.safetensors").unlink()
    shapes = {name: torch.ones(shape, dtype=torch.bfloat16) for name, (_, shape) in _small_tensors().items()}
    tied = shapes | {"lm_head.weight": shapes["model.embed_tokens.weight"]}
    views = {name: each.T.contiguous().T if each.dim() == 2 else each[:] for name, each in shapes.items()}
    parameters = {name: torch.nn.Parameter(each) for name, each in shapes.items()}
    wrapped = {"epoch": 3, "model": parameters, "loss": 0.5}
    small = {"a": shapes["lm_head.weight"].to(torch.float8_e5m2)}
    seeds = [saved(each) for each in (shapes, tied, views, wrapped, small)]
    file = model / "pytorch_model.bin"

    def case(mutator: Mutator) -> Command:
        content = mutator.random.choice(seeds)
        match mutator.random.randrange(8):
            case 0:
                content = mutator.damaged(content)
            case 1:  # the directory and what ends it
                content = content[:-400] + mutator.damaged(content[-400:])
            case _:
                change = mutator.random.choice([mutator.damaged, mutator.nudged, mutator.nudged])
                content = rezipped(content, lambda name, data: change(data) if name == "data.pkl" else data)
        file.write_bytes(content)
        return [*mutator.random.choice([*_LOOK, ["verify"]]), str(model)]

    return case


def quantised(folder: Path) -> Target:
    """A checkpoint of every encoding, inspected and packed."""
    seeds = decoders.seeds_of_encodings(folder)
    model, store = folder / "case", folder / "packed"
    model.mkdir()

    def case(mutator: Mutator) -> Command:
        decoders.write_damaged(mutator, mutator.random.choice(seeds), model)
        shutil.rmtree(store, ignore_errors=True)
        pack = ["pack", str(model), "--dtype", "q8", "--yes", "-o", str(store)]
        return pack if mutator.random.random() < 0.4 else [*mutator.random.choice(_LOOK), str(model)]

    return case


def gguf(folder: Path) -> Target:
    """What a GGUF file says of its model and where its tensors are."""
    seeds = decoders.seeds_of_heads(folder)
    file = folder / "case.gguf"

    def case(mutator: Mutator) -> Command:
        decoders.write_damaged_head(mutator, mutator.random.choice(seeds), file)
        return [*mutator.random.choice([*_LOOK, ["verify"]]), str(file)]

    return case


def tokenizers(folder: Path) -> Target:
    """What stands beside the weights: the tokenizer of each kind, its settings and tables, how to generate."""
    model = random_mixtral(folder / "model", **_SMALL)
    documents: dict[str, Any] = {
        "tokenizer.json": json.loads(toy_tokenizers.byte_level().to_str()),
        "tokenizer_config.json": {
            "bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>", "lstrip": False}, "add_bos_token": True,
            "added_tokens_decoder": {"0": {"content": "<|bos|>", "special": True}}, "model_max_length": 512,
            "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        },
        "special_tokens_map.json": {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}},
        "added_tokens.json": {"<|im_start|>": 2, "<|im_end|>": 3},
        "generation_config.json": {"eos_token_id": [1, 3], "temperature": 0.7, "top_k": 20, "do_sample": True},
    }  # fmt: skip
    others = {
        "tokenizer.model": vocabularies.sentencepiece(),
        "tiktoken.model": vocabularies.written(vocabularies.small_ranks()),
    }

    def case(mutator: Mutator) -> Command:
        for name, document in documents.items():
            toy_tokenizers.write_json(model / name, document)
        for name in others:
            (model / name).unlink(missing_ok=True)
        if mutator.random.random() < 0.3:
            name = mutator.random.choice(list(others))
            (model / "tokenizer.json").unlink()
            (model / name).write_bytes(mutator.random.choice([mutator.damaged, mutator.nudged])(others[name]))
        else:
            name = mutator.random.choice(list(documents))
            (model / name).write_bytes(mutator.encoded(documents[name]))
        way = mutator.random.choice([["--raw"], ["--raw", "--json"], ["--raw"], []])  # a template takes a process
        return ["run", str(model), "Hello \x1b[2J", "-n", "2", "--ctx", "64", "--threads", "1", *way]

    return case


def traces(folder: Path) -> Target:
    """Recorded routing in its three forms; the compact one with a checksum that holds, half the time."""
    chosen = [LayerTrace(layer, 8, drifting(8, 2, 60, 1, 1, 2, seed=layer)) for layer in range(2)]
    numbers = np.arange(60, dtype=np.uint32)
    trace = RoutingTrace(
        tuple(chosen), numbers % 7, numbers // 20, (numbers // 30).astype(np.uint16), numbers < 0, ("one", "two"),
        {number: f"piece {number}" for number in range(7)}, "somebody/model", "main", "q4", "mixtral",
    )  # fmt: skip
    texts = {suffix: folder / f"seed{suffix}" for suffix in (".csv", ".jsonl", ".trace")}
    for file in texts.values():
        files.write(trace, file)
    content = {suffix: file.read_bytes() for suffix, file in texts.items()}

    def case(mutator: Mutator) -> Command:
        suffix = mutator.random.choice(list(content))
        file = folder / f"case{suffix}"
        file.write_bytes(_CHANGED[suffix](mutator, content[suffix]))
        form = mutator.random.choice(["table", "json", "csv", "md"])
        return ["inspect", "--routing", "--from", str(file), "--format", form]

    return case


def _changed_lines(mutator: Mutator, content: bytes) -> bytes:
    """One line of JSON among others."""
    lines = content.splitlines()
    place = mutator.random.randrange(len(lines))
    lines[place] = mutator.encoded(json.loads(lines[place]))
    return b"\n".join(lines)


def _changed_compact(mutator: Mutator, content: bytes) -> bytes:
    first, header, arrays = content.split(b"\n", 2)
    if mutator.random.random() < 0.3:
        return mutator.damaged(content)
    if mutator.random.random() < 0.6:
        header = mutator.encoded(json.loads(header))
    else:
        arrays = mutator.damaged(arrays)
    rest = header + b"\n" + arrays
    return b"%s %s\n%s" % (first.rpartition(b" ")[0], hashlib.sha256(rest).hexdigest().encode(), rest)


_CHANGED = {".csv": Mutator.damaged, ".jsonl": _changed_lines, ".trace": _changed_compact}


def prompts(folder: Path) -> Target:
    """Files of prompts: a line each, JSON lines, a JSON array, gzip."""
    model = random_mixtral(folder / "model", **_SMALL)
    toy_tokenizers.write_json(model / "tokenizer.json", json.loads(toy_tokenizers.byte_level().to_str()))
    rows = [
        {"text": "The sea", "domain": "a"},
        {"prompt": "Hello", "id": 3},
        {"messages": [{"role": "user", "content": "Hi"}]},
    ]
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    texts = {"p.txt": b"The sea\nis wide\n", "p.jsonl": lines, "p.json": json.dumps(rows).encode()}

    def case(mutator: Mutator) -> Command:
        name = mutator.random.choice(list(texts))
        content = texts[name]
        if name == "p.jsonl":
            content = _changed_lines(mutator, content)
        else:
            content = mutator.encoded(rows) if name == "p.json" else mutator.damaged(content)
        if mutator.random.random() < 0.1:
            content = (
                mutator.damaged(gzip.compress(content)) if mutator.random.random() < 0.5 else gzip.compress(content)
            )
        (folder / name).write_bytes(content)
        return [
            "inspect",
            str(model),
            "--routing",
            "--raw",
            "--limit",
            "8",
            "--threads",
            "1",
            "--prompts",
            str(folder / name),
        ]

    return case


def stores(folder: Path) -> Target:
    """Our own files: the manifest of a store, the journal of one that is not finished."""
    home = Path(os.environ["MOECLI_HOME"]) / "models"
    home.mkdir(parents=True)
    store = packed(random_mixtral(folder / "model", **_SMALL), home / "whole-q4").folder
    manifest = json.loads((store / "manifest.json").read_bytes())
    unfinished = home / "half-q4.partial"
    unfinished.mkdir()
    plan = {"version": 1, "model": "somebody/half", "dtype": "q4", "origin": manifest["origin"]}
    events = [
        plan,
        {"done": ["a", "b"], "kept": []},
        {"sealed": "experts", "sums": {"bytes": 1, "sha256": "0", "parts": []}},
    ]
    journal = b"".join(json.dumps(event).encode() + b"\n" for event in events)

    def case(mutator: Mutator) -> Command:
        (store / "manifest.json").write_text(json.dumps(manifest))
        (unfinished / "journal").write_bytes(journal)
        if mutator.random.random() < 0.5:
            (unfinished / "journal").write_bytes(
                mutator.random.choice([_changed_lines, Mutator.damaged])(mutator, journal)
            )
        else:
            (store / "manifest.json").write_bytes(mutator.encoded(manifest))
        return mutator.random.choice(
            [["list"], ["list", "--json"], ["inspect", "whole-q4"], ["memory", "whole-q4"], ["verify", "whole-q4"]]
        )

    return case


def hub(folder: Path) -> Target:
    """What the Hub answers: its listing, small files, headers of weights, and the headers of its answers."""
    answers = _Answers()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Sick,), {"hub": answers.hub, "answers": answers}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    from huggingface_hub import constants

    url = f"http://127.0.0.1:{server.server_address[1]}"
    constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = url, url + "/{repo_id}/resolve/{revision}/{filename}"
    os.environ["HF_ENDPOINT"] = url

    def case(mutator: Mutator) -> Command:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
        answers.mutator = mutator
        return mutator.random.choice(
            [
                ["inspect", "somebody/model"],
                ["inspect", "somebody/model", "--json"],
                ["memory", "somebody/model"],
                ["pull", "somebody/model", "--dry-run"],
            ]
        )

    return case


class _Answers:
    """A Hub with one model, and the chance by which its answers are changed."""

    def __init__(self) -> None:
        self.hub = hub_server.Hub()
        self.hub.add("somebody/model", _config(), *headers.split(_tensors(), 2))
        self.hub.put("somebody/model/tokenizer.json", toy_tokenizers.byte_level().to_str().encode())
        self.mutator: Mutator | None = None


class _Sick(hub_server._Handler):
    answers: _Answers

    def _answer(self, status: int, body: bytes, headers: Any) -> None:
        mutator = self.answers.mutator
        assert mutator
        if mutator.random.random() < 0.5 and body:
            body = mutator.encoded(json.loads(body))
        elif mutator.random.random() < 0.03:
            status = mutator.random.choice([204, 301, 400, 404, 416, 418])
        super()._answer(status, body, headers)

    def send_header(self, keyword: str, value: str) -> None:
        mutator = self.answers.mutator
        assert mutator
        if mutator.random.random() < 0.02:
            value = mutator.random.choice(["", "-1", "x" * 3000, "\x1b[2J", "bytes 0-0/*", "99999999999999999999"])
        super().send_header(keyword, value)

    def _file(self, path: str, file: hub_server.File, fault: hub_server.Fault) -> None:
        mutator = self.answers.mutator
        assert mutator
        if mutator.random.random() < 0.3:
            start = mutator.damaged(file.start)
            file = hub_server.File(start, max(len(start), file.size))
        super()._file(path, file, fault)


def _config() -> dict[str, object]:
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 512, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
        "num_hidden_layers": 2, "vocab_size": 32000, "head_dim": 128, "max_position_embeddings": 512,
    }  # fmt: skip


def _small_tensors() -> headers.Tensors:
    return headers.plain(headers.mixtral(1, 128, 8, 2))


def _tensors() -> headers.Tensors:
    return headers.plain(headers.mixtral(2, 512, 64, 4))


# By name, with the share of all cases that each gets.
TARGETS: dict[str, tuple[Callable[[Path], Target | decoders.Case], float]] = {
    "configs": (configs, 0.35),
    "indexes": (indexes, 0.15),
    "headers": (shards, 0.2),
    "pickles": (pickles, 0.1),
    "quantised": (quantised, 0.08),
    "gguf": (gguf, 0.08),
    "decoders": (decoders.quantised, 0.1),
    "blocks": (decoders.blocks, 0.1),
    "heads": (decoders.heads, 0.1),
    "tokenizers": (tokenizers, 0.08),
    "hub": (hub, 0.1),
    "traces": (traces, 0.05),
    "prompts": (prompts, 0.02),
    "stores": (stores, 0.05),
}
