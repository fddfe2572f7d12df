"""How likely given answers are after a prompt, which is read once for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moecli.engine.chat import Conversation, GenerationConfig
from moecli.engine.finite import is_finite, not_finite
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.sampling import score
from moecli.errors import MoecliError, UsageError
from moecli.kernels.blocking import BLOCK
from moecli.planning.placement import Plan
from moecli.store.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Labels:
    """Answers to be scored, as ids behind the ids of their prompt."""

    prompt: tuple[int, ...]
    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt) + max(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One answer and the log-probability of each of its tokens, those before it given."""

    name: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """Of the whole answer."""
        return math.fsum(self.logprobs)


def encode_labels(opened: OpenedModel, config: GenerationConfig, text: str, names: Sequence[str]) -> Labels:
    """The ids of a prompt and of each answer behind it.

    In a chat an answer begins the assistant's turn. Elsewhere it goes on in the text, behind a space where that ends in
    none. UsageError for answers that are empty or too long.
    """
    conversation = Conversation(opened, config)
    if conversation.reads_apart:
        raise UsageError(f"{opened.name} fills gaps and has no answers to score", "name a model that continues a text")
    prompt = conversation.prompt(text)
    space = "" if conversation.is_chat or text[-1:].isspace() else " "
    ids = [tuple(opened.tokenizer.encode(space + name, special=False)) for name in names]
    for name, each in zip(names, ids, strict=True):
        if not 0 < len(each) <= BLOCK:
            raise UsageError(f"the label '{name[:40]}' is {len(each)} tokens", f"it takes 1 to {BLOCK}")
    return Labels(tuple(prompt), tuple(names), tuple(ids))


def plan_for(opened: OpenedModel, labels: Labels) -> Plan:
    """Where everything goes, with a cache for the prompt and one answer. NotEnoughMemory if it cannot."""
    longest = opened.options.context or opened.spec.context_length
    if labels.longest > longest:
        raise MoecliError(
            f"prompt and label are {labels.longest} tokens and the context {longest}",
            "shorten them, or raise --ctx beyond what the model was trained for",
        )
    return opened.plan(labels.longest)


def score_labels(loaded: LoadedModel, labels: Labels, watch: Progress = silent) -> list[LabelScore]:
    """The scores of all answers, in their order; `watch` is told how far the prompt is read."""
    decoder, cache = loaded.decoder, loaded.cache
    prompt = torch.tensor(labels.prompt)
    cache.rewind(0)
    states = decoder.forward(prompt, cache, last_only=True, watch=watch)
    first = decoder.logits(states).cpu()
    found = []
    for name, ids in zip(labels.names, labels.ids, strict=True):
        logits = first
        if len(ids) > 1:
            if (kept := cache.rewind(len(prompt))) != len(prompt):  # a window has moved on, or a state
                decoder.forward(prompt[kept:], cache, last_only=True)
            logits = torch.cat([first, decoder.logits(decoder.forward(torch.tensor(ids[:-1]), cache)).cpu()])
        if not is_finite(logits):
            raise not_finite("in the logits", decoder.dtype)
        logprobs = tuple(score(row, token, 0).logprob for row, token in zip(logits, ids, strict=True))
        found.append(LabelScore(name, ids, logprobs))
    return found


def shares(scores: Sequence[LabelScore]) -> list[float]:
    """What part of the probability of all these answers each of them has."""
    highest = max(each.logprob for each in scores)
    weights = [math.exp(each.logprob - highest) for each in scores]
    return [weight / math.fsum(weights) for weight in weights]
