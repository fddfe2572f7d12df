"""What each format costs in quality: python -m benchmarks.quality

The built-in model on the held-out texts of training/: perplexity, how often a token takes the same experts as in
bf16, and the relative error of the quantised matrices beside GGUF's Q4_0 on the same ones. A Markdown table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import moecli
from moecli import formats
from moecli.checkpoint.reading import read_slice
from moecli.engine.load import CheckpointModel, open_model
from moecli.engine.recorder import Recorder, new_builder
from moecli.model.tensors import EXPERT_MATRICES
from moecli.planning.placement import fit
from moecli.routing.agreement import agreement
from moecli.routing.trace import RoutingTrace
from moecli.text.tokenizer import Tokenizer

FORMATS = ("bf16", "q8", "int8", "q4", "nf4", "q3")
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
    builder = new_builder("tiny", model.spec)
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


def error(model: CheckpointModel, dtype: str) -> float:
    """Root of the squared error over the squares, all expert matrices together; "Q4_0" is GGUF's."""
    wrong = total = 0.0
    for matrix in matrices(model):
        wrong += float((_round_trip(matrix, dtype) - matrix).square().sum())
        total += float(matrix.square().sum())
    return math.sqrt(wrong / total)


def _round_trip(matrix: Tensor, dtype: str) -> Tensor:
    if dtype != "Q4_0":
        rows, columns = matrix.shape
        return formats.unpack(dtype, formats.pack(dtype, matrix), (rows, columns), torch.float32)
    from gguf import GGMLQuantizationType, dequantize, quantize

    kind = GGMLQuantizationType.Q4_0
    return torch.from_numpy(dequantize(quantize(matrix.numpy(), kind), kind))


def rows() -> Iterator[tuple[str, ...]]:
    """Format, bits per weight, error, perplexity and by how much it grows, equal expert sets, shared experts."""
    model = open_model(TINY)
    assert isinstance(model, CheckpointModel)
    texts = windows()
    reference, trace = measure(model, FORMATS[0], texts)
    for dtype in FORMATS:
        perplexity, found = (reference, trace) if dtype == FORMATS[0] else measure(model, dtype, texts)
        same = agreement(trace, found)
        yield (
            dtype,
            f"{formats.FORMATS[dtype].bits:g}",
            f"{error(model, dtype):.4f}",
            f"{perplexity:.3f}",
            f"{perplexity / reference - 1:+.2%}",
            f"{same.equal_sets:.1%}",
            f"{same.overlap:.1%}",
        )
    yield "GGUF Q4_0", "4.5", f"{error(model, 'Q4_0'):.4f}", "", "", "", ""


def main() -> None:
    print("| format | bits/weight | error | perplexity | change | same experts as bf16 | experts shared |")
    print("|---|---|---|---|---|---|---|")
    for row in rows():
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
