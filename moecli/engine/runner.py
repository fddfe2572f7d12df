"""A loaded model in conversation: what `run` needs, from a folder to pieces of text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moecli import machine, plan
from moecli.engine.answer import Answer, Request, pieces
from moecli.engine.generate import Session
from moecli.engine.load import Model, open_model
from moecli.engine.sampling import Sampling
from moecli.errors import CheckpointError, MoecliError, NotEnoughMemory
from moecli.text.chat import Message
from moecli.text.defaults import GenerationDefaults, read_generation_defaults
from moecli.text.tokenizer import Tokenizer
from moecli.units import format_bytes

_CHAT_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user asked for; None leaves a choice to the model's generation_config.json."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    max_tokens: int = 512
    stops: tuple[str, ...] = ()
    system: str | None = None
    raw: bool = False
    context: int | None = None
    ram: int | None = None
    threads: int | None = None

    def sampling(self, vendor: GenerationDefaults) -> Sampling:
        """The user's word first, then the vendor's, then a temperature of 0.7."""

        def choose(user: float | None, theirs: float | None, otherwise: float) -> float:
            return user if user is not None else theirs if theirs is not None else otherwise

        greedy = self.temperature is None and vendor.do_sample is False
        return Sampling(
            0.0 if greedy else choose(self.temperature, vendor.temperature, 0.7),
            int(choose(self.top_k, vendor.top_k, 0)),
            choose(self.top_p, vendor.top_p, 1.0),
            choose(self.min_p, vendor.min_p, 0.0),
            choose(self.repeat_penalty, vendor.repetition_penalty, 1.0),
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `Runner.load` leaves: the plan that was obeyed, and the session it made."""

    plan: plan.Plan
    session: Session


@dataclass(slots=True)
class Runner:
    """One conversation. A base model, or --raw, continues one growing text instead."""

    name: str
    dtype: str
    seed: int
    choices: Choices
    sampling: Sampling
    end_ids: frozenset[int]
    model: Model
    tokenizer: Tokenizer
    _loaded: Loaded | None = None
    _messages: list[Message] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)  # a raw text so far

    @property
    def is_chat(self) -> bool:
        return self.tokenizer.chat_template is not None and not self.choices.raw

    @property
    def loaded(self) -> Loaded:
        assert self._loaded is not None, "load() comes first"
        return self._loaded

    def prompt(self, text: str) -> list[int]:
        """The ids of the whole conversation up to where the model goes on after `text`."""
        if self.is_chat:
            ids = self.tokenizer.encode_chat([*self._history(), Message("user", text)])
        else:
            ids = [*self._ids, *self.tokenizer.encode(text, special=not self._ids)]
        vocabulary = self.model.spec.vocab_size
        if not ids:
            raise MoecliError("the prompt holds no tokens")
        if max(ids) >= vocabulary:
            raise CheckpointError(
                f"the tokenizer knows id {max(ids)} and the model only {vocabulary}",
                "tokenizer.json and the weights belong to different models",
            )
        return ids

    def ask(self, text: str, answer: Answer) -> Iterator[str]:
        """Yield the answer piece by piece. Even interrupted it stays part of the conversation; a failure does not."""
        prompt = self.prompt(text)
        request = Request(
            prompt,
            self.sampling,
            self.seed,
            self.choices.max_tokens,
            self.end_ids,
            self.choices.stops,
            continues=not self.is_chat,
        )
        kept = True
        try:
            yield from pieces(self.loaded.session, self.tokenizer, request, answer)
        except MoecliError:
            kept = False
            raise
        finally:
            if kept:
                self._messages += [Message("user", text), Message("assistant", answer.text)]
                self._ids = [*prompt, *answer.token_ids]

    def clear(self) -> None:
        """Forget the conversation."""
        self._messages.clear()
        self._ids.clear()

    def _history(self) -> list[Message]:
        system = [Message("system", self.choices.system)] if self.choices.system else []
        return system + self._messages

    def load(self, first: str | None) -> None:
        """Reserve the context, read the dense weights. `first`: the only prompt to come, or None for a chat."""
        capacity = self._capacity(first)
        placed = plan.place(
            plan.needs(self.model.spec, self.dtype, capacity),
            machine.free_ram() if self.choices.ram is None else self.choices.ram,
        )
        if not placed.fits:
            raise _too_large(self.name, placed)
        decoder = self.model.decoder(self.dtype, capacity, placed.ram.expert_bytes)
        self._loaded = Loaded(placed, Session(decoder, decoder.new_cache(capacity, min(plan.CHUNK, capacity))))

    def _capacity(self, first: str | None) -> int:
        longest = self.choices.context or self.model.spec.context_length
        if first is None:
            return self.choices.context or min(longest, _CHAT_CONTEXT)
        needed = len(self.prompt(first))
        if needed > longest:
            raise MoecliError(
                f"the prompt is {needed} tokens and the context {longest}",
                "shorten it, or raise --ctx beyond what the model was trained for",
            )
        return min(longest, needed + self.choices.max_tokens)


def open_runner(name: str, folder: Path, dtype: str, choices: Choices) -> Runner:
    """Check all that the model in `folder` consists of, and read everything but its weights."""
    torch.set_num_threads(machine.compute_threads(choices.threads))
    model = open_model(folder)
    vendor = read_generation_defaults(folder)
    tokenizer = Tokenizer.load(folder)
    own = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    return Runner(
        name=name,
        dtype=model.dtype(dtype),
        seed=int.from_bytes(os.urandom(4), "little") if choices.seed is None else choices.seed,
        choices=choices,
        sampling=choices.sampling(vendor),
        end_ids=vendor.eos_ids | own,
        model=model,
        tokenizer=tokenizer,
    )


def _too_large(name: str, placed: plan.Plan) -> NotEnoughMemory:
    """The whole sum, the shortage, and the smallest budget that would do."""
    terms = " + ".join(f"{term.name} {format_bytes(term.bytes)}" for term in placed.needs.terms if term.bytes)
    return NotEnoughMemory(
        f"'{name}' in {placed.needs.dtype} needs {format_bytes(placed.full_ram)} of RAM "
        f"and {format_bytes(placed.ram_budget)} is free ({terms})",
        f"free {format_bytes(placed.full_ram - placed.ram_budget)} more, or see what would fit: moecli memory {name}",
    )
