"""python -m benchmarks.constrained: what a JSON schema costs a token of `tiny` in processor time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from moecli.engine.constraint import Constraint, constrain
from moecli.engine.loaded import LoadedModel, LoadOptions, open_for_run
from moecli.engine.sampling import Sampler, Sampling
from moecli.library.resolve import resolve
from moecli.store.progress import silent
from moecli.text.grammar import of_schema

_TOKENS, _ROUNDS = 200, 7
_ROW = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
SCHEMA = {"type": "array", "minItems": 99, "items": _ROW | {"required": ["name", "age"]}}


def seconds(
    loaded: LoadedModel, constraint: Constraint | None, tokens: Sequence[int] = ()
) -> tuple[list[float], list[float], list[int]]:
    """Of this thread for each token, to compute and to draw it; and which was drawn, else the `tokens` given."""
    decoder, cache = loaded.decoder, loaded.cache
    computed, drew, drawn = [], [], []
    cache.rewind(0)
    sampler = Sampler(Sampling(0.8), 1, constraint)
    logits = decoder.logits(decoder.forward(torch.tensor([5, 6, 7]), cache, last_only=True)).cpu()[0]
    for place in range(_TOKENS):
        began = time.thread_time()
        token = sampler.pick(logits, ())
        drew.append(time.thread_time() - began)
        drawn.append(tokens[place] if tokens else token)
        began = time.thread_time()
        logits = decoder.logits(decoder.forward(torch.tensor(drawn[-1:]), cache)).cpu()[0]
        computed.append(time.thread_time() - began)
    return computed, drew, drawn


def main() -> None:
    """Medians over some answers, and over the same tokens without a grammar, in turns."""
    opened = open_for_run(resolve("tiny"), LoadOptions(threads=1, context=512))
    loaded = opened.load(opened.plan(512), silent)
    computed: list[float] = []
    free: list[float] = []
    held: list[float] = []
    for _ in range(_ROUNDS):
        spent, drew, drawn = seconds(loaded, constrain(opened, of_schema(SCHEMA)))
        computed += spent
        held += drew
        spent, drew, _ = seconds(loaded, None, drawn)
        computed += spent
        free += drew
    token, more = median(computed) + median(free), median(held) - median(free)
    print(f"{token * 1e3:.2f} ms a token, {more * 1e3:.3f} ms more held to a schema: {more / token:+.1%}")


if __name__ == "__main__":
    main()
