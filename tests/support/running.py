"""Short ways to run a decoder in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from moecli.engine.decoder import Decoder
from moecli.engine.generate import Session, Timing
from moecli.engine.load import open_model
from moecli.engine.sampling import Sampler, Sampling
from moecli.planning.placement import fit

ALL = 2**60  # a budget that holds everything


def load(folder: Path, dtype: str = "fp32", positions: int = 256) -> Decoder:
    model = open_model(folder)
    return model.decoder(fit(model.spec, dtype, positions, ALL))


def session(decoder: Decoder, capacity: int = 256, chunk: int = 256) -> Session:
    return Session(decoder, decoder.new_cache(capacity, chunk))


def score(decoder: Decoder, ids: Sequence[int], chunk: int = 256) -> torch.Tensor:
    """Logits after each of `ids`, fed `chunk` at a time; where there is an encoder, it reads them before. [T, V]"""
    cache = decoder.new_cache(max(len(ids), 1), chunk)
    text = torch.tensor(ids)
    if decoder.encoder is not None:
        decoder.read(text, cache)
    return torch.cat([decoder.logits(decoder.forward(part, cache)) for part in text.split(chunk)])


def greedy(decoder: Decoder, prompt: Sequence[int], count: int = 24, chunk: int = 256) -> list[int]:
    """The most likely continuation, one cached step at a time."""
    running = session(decoder, len(prompt) + count, chunk)
    return answer(running, prompt, count)


def answer(running: Session, prompt: Sequence[int], count: int) -> list[int]:
    return list(running.generate(prompt, Sampler(Sampling(), 0), count, Timing()))
