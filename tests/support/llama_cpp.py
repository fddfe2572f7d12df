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
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PROMPT, TOKENS = 12, 24


def main(arguments: list[str]) -> None:
    sdist, build = (Path(each).resolve() for each in arguments)
    llama_cpp, convert = _libraries(sdist, build)
    from tests.support import gguf_files

    found: dict[str, Any] = {"families": {}, "types": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for family in gguf_files.FAMILIES:
            file = Path(scratch) / f"{family}.gguf"
            convert(gguf_files.source(family, Path(scratch) / family), file)
            found["families"][family] = _described(file) | _continued(llama_cpp, file)
            print(family, found["families"][family]["tokens"], file=sys.stderr)
    found["types"] = _types(build)
    lines = json.dumps(found, indent=1, sort_keys=True)
    gguf_files.GOLDENS.write_text(lines + "\n")


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
    binding.hearing = binding.llama_log_callback(lambda level, text, _: binding.heard.append(text.decode()))
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

        without = type(model.__name__, (model,), {"set_vocab": set_vocab, "model_arch": model.model_arch})
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


def _types(build: Path) -> dict[str, Any]:
    """Hashes of the float32 numbers that random blocks of each type stand for, as ggml reads them."""
    import ctypes

    import gguf

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
            read = getattr(base, name or f"dequantize_row_{kind.lower()}")
            read(
                blocks.ctypes.data_as(ctypes.c_void_p),
                numbers.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int64(numbers.size),
            )
        found[kind] = digest(numbers.tobytes())
    assert gguf.GGMLQuantizationType is not None
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
