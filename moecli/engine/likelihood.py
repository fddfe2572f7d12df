"""How well a model foretells a text: the perplexity of its windows, read layer by layer in any memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moecli.engine.decoder import Decoder
from moecli.engine.estimates import Estimate, exponential, mean, runs
from moecli.engine.finite import is_finite, not_finite
from moecli.engine.layerwise import read_side_by_side
from moecli.engine.loaded import OpenedModel
from moecli.engine.shortage import ram_shortage, side_by_side_shortage
from moecli.engine.windows import Window
from moecli.errors import MoecliError, UsageError
from moecli.kernels.blocking import BUCKET
from moecli.planning.memory import scored_at_once
from moecli.planning.placement import Plan, Reader, fit_side_by_side
from moecli.store.progress import Progress


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of the scored tokens of a text: the mean of -ln p (nats), and e to it."""

    windows: int
    tokens: int  # read
    scored: int
    loss: Estimate

    @property
    def perplexity(self) -> Estimate:
        """e to the mean loss."""
        return exponential(self.loss)


def plan_to_score(opened: Sequence[OpenedModel], windows: Sequence[Window]) -> list[Plan]:
    """Where everything of models that read these windows side by side goes, in the budgets of the first.

    A model runs in the format asked for, else as it is stored. NotEnoughMemory if they cannot.
    """
    for each in opened:
        if each.spec.encoder:
            raise UsageError(f"{each.name} fills gaps and foretells no text", "name a model that continues a text")
    sizes = [len(window.ids) for window in windows]
    if not sizes:
        raise MoecliError("the text has no token to score", "a window is two tokens or more")
    longest = -(-max(sizes) // BUCKET) * BUCKET
    dtypes = [each.model.dtypes[0] if each.options.dtype == "auto" else each.options.dtype for each in opened]
    readers = [
        Reader(each.spec, dtype, each.model.streams, each.vram_for(dtype), each.model.unpacked(dtype))
        for each, dtype in zip(opened, dtypes, strict=True)
    ]
    plans = fit_side_by_side(readers, longest, max(longest, sum(sizes)), opened[0].ram)
    pairs = list(zip(opened, plans, strict=True))
    if not all(plan.fits or (each.model.streams and plan.runs) for each, plan in pairs):
        needs = [min(plan.full_ram, plan.least_ram) if each.model.streams else plan.full_ram for each, plan in pairs]
        if len(pairs) > 1:
            least = sum(needs) - sum(plan.memory.process.bytes for plan in plans[1:])
            raise side_by_side_shortage([each.ref for each in opened], plans, least, opened[0].ram)
        raise ram_shortage(opened[0].ref, plans, opened[0].model.streams)
    for each, plan in pairs:
        each.check_device(plan)
    return plans


def read_text(decoder: Decoder, windows: Sequence[Window], together: int, watch: Progress) -> Likelihood:
    """Score the windows, at most `together` tokens at once as planned; `watch` is told of tokens."""
    losses, done = torch.empty(sum(window.scored for window in windows)), 0
    for group, states in read_side_by_side([decoder], windows, together, watch, [None]):
        done += _score(decoder, group, states, losses[done:])
    return likelihood(windows, losses.numpy())


def _score(decoder: Decoder, group: Sequence[Window], states: Sequence[Tensor], losses: Tensor) -> int:
    """Put the losses of a group's scored tokens at the begin of `losses`; returns their number."""
    done = 0
    for (rows,), targets in scored_rows(group, states, scored_at_once(decoder.spec)):
        found = log_softmax(decoder, rows).gather(1, targets.to(decoder.device)[:, None])[:, 0]
        torch.neg(found.cpu(), out=losses[done : done + len(targets)])
        done += len(targets)
    return done


def likelihood(windows: Sequence[Window], losses: NDArray[np.float32]) -> Likelihood:
    """Of the losses [N] of all scored tokens in the order of the windows."""
    of_run = runs([window.scored for window in windows])
    return Likelihood(len(windows), sum(len(each.ids) for each in windows), len(losses), mean(losses, of_run))


def scored_rows(
    windows: Sequence[Window], states: Sequence[Tensor], at_once: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """From the states of each decoder [T, D] those that foretell a scored token [n, D], and these tokens' ids [n]."""
    start = 0
    for window in windows:
        size = len(window.ids)
        for first in range(window.first, size, at_once):
            end = min(first + at_once, size)
            yield [each[start + first - 1 : start + end - 1] for each in states], torch.tensor(window.ids[first:end])
        start += size


def log_softmax(decoder: Decoder, states: Tensor) -> Tensor:
    """Log-probabilities of every next token, float32 [n, V], after hidden states [n, D]."""
    logits = decoder.logits(decoder.normed(states))
    if not is_finite(logits):
        raise not_finite("in the logits", decoder.dtype)
    return logits.log_softmax(-1)
