"""A model with its tokenizer: opened, planned within budgets that are measured once, then loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moecli import settings
from moecli.engine.cache import Cache
from moecli.engine.decoder import Decoder
from moecli.engine.device import choose_device, examine
from moecli.engine.load import Model, check_dtype, open_model
from moecli.engine.shortage import device_shortage, ram_shortage
from moecli.engine.team import Team
from moecli.errors import UsageError, reading
from moecli.experts.arena import CPU
from moecli.experts.gpu_offloaded import GpuOffloadedExperts
from moecli.experts.policies import DEFAULT
from moecli.library.resolve import ModelRef
from moecli.model.spec import ModelSpec
from moecli.planning import choice, machine, measured
from moecli.planning.measured import Card
from moecli.planning.placement import Plan, fit
from moecli.planning.rates import Rates
from moecli.planning.speed import Throughput, estimate_throughput
from moecli.store.progress import Progress
from moecli.text.defaults import GenerationDefaults, read_generation_defaults
from moecli.text.tokenizer import Tokenizer
from moecli.units import format_bytes


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """In what format, where, and within how much memory a model runs. None leaves it to model and machine."""

    dtype: str = "auto"
    context: int | None = None  # tokens
    ram: int | None = None  # bytes
    device: str = "auto"
    vram: int | None = None  # bytes
    threads: int | None = None
    policy: str = DEFAULT
    expert_capacity: int | None = None  # tokens that an expert takes in one pass; 0: any number
    also: Path | None = None  # a copy of the packed model, on another disk


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model whose files are checked and whose weights are not yet read, and the memory that it may take.

    The budgets `ram` and `vram` (None without a device) are bytes, and the same for every plan that is made. `card` is
    what is known of the device.
    """

    ref: ModelRef
    options: LoadOptions
    model: Model
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    asked_device: torch.device
    ram: int
    vram: int | None
    team: Team
    card: Card | None = None

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def notes(self) -> tuple[str, ...]:
        """What of its files is left out or read otherwise than one might expect, a sentence each."""
        return (*self.model.notes, *self.tokenizer.notes)

    @property
    def converts(self) -> bool:
        """Whether experts that are read from disk are made of a checkpoint's own files, and not those of a store."""
        return self.model.streams and self.model.unpacked(self.model.dtypes[0]) is not None

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        own = self.tokenizer.eos_id
        return self.defaults.eos_ids | (frozenset() if own is None else frozenset({own}))

    def vram_for(self, dtype: str) -> int | None:
        """Bytes of the device that a run in this format may take; None to leave it out."""
        if self.options.device != "auto":
            return self.vram
        return choice.device_for(dtype, self.vram, self.card is None or self.card.kernels)

    def plan(self, context: int, batch: int = 1, block: int | None = None) -> Plan:
        """Where everything goes for `batch` texts of `context` tokens. NotEnoughMemory if it cannot.

        `block`: prompt tokens that are read together; None: those of one text.
        """

        def plan_for(dtype: str) -> Plan:
            unpacked = self.model.unpacked(dtype)
            return fit(self.spec, dtype, context, self.ram, self.vram_for(dtype), batch, unpacked, block)

        return self.choose(plan_for)

    def choose(self, plan_for: Callable[[str], Plan]) -> Plan:
        """The plan of the first format that runs. NotEnoughMemory if none does.

        "auto" is the format it is stored in if that fits, else the most precise block format that does.
        """
        stored, wanted = self.model.dtypes[0], self.options.dtype
        names = (
            [wanted] if wanted != "auto" else [each for each in choice.automatic(stored) if each in self.model.dtypes]
        )
        plans = [plan_for(name) for name in names]
        # Of a checkpoint the first that runs: what is quantised anew at every read takes long to arrive.
        streaming = plans[::-1] if self.converts else plans
        plan = choice.best(plans, streaming if self.model.streams else ())
        if plan is None:
            unpacked = self.model.unpacked(names[-1]) if self.converts else None
            raise ram_shortage(self.ref, plans, self.model.streams, unpacked.buffers if unpacked else 0)
        self.check_device(plan)
        return plan

    def estimate_throughput(self, plan: Plan, rates: Rates | None = None) -> Throughput:
        """What to expect of a plan by what is known of this machine, and by the `rates` of its experts, else those that
        an earlier run measured; where some are read from disk, that is measured now."""
        speed = self.model.measure_disk(plan.memory.dtype) if plan.disk.experts else None
        if not self.converts:
            measured.remember(disk=speed)
        known = measured.with_card(measured.recall(), self.card)
        if speed is not None:
            known = replace(known, disk=speed, sources=replace(known.sources, disk="measured"))
        return estimate_throughput(self.spec, plan, known, rates=rates or self.known_rates(plan))

    def known_rates(self, plan: Plan) -> Rates | None:
        """How fast experts as a plan's are copied and computed beside this card; None until a run has measured it."""
        return self.card.of(plan.memory) if self.card is not None and plan.device.dense else None

    def decoder(self, plan: Plan, progress: Progress) -> Decoder:
        """Read the weights as planned; `progress` is told bytes done, of how many."""
        device = self.asked_device if plan.device.dense else CPU
        decoder = self.model.decoder(plan, self.options.policy, progress, device)
        decoder.team = self.team
        return decoder

    def load(self, plan: Plan, progress: Progress) -> LoadedModel:
        """Read the weights as planned, and reserve the cache for a text as long as the plan's context."""
        decoder = self.decoder(plan, progress)
        cache = decoder.new_cache(plan.memory.context, plan.memory.chunk)
        loaded = LoadedModel(self, plan, decoder, cache)
        if self.card is not None and loaded.rates is not None:
            measured.remember(card=self.card.knowing(plan.memory, loaded.rates))
        return loaded

    def check_device(self, plan: Plan) -> None:
        """NotEnoughMemory if a GPU was asked for by name and holds nothing. `auto` goes on without it."""
        if not plan.device.dense and plan.device_budget is not None and self.options.device != "auto":
            raise device_shortage(self.ref, plan, plan.device_budget, self.asked_device)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run, placed as `plan` says; `cache` holds one text at a time."""

    opened: OpenedModel
    plan: Plan
    decoder: Decoder
    cache: Cache

    @property
    def name(self) -> str:
        return self.opened.name

    @property
    def dtype(self) -> str:
        return self.plan.memory.dtype

    @property
    def device(self) -> torch.device:
        """Where dense weights and cache are."""
        return self.decoder.device

    @property
    def rates(self) -> Rates | None:
        """How fast experts are copied to the device and computed on either side; None without a device."""
        experts = self.decoder.experts
        return experts.rates if isinstance(experts, GpuOffloadedExperts) else None


def open_for_run(ref: ModelRef, options: LoadOptions) -> OpenedModel:
    """Check all that a model on this machine consists of, and read everything but its weights.

    UsageError for options that do not suit it or the machine; ConfigError or CheckpointError if its files are unfit.
    """
    team = Team(machine.compute_threads(options.threads), options.threads is None)
    settings.keep_freed_memory()
    device = choose_device(options.device)
    if device.type == "cpu" and options.vram is not None:
        raise UsageError(f"--vram {format_bytes(options.vram)} has no GPU to bound", "leave --vram out")
    with reading(ref.weights):
        model = open_model(ref.weights, options.expert_capacity, options.also)
        check_dtype(model, options.dtype)
        defaults = read_generation_defaults(ref.weights)
        tokenizer = Tokenizer.load(ref.weights, ref.tokenizer)
    ram = machine.free_ram() if options.ram is None else options.ram
    card = None if device.type == "cpu" else examine(device)
    vram = card.free if card is not None and options.vram is None else options.vram
    return OpenedModel(ref, options, model, tokenizer, defaults, device, ram, vram, team, card)
