"""A loaded model in conversation: what `run` needs, from a folder to pieces of text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moecli import settings
from moecli.engine.answer import Answer, Request, pieces
from moecli.engine.decoder import Decoder
from moecli.engine.device import choose_device, free_vram
from moecli.engine.generate import Session
from moecli.engine.load import Model, Progress, check_dtype, open_model
from moecli.engine.recorder import Recorder, finish, new_builder
from moecli.engine.sampling import Sampling
from moecli.errors import CheckpointError, MoecliError, NotEnoughMemory, UsageError
from moecli.experts.arena import CPU
from moecli.experts.policies import DEFAULT
from moecli.planning import machine
from moecli.planning.placement import Plan, fit, least_device
from moecli.planning.speed import Bandwidths, Throughput, estimate_throughput
from moecli.routing.builder import TraceBuilder
from moecli.routing.trace import RoutingTrace
from moecli.text.chat import Message
from moecli.text.defaults import GenerationDefaults, read_generation_defaults
from moecli.text.tokenizer import Tokenizer
from moecli.units import format_bytes, round_up

_CHAT_CONTEXT = 8192
_AUTO = ("bf16", "q8", "q4")  # what "auto" falls back to; the others are chosen by name


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
    device: str = "auto"
    vram: int | None = None
    threads: int | None = None
    policy: str = DEFAULT

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

    plan: Plan
    session: Session


@dataclass(slots=True)
class Runner:
    """One conversation. A base model, or --raw, continues one growing text instead."""

    name: str
    argument: str  # MODEL as it was typed: what hints repeat
    wanted: str  # a format, or "auto"
    seed: int
    choices: Choices
    sampling: Sampling
    end_ids: frozenset[int]
    model: Model
    tokenizer: Tokenizer
    asked_device: torch.device = CPU
    _loaded: Loaded | None = None
    _messages: list[Message] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)  # a raw text so far
    _recorded: tuple[TraceBuilder, Recorder] | None = None
    _turns: int = 0  # asked so far, a failed one too

    @property
    def dtype(self) -> str:
        return self.loaded.plan.memory.dtype

    @property
    def ram(self) -> int:
        """The budget."""
        return machine.free_ram() if self.choices.ram is None else self.choices.ram

    @property
    def vram(self) -> int | None:
        """The budget on the device; None without one."""
        if self.asked_device.type == "cpu":
            return None
        return free_vram(self.asked_device) if self.choices.vram is None else self.choices.vram

    @property
    def device(self) -> torch.device:
        """Where dense weights and cache are."""
        return self.loaded.session.decoder.device

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
        recorder = self._recorded and self._recorded[1]
        if recorder:
            recorder.begin(self._turns)
        self._turns += 1
        kept = True
        try:
            yield from pieces(self.loaded.session, self.tokenizer, request, answer, recorder)
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

    def plan(self, first: str | None) -> Plan:
        """Where everything will go. `first`: the only prompt to come, or None for a chat. NotEnoughMemory if it cannot.

        "auto" is the format it is stored in if that fits, else the most precise block format that does.
        """
        context = self._capacity(first)
        return self.choose(lambda dtype: fit(self.model.spec, dtype, context, self.ram, self.vram))

    def choose(self, plan_for: Callable[[str], Plan]) -> Plan:
        """The plan of the first format that runs. NotEnoughMemory if none does."""
        stored, *others = self.model.dtypes
        names = [self.wanted] if self.wanted != "auto" else [stored, *(name for name in others if name in _AUTO)]
        plans = [plan_for(name) for name in names]
        for placed in plans:
            if placed.fits or (placed.runs and self.model.streams):
                self._check_device(placed)
                return placed
        raise _too_large(self.argument, plans, self.model.streams)

    def estimate_throughput(self, placed: Plan) -> Throughput:
        """What to expect of a plan that reads experts from disk, whose speed is measured now."""
        speed = self.model.measure_disk()
        bandwidths = Bandwidths() if speed is None else Bandwidths(disk=speed, evidence="measured")
        return estimate_throughput(self.model.spec, placed, bandwidths)

    def record(self) -> None:
        """From now on, keep what the router does. ConfigError if there is no router."""
        builder = new_builder(self.name, self.model.spec)
        self._recorded = builder, Recorder(self.model.spec, builder)

    def trace(self) -> RoutingTrace | None:
        """What was recorded; None if no token was."""
        assert self._recorded is not None, "record() comes first"
        builder, recorder = self._recorded
        recorder.flush()
        if not recorder.recorded:
            return None
        return finish(builder, self.model.spec, self.tokenizer, self.name, self.dtype)

    def decoder(self, placed: Plan, progress: Progress) -> Decoder:
        """Read the weights as planned."""
        device = self.asked_device if placed.device.dense else CPU
        return self.model.decoder(placed, self.choices.policy, progress, device)

    def load(self, placed: Plan, progress: Progress) -> None:
        """Read the weights and reserve the context, as planned."""
        decoder = self.decoder(placed, progress)
        self._loaded = Loaded(placed, Session(decoder, decoder.new_cache(placed.memory.context, placed.memory.chunk)))

    def _check_device(self, placed: Plan) -> None:
        """NotEnoughMemory if a GPU was asked for by name and holds nothing. `auto` goes on without it."""
        if placed.device.dense or placed.device_budget is None or self.choices.device == "auto":
            return
        least = least_device(placed.memory)
        raise NotEnoughMemory(
            f"'{self.name}' in {placed.memory.dtype} needs {format_bytes(least)} on {self.asked_device} before any "
            f"expert, and the budget is {format_bytes(placed.device_budget)}",
            f"--vram {round_up(least)} if there is so much; a shorter --ctx needs less; --device cpu needs none",
        )

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


def open_runner(name: str, folder: Path, dtype: str, choices: Choices, argument: str | None = None) -> Runner:
    """Check all that the model in `folder` consists of, and read everything but its weights.

    `argument` is the MODEL that was typed, if that is not the name.
    """
    torch.set_num_threads(machine.compute_threads(choices.threads))
    settings.keep_freed_memory()
    device = choose_device(choices.device)
    if device.type == "cpu" and choices.vram is not None:
        raise UsageError(f"--vram {format_bytes(choices.vram)} has no GPU to bound", "leave --vram out")
    model = open_model(folder)
    check_dtype(model, dtype)
    vendor = read_generation_defaults(folder)
    tokenizer = Tokenizer.load(folder)
    own = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    return Runner(
        name=name,
        argument=argument or name,
        wanted=dtype,
        seed=int.from_bytes(os.urandom(4), "little") if choices.seed is None else choices.seed,
        choices=choices,
        sampling=choices.sampling(vendor),
        end_ids=vendor.eos_ids | own,
        model=model,
        tokenizer=tokenizer,
        asked_device=device,
    )


def _too_large(model: str, plans: Sequence[Plan], streams: bool) -> NotEnoughMemory:
    """The whole sum, the shortage, and the smallest budget that would do."""
    first, least = plans[0], min(plans, key=lambda placed: placed.full_ram)
    smallest = least.least_ram if streams else least.full_ram
    terms = " + ".join(f"{term.name} {format_bytes(term.bytes)}" for term in first.memory.terms if term.bytes)
    budget = first.ram_budget
    message = f"'{model}' in {first.memory.dtype} needs {format_bytes(first.full_ram)} of RAM and the budget is "
    message += f"{format_bytes(budget)} ({terms})"
    if streams:
        return NotEnoughMemory(
            f"{message}; even with every expert on disk it is {format_bytes(smallest - budget)} short",
            f"the smallest budget that works is --ram {round_up(smallest)}; a shorter --ctx needs less",
        )
    message += f"; it is {format_bytes(first.full_ram - budget)} short"
    if not first.memory.expert_count:
        return NotEnoughMemory(
            message,
            f"a model without experts runs in RAM alone: --ram {round_up(smallest)} in {least.memory.dtype}; "
            "a shorter --ctx needs less",
        )
    return NotEnoughMemory(
        message,
        f"experts are read from disk once it is packed: moecli pack {model} --dtype q4; "
        f"without, --ram {round_up(smallest)} in {least.memory.dtype}",
    )
