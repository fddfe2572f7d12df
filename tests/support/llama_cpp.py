"""Makes `tests/data/llama_cpp.json` by llama.cpp itself: python -m tests.support.llama_cpp SOURCE BUILD

SOURCE is llama.cpp's source, as inside the sdist of llama-cpp-python (`pip download --no-binary :all: --no-deps
llama-cpp-python`, its vendor/llama.cpp); BUILD is where `cmake SOURCE -DBUILD_SHARED_LIBS=ON` and `make llama` put its
libraries. Tiny checkpoints go through its converter, and llama.cpp goes on from a prompt of random ids.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import sys
import tempfile
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PROMPT, TOKENS = 12, 24
PRE = (  # ways to cut text into words, by llama.cpp's names
    "gpt-2", "olmo", "refact", "llama-bpe", "dbrx", "glm4", "qwen2", "qwen35", "hunyuan", "bailingmoe", "minimax-m2",
    "tekken", "kimi-k2", "deepseek-llm", "deepseek-v3", "spm",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    sdist, build = (Path(each).resolve() for each in arguments)
    llama_cpp, convert = _libraries(sdist, build)
    from tests.support import gguf_files

    found: dict[str, Any] = {"families": {}, "types": _types(build)}
    with tempfile.TemporaryDirectory() as scratch:
        for family in gguf_files.FAMILIES:
            file = Path(scratch) / f"{family}.gguf"
            convert(gguf_files.source(family, Path(scratch) / family), file)
            found["families"][family] = _described(file) | _continued(llama_cpp, file)
            print(family, found["families"][family]["tokens"], file=sys.stderr)
        _write(gguf_files.GOLDENS, found)  # from which the files with a tokenizer are made
        found["tokenizers"] = {pre: _tokenized(llama_cpp, pre, Path(scratch)) for pre in PRE}
    _write(gguf_files.GOLDENS, found)


def _write(path: Path, found: dict[str, Any]) -> None:
    """Short lists stand in one line."""
    text = json.dumps(found, indent=1, sort_keys=True)
    path.write_text(re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n")


def _libraries(source: Path, build: Path) -> tuple[ModuleType, Any]:
    """llama.cpp by its Python binding, which lies beside the source in the sdist, and its converter."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(build / "bin")
    sys.path[:0] = [str(source / "gguf-py")]  # newer than the package on PyPI
    gguf = importlib.import_module("gguf")
    sys.path.pop(0)
    sys.path += [str(source), str(source.parents[1])]
    logging.disable(logging.CRITICAL)
    conversion = importlib.import_module("conversion")
    package = ModuleType("llama_cpp")  # without its __init__, which wants more
    package.__path__ = [str(source.parents[1] / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    binding = importlib.import_module("llama_cpp.llama_cpp")
    binding.llama_backend_init()
    binding.heard = []  # what it says, shown where it fails
    binding.hearing = binding.llama_log_callback(
        lambda level, text, _: binding.heard.append(text.decode(errors="replace"))
    )
    binding.llama_log_set(binding.hearing, None)

    mappings = dict(gguf.TensorNameMap.block_mappings_cfg)

    def convert(folder: Path, file: Path) -> None:
        import torch

        gguf.TensorNameMap.block_mappings_cfg = dict(mappings)  # which Arctic's converter changes for all others
        config = conversion.ModelBase.load_hparams(folder, False)
        model = conversion.get_model_class(conversion.get_model_architecture(config, conversion.ModelType.TEXT))

        def set_vocab(self: Any) -> None:
            self._set_vocab_none()
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

        without = type(
            model.__name__, (model,), {"set_vocab": set_vocab, "model_arch": model.model_arch, "no_mtp": True}
        )
        with torch.inference_mode():
            without(folder, gguf.LlamaFileType.ALL_F32, file, eager=True).write()

    return binding, convert


def _described(file: Path) -> dict[str, Any]:
    """Its metadata, but for what names the file, and of each tensor its type, shape and a hash."""
    import gguf

    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    kept = ("general.architecture", "general.alignment", "tokenizer.ggml.model")
    keys = [key for key in reader.fields if key in kept or key.startswith(f"{architecture}.")]
    return {
        "metadata": {key: reader.fields[key].contents() for key in keys},
        "tensors": {
            each.name: [each.tensor_type.name, each.shape.tolist()[::-1], digest(each.data.tobytes())]
            for each in reader.tensors
        },
    }


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _continued(library: ModuleType, file: Path) -> dict[str, Any]:
    """Its most likely tokens after a prompt, and how far the second likeliest of each is, at least."""
    from tests.support.checkpoints import prompt

    ids = prompt(PROMPT)
    model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
    assert model, "".join(library.heard)[-2000:]
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 256, 1, 1
    settings.flash_attn_type, settings.type_k, settings.type_v = 0, 0, 0  # a cache of F32
    context = library.llama_init_from_model(model, settings)
    count = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    tokens, gap, batch = [], float("inf"), ids
    while len(tokens) < TOKENS:
        given = (library.llama_token * len(batch))(*batch)
        assert library.llama_decode(context, library.llama_batch_get_one(given, len(batch))) == 0
        logits = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (count,))
        first, second = np.sort(logits)[:-3:-1]
        gap = min(gap, float(first - second))
        tokens.append(int(logits.argmax()))
        batch = tokens[-1:]
    library.llama_free(context)
    library.llama_model_free(model)
    return {"tokens": tokens, "gap": round(gap, 6)}


def texts() -> list[str]:
    """What is cut into words, in Unicode's form C, to which some models bring it and llama.cpp does not."""
    from tests.support.vocabularies import varied_texts

    return [unicodedata.normalize("NFC", text) for text in varied_texts(120)]


def with_tokenizer(pre: str) -> Any:
    """What writes a small vocabulary: of bytes whose words are cut so, or of pieces."""
    from tests.support import gguf_files
    from tests.support.vocabularies import pairs_of_bytes, sentencepiece

    if pre == "spm":
        return gguf_files.with_pieces(sentencepiece())
    return gguf_files.with_merges(pairs_of_bytes(texts()), pre)


def _tokenized(library: ModuleType, pre: str, folder: Path) -> list[str]:
    """Hashes of the ids of each text."""
    from tests.support import gguf_files

    (folder / f"text-{pre}").mkdir()
    tokenizer = with_tokenizer(pre)
    file = gguf_files.make("llama", folder / f"text-{pre}", tokenizer=tokenizer, vocab_size=1024).file
    settings = library.llama_model_default_params()
    settings.vocab_only = True
    model = library.llama_model_load_from_file(str(file).encode(), settings)
    assert model, "".join(library.heard)[-2000:]
    vocabulary, found = library.llama_model_get_vocab(model), []
    for text in map(str.encode, texts()):
        room = (library.llama_token * (4 * len(text) + 16))()
        count = library.llama_tokenize(vocabulary, text, len(text), room, len(room), True, True)
        found.append(hashed(room[:count]))
    library.llama_model_free(model)
    return found


def hashed(ids: list[int]) -> str:
    return digest(np.array(ids, np.int32).tobytes())[:6]


def _types(build: Path) -> dict[str, Any]:
    """Hashes of the float32 numbers that random blocks of each type stand for, as ggml reads them."""
    import ctypes

    from moecli.checkpoint.encodings.ggml import TYPES
    from tests.support.gguf_files import random_blocks

    base = ctypes.CDLL(str(build / "bin" / "libggml-base.so"))
    found = {}
    for kind, about in TYPES.items():
        blocks = random_blocks(kind)
        numbers = np.empty(len(blocks) * about.block, np.float32)
        name = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(kind)
        if kind == "F32":
            numbers = blocks.view(np.float32).reshape(-1).copy()
        else:
            read = getattr(base, name or "dequantize_row_" + kind.lower().replace("_k", "_K"))
            read(
                blocks.ctypes.data_as(ctypes.c_void_p),
                numbers.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int64(numbers.size),
            )
        found[kind] = digest(numbers.tobytes())
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
