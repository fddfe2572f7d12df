"""What each format costs in quality: python -m benchmarks.quality [--ggml LIBGGML-BASE]

The built-in model on the held-out texts of training/: perplexity, how often a token takes the same experts as in
bf16, and the relative error of the quantised matrices beside GGUF's types on the same ones. A Markdown table. Those
types are made by llama.cpp's own quantiser, a shared library that is built with llama-bench; without it only Q4_0 is
shown, made by the package `gguf`.
"""

from __future__ import annotations

import argparse
import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import moecli
from moecli import formats
from moecli.checkpoint.reading import read_slice
from moecli.engine.load import CheckpointModel, open_model
from moecli.engine.recorder import Recorder, new_builders
from moecli.formats.words import formats_of
from moecli.model.tensors import EXPERT_MATRICES
from moecli.planning.placement import fit
from moecli.routing.agreement import agreement
from moecli.routing.trace import RoutingTrace
from moecli.text.tokenizer import Tokenizer

FORMATS = ("bf16", "q8", "int8", "q4", "q4-dense-q8", "nf4", "q3", "q3-dense-q8")
GGUF_TYPES = ("Q4_K", "Q4_0", "IQ4_XS", "Q3_K")
RoundTrip = Callable[[Tensor], Tensor]
WINDOW = 512  # tokens, each window read from an empty cache
TINY = Path(moecli.__file__).parent / "tiny"
HELD_OUT = Path(__file__).parents[1] / "training" / "heldout"


def windows() -> list[Tensor]:
    """The texts as ids, in windows."""
    tokenizer = Tokenizer.load(TINY)
    texts = [path.read_text(encoding="utf-8") for path in sorted(HELD_OUT.glob("*.txt"))]
    return [part for text in texts for part in torch.tensor(tokenizer.encode(text)).split(WINDOW) if len(part) > 1]


def measure(model: CheckpointModel, dtype: str, texts: list[Tensor]) -> tuple[float, RoutingTrace]:
    """Perplexity over all tokens but each window's first, and the routing."""
    decoder = model.decoder(fit(model.spec, dtype, WINDOW, 2**60))
    builder = new_builders("tiny", model.spec)[""]
    recorder = Recorder(model.spec, builder)
    loss, count = 0.0, 0
    for number, ids in enumerate(texts):
        recorder.begin(number)
        logits = decoder.logits(decoder.forward(ids, decoder.new_cache(WINDOW, WINDOW), recorder))
        loss += float(F.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        count += len(ids) - 1
    recorder.flush()
    return math.exp(loss / count), builder.build(name="tiny", dtype=dtype, family=model.spec.family)


def matrices(model: CheckpointModel) -> Iterator[Tensor]:
    """Every expert matrix in float32."""
    for layer, mixture in model.spec.mixtures:
        for expert in range(mixture.router.experts):
            for name in EXPERT_MATRICES:
                yield read_slice(
                    model.weights.checkpoint, model.weights.expert(layer, expert, name), torch.bfloat16
                ).float()


def error(model: CheckpointModel, round_trip: RoundTrip) -> float:
    """Root of the squared error over the squares, all expert matrices together."""
    wrong = total = 0.0
    for matrix in matrices(model):
        wrong += float((round_trip(matrix) - matrix).square().sum())
        total += float(matrix.square().sum())
    return math.sqrt(wrong / total)


def in_format(dtype: str) -> RoundTrip:
    def round_trip(matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        return formats.unpack(dtype, formats.pack(dtype, matrix), (rows, columns), torch.float32)

    return round_trip


def in_gguf(name: str, library: Path | None) -> RoundTrip:
    """Rows of 256 numbers, of which some types have one scale: two rows of a narrow matrix are one."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize

    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]

    def round_trip(matrix: Tensor) -> Tensor:
        numbers = matrix.reshape(-1, 256).contiguous()
        if library is None:
            return torch.from_numpy(dequantize(quantize(numbers.numpy(), kind), kind)).view_as(matrix)
        rows, columns = numbers.shape
        packed = torch.empty(rows, columns // block * size, dtype=torch.uint8)
        call = ctypes.CDLL(str(library)).ggml_quantize_chunk
        call.argtypes = (ctypes.c_int, *(ctypes.c_void_p,) * 2, *(ctypes.c_int64,) * 3, ctypes.c_void_p)
        call(int(kind), numbers.data_ptr(), packed.data_ptr(), 0, rows, columns, None)
        return torch.from_numpy(dequantize(packed.numpy(), kind)).view_as(matrix)

    return round_trip


def gguf_rows(model: CheckpointModel, library: Path | None) -> Iterator[tuple[str, ...]]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name in GGUF_TYPES if library else ("Q4_0",):
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        yield f"GGUF {name}", f"{8 * size / block:g}", f"{error(model, in_gguf(name, library)):.4f}", "", "", "", ""


def rows(library: Path | None) -> Iterator[tuple[str, ...]]:
    """Format, bits per weight and error of experts, perplexity and its growth, equal expert sets, shared experts."""
    model = open_model(TINY)
    assert isinstance(model, CheckpointModel)
    texts = windows()
    reference, trace = measure(model, FORMATS[0], texts)
    for dtype in FORMATS:
        perplexity, found = (reference, trace) if dtype == FORMATS[0] else measure(model, dtype, texts)
        same, experts = agreement(trace, found), formats_of(dtype).experts
        yield (
            dtype,
            f"{formats.FORMATS[experts].bits:g}",
            f"{error(model, in_format(experts)):.4f}",
            f"{perplexity:.3f}",
            f"{perplexity / reference - 1:+.2%}",
            f"{same.equal_sets:.1%}",
            f"{same.overlap:.1%}",
        )
    yield from gguf_rows(model, library)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("--ggml", type=Path, help="libggml-base of llama.cpp")
    library = parser.parse_args().ggml
    print("| format | bits/weight | error | perplexity | change | same experts as bf16 | experts shared |")
    print("|---|---|---|---|---|---|---|")
    for row in rows(library):
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
