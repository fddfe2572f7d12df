"""Measures a model on random text, beside the forecast for exactly that: what `bench` needs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median

import torch

from moecli.engine.cache import Cache
from moecli.engine.generate import Session, Timing
from moecli.engine.limits import OtherPrograms, measure_bandwidths, sample_bytes
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.sampling import Sampler, Sampling
from moecli.errors import UsageError
from moecli.experts.store import Statistics
from moecli.planning import machine
from moecli.planning.placement import Plan
from moecli.planning.speed import Bandwidths, Throughput, bytes_per_token, estimate_throughput
from moecli.store.progress import Progress

_PROMPT, _ANSWER = 512, 128  # tokens, where the context is long enough

Watch = Callable[[int, int, int], None]  # repetition (0 warms up), tokens done, of how many


@dataclass(frozen=True, slots=True)
class Workload:
    """`repeat` times a random prompt and as many decode steps as there are tokens to generate; then as many of
    `parallel` texts side by side, each behind a prompt of its own, if they are more than one."""

    prompt_tokens: int
    max_tokens: int
    repeat: int
    seed: int = 0
    parallel: int = 1

    @property
    def context(self) -> int:
        """Tokens of one repetition, prompt and answer."""
        return self.prompt_tokens + self.max_tokens

    @property
    def held(self) -> float:
        """Tokens in the cache while decoding, on average."""
        return self.prompt_tokens + self.max_tokens / 2


@dataclass(frozen=True, slots=True)
class Expectation:
    """A plan on this machine, whose limits were measured, and the speed that follows from them."""

    plan: Plan
    sample: int  # bytes that the bandwidth of RAM was measured with
    bandwidths: Bandwidths
    speed: Throughput


@dataclass(frozen=True, slots=True)
class Repetition:
    """What one prompt and its continuation cost."""

    timing: Timing
    prefill: Statistics
    decode: Statistics

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second."""
        return self.timing.prompt_tokens / self.timing.prefill_s

    @property
    def decode_rate(self) -> float:
        """Decode steps per second."""
        return self.timing.steps / self.timing.decode_s


@dataclass(frozen=True, slots=True)
class Result:
    """All that `bench` shows. Rates are tokens per second, medians over the repetitions."""

    workload: Workload
    expected: Expectation
    repetitions: Sequence[Repetition]
    load_s: float
    peak_rss: int
    ram_per_token: float  # bytes that a decode step reads from RAM
    others: float  # share of the machine's processor time that other programs took meanwhile
    parallel: Sequence[float] = ()  # tokens per second of all texts side by side, of each repetition

    @property
    def prefill(self) -> float:
        """Median of the repetitions, prompt tokens per second."""
        return median(each.prefill_rate for each in self.repetitions)

    @property
    def decode(self) -> float:
        """Median of the repetitions, decode steps per second."""
        return median(each.decode_rate for each in self.repetitions)

    @property
    def prefill_band(self) -> tuple[float, float]:
        """Lowest and highest prompt tokens per second that were forecast."""
        tokens, speed = self.workload.prompt_tokens, self.expected.speed
        return tokens / speed.first_token_high_s, tokens / speed.first_token_low_s

    @property
    def decode_band(self) -> tuple[float, float]:
        """Lowest and highest decode steps per second that were forecast."""
        return self.expected.speed.low, self.expected.speed.high

    @property
    def within_forecast(self) -> bool:
        """Whether both medians lie in the bands that were forecast."""
        return within(self.prefill, self.prefill_band) and within(self.decode, self.decode_band)

    @property
    def hit_rate(self) -> float | None:
        """The share of experts that decoding found in memory: 1 where nothing is on disk; None without experts."""
        hits = sum(each.decode.hits for each in self.repetitions)
        misses = sum(each.decode.misses for each in self.repetitions)
        return hits / (hits + misses) if hits + misses else None

    @property
    def bytes_read(self) -> int:
        """Bytes that all repetitions read from disk."""
        return sum(each.prefill.bytes_read + each.decode.bytes_read for each in self.repetitions)

    @property
    def disk_bytes_per_token(self) -> float:
        """Bytes that a decode step reads from disk, on average."""
        steps = sum(each.timing.steps for each in self.repetitions)
        return sum(each.decode.bytes_read for each in self.repetitions) / steps

    @property
    def disk_rate(self) -> float | None:
        """Bytes per second while reads were under way, prompts included; None where nothing was read."""
        seconds = sum(each.prefill.read_s + each.decode.read_s for each in self.repetitions)
        return self.bytes_read / seconds if seconds else None

    @property
    def ram_rate(self) -> float | None:
        """Bytes per second that decoding read from RAM; None where disk or device have a part in it."""
        plan = self.expected.plan
        return None if plan.disk.experts or plan.device.dense else self.ram_per_token * self.decode


def within(rate: float, band: tuple[float, float]) -> bool:
    """Whether a measured rate lies in its band."""
    return band[0] <= rate <= band[1]


def workload(
    opened: OpenedModel,
    prompt_tokens: int | None,
    max_tokens: int | None,
    repeat: int,
    seed: int = 0,
    parallel: int = 1,
) -> Workload:
    """What is asked for; what is left open is shorter where the context is. UsageError beyond the context."""
    longest = opened.options.context or opened.spec.context_length
    answer = max_tokens or max(1, min(_ANSWER, longest // 4, longest - (prompt_tokens or 0)))
    prompt = prompt_tokens or max(1, min(_PROMPT, longest - answer))
    if prompt + answer > longest:
        raise UsageError(
            f"a prompt of {prompt} tokens and {answer} after it are more than the context of {longest}",
            "--prompt-tokens and --max-tokens take fewer; --ctx raises it beyond what the model was trained for",
        )
    return Workload(prompt, answer, repeat, seed, parallel)


def expect(opened: OpenedModel, work: Workload) -> Expectation:
    """Plan, measure what this machine can do, and forecast; nothing is loaded yet. NotEnoughMemory as the plan says."""
    plan = opened.plan(opened.options.context or work.context, work.parallel)
    sample = sample_bytes(plan)
    bandwidths = measure_bandwidths(opened.model, plan, sample, opened.card)
    speed = estimate_throughput(opened.spec, plan, bandwidths, work.prompt_tokens, work.held, opened.known_rates(plan))
    return Expectation(plan, sample, bandwidths, speed)


def load(opened: OpenedModel, expected: Expectation, progress: Progress) -> tuple[LoadedModel, float]:
    """Read the weights as planned; returns the model, and the seconds that took."""
    began = time.perf_counter()
    loaded = opened.load(expected.plan, progress)
    return loaded, time.perf_counter() - began


def measure(loaded: LoadedModel, work: Workload, expected: Expectation, load_s: float, watch: Watch) -> Result:
    """Warm up, then repeat. Each prompt meets an empty cache, and the experts that the last one left."""
    _repetition(loaded, replace(work, max_tokens=1), 0, watch)
    others = OtherPrograms()
    repetitions = [_repetition(loaded, work, number, watch) for number in range(1, work.repeat + 1)]
    read = bytes_per_token(loaded.opened.spec, expected.plan, work.held)
    parallel: Sequence[float] = ()
    if work.parallel > 1:
        caches = [loaded.cache]
        while len(caches) < work.parallel:
            caches.append(loaded.decoder.new_cache(loaded.cache.capacity, loaded.cache.chunk))
        parallel = [_side_by_side(loaded, work, number, caches, watch) for number in range(1, work.repeat + 1)]
    return Result(work, expected, repetitions, load_s, machine.peak_rss(), read["ram"], others.share(), parallel)


def _repetition(loaded: LoadedModel, work: Workload, number: int, watch: Watch) -> Repetition:
    prompt = random_prompt(loaded.opened, work.prompt_tokens, work.seed + number)
    sampler = Sampler(Sampling(temperature=1.0), work.seed + number)
    timing, statistics = Timing(), loaded.decoder.experts.statistics
    watch(number, 0, work.context)
    start = replace(statistics)
    steps = Session(loaded.decoder, loaded.cache).generate(prompt, sampler, work.max_tokens + 1, timing)
    next(steps)
    between = replace(statistics)
    for step, _ in enumerate(steps, start=work.prompt_tokens + 1):
        watch(number, step, work.context)
    return Repetition(timing, _since(start, between), _since(between, statistics))


def _side_by_side(loaded: LoadedModel, work: Workload, number: int, caches: Sequence[Cache], watch: Watch) -> float:
    decoder, seed = loaded.decoder, work.seed + number * len(caches)
    for text, cache in enumerate(caches):
        cache.rewind(0)
        prompt = random_prompt(loaded.opened, work.prompt_tokens, seed + text)
        if decoder.encoder is None:
            decoder.forward(torch.tensor(prompt), cache, last_only=True)
        else:
            decoder.read(torch.tensor(prompt), cache)
    samplers = [Sampler(Sampling(temperature=1.0), seed + text) for text in range(len(caches))]
    ids = random_prompt(loaded.opened, len(caches), seed)
    began = time.perf_counter()
    for step in range(1, work.max_tokens + 1):
        logits = decoder.logits(decoder.forward_texts(torch.tensor(ids), caches)).cpu()
        ids = [sampler.pick(row, ()) for sampler, row in zip(samplers, logits, strict=True)]
        watch(number, step, work.max_tokens)
    return len(caches) * work.max_tokens / (time.perf_counter() - began)


def random_prompt(opened: OpenedModel, count: int, seed: int) -> list[int]:
    """Ids that stand for text: a random walk through the vocabulary visits most experts."""
    known = range(min(opened.spec.vocab_size, opened.tokenizer.size))
    plain = [number for number in known if number not in opened.tokenizer.special_ids]
    return random.Random(seed).choices(plain or known, k=count)


def _since(before: Statistics, after: Statistics) -> Statistics:
    names = (field.name for field in fields(Statistics))
    return Statistics(**{name: getattr(after, name) - getattr(before, name) for name in names})
