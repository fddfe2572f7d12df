"""What is said before an answer: the plan and how it was made, what speed to expect, and how far long work is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moecli.formats import GROUPED
from moecli.output import terminal
from moecli.planning.placement import least_device
from moecli.planning.rates import copied_from
from moecli.store.progress import Progress
from moecli.units import figure, format_bytes, format_duration

if TYPE_CHECKING:
    from moecli.engine.chat import GenerationConfig
    from moecli.engine.loaded import LoadedModel, OpenedModel
    from moecli.experts.store import Statistics
    from moecli.planning.placement import Plan, Tier
    from moecli.planning.rates import Rates
    from moecli.planning.speed import Throughput


_OFTEN = 0.1  # seconds between two looks
_KNOWN = 1.0  # seconds after which a rate means something


def explain(plan: Plan) -> str:
    """The plan in words, a line each: every term of the sum, the budget, and what lies where."""
    need = plan.memory
    lines = [f"{need.dtype}, context {need.context:,}, prompt in blocks of {need.block:,} and chunks of {need.chunk:,}"]
    lines += [f"  {term.name:<15} {format_bytes(term.bytes):>9} = {term.formula}" for term in need.terms if term.bytes]
    device = "" if plan.device_budget is None else f", device budget {format_bytes(plan.device_budget)}"
    whole = f"{'the rest' if plan.device.dense else 'all'} in RAM takes {format_bytes(plan.full_ram)}"
    lines.append(f"  RAM budget {format_bytes(plan.ram_budget)}{device}; {whole}")
    for name, tier in (("device", plan.device), ("RAM", plan.ram)):
        if tier.total:
            lines.append(f"  {name}: {_tier(plan, tier)}")
    if plan.disk.experts:
        lines.append(f"  disk: {plan.disk.experts:,} of {need.expert_count:,} experts")
    return "\n".join(lines)


def reasons(loaded: LoadedModel) -> str:
    """Once it is loaded: why its experts are computed where they are, and what speed to expect, a line each."""
    plan, opened = loaded.plan, loaded.opened
    lines = []
    if opened.vram is not None and not plan.device.dense:
        lines.append(f"  {opened.asked_device} is left out: {_left_out(plan)}")
    if (rates := loaded.rates) and plan.ram.experts + plan.disk.experts:
        lines.append(f"  an expert elsewhere {_elsewhere(plan, rates, loaded.device)}")
    if plan.fits:
        expected = opened.estimate_throughput(plan, rates)
        lines.append(f"  expect about {_expected(expected)}")
    return "\n".join(lines)


def _left_out(plan: Plan) -> str:
    if plan.device_budget is None:
        return f"torch would unpack {plan.memory.dtype} there for every product; --device cuda insists"
    return f"{format_bytes(least_device(plan.memory))} are needed there before any expert"


def _elsewhere(plan: Plan, rates: Rates, device: object) -> str:
    """Where one is computed that is not on the device, and by which figures."""
    copied = f"copied to {device} at {rates.copy / 1e9:.1f} GB/s"
    here = f"computed by the processor at {rates.host.bytes_per_s / 1e9:.1f} GB/s"
    first = copied_from(plan.memory.bytes_per_expert, rates)
    if first == 1:
        return f"is {copied}, instead of {here}"
    return f"is {here}, {f'from {first:,} tokens on' if first else 'instead of'} {copied}"


def _expected(speed: Throughput) -> str:
    return f"{figure(speed.middle)} tokens/s ({figure(speed.low)} to {figure(speed.high)}, {speed.evidence} bandwidths)"


def _tier(plan: Plan, tier: Tier) -> str:
    held = [
        f"{word} {format_bytes(size)}"
        for word, size in (
            ("process", tier.process), ("dense weights", tier.dense), ("KV cache", tier.kv),
            ("activations", tier.activations), ("staging", tier.staging),
        )
        if size
    ]  # fmt: skip
    if tier.experts:
        held.append(f"{tier.experts:,} of {plan.memory.expert_count:,} experts {format_bytes(tier.expert_bytes)}")
    return f"{format_bytes(tier.total)} = {' + '.join(held)}"


def sampled(config: GenerationConfig) -> str:
    """How tokens are chosen: what is switched off is left out."""
    how = config.sampling
    chance = how.temperature > 0
    settings = (
        ("top-k", how.top_k, chance and how.top_k > 0), ("top-p", how.top_p, chance and how.top_p < 1),
        ("min-p", how.min_p, chance and how.min_p > 0), ("repeat penalty", how.repeat_penalty, how.repeat_penalty != 1),
        ("seed", config.seed, chance),
    )  # fmt: skip
    first = f"temperature {how.temperature:g}" if chance else "greedy"
    return ", ".join([first, *(f"{name} {value}" for name, value, counts in settings if counts)])


def expectation(opened: OpenedModel, plan: Plan, speed: Throughput) -> str:
    """What is read from disk, and how fast that will be; of a checkpoint also how it would be faster."""
    found = (
        f"{plan.disk.experts:,} of {plan.memory.expert_count:,} experts stay on disk: expect about {_expected(speed)}"
    )
    if not opened.converts:
        return found
    keeps = " --dtype auto" if opened.model.dtypes[0] in GROUPED else ""
    return (
        f"{found}\nhint: they are read from the checkpoint's own files and converted each time; packed once they come "
        f"faster: moecli pack {opened.ref.typed}{keeps}"
    )


def introduce(name: str) -> None:
    """Say what the built-in model is, and which real one is the smallest."""
    from moecli.output import tables

    real = "moecli run granite-3.1-1b --dtype q4"
    tables.whisper(
        f"{name} is a demonstration and knows nothing; a small real model (1.4 GiB): {real}",
        f"{name}: a demonstration, knows nothing. Real: {real}",
        f"{name}: a demonstration, knows nothing",
    )


def tell_read(tokens: int, seconds: float, plans: Sequence[Plan], experts: Sequence[Statistics]) -> None:
    """How fast texts were read, how much of experts came from disk, and the peak of memory: on stderr, dim."""
    from moecli.output import tables
    from moecli.planning import machine

    read = sum(each.bytes_read for each in experts)
    disk = f", {format_bytes(read)} of experts from disk" if read else ""
    planned = sum(plan.ram.total for plan in plans) - sum(plan.memory.process.bytes for plan in plans[1:])
    memory = f"peak memory {format_bytes(machine.peak_rss())} (planned {format_bytes(planned)})"
    text = f"{tokens:,} tokens in {format_duration(seconds)}, {figure(tokens / seconds)} tok/s{disk}"
    tables.whisper(f"{text}; {memory}", text)


@contextmanager
def progress(name: str, quiet: bool) -> Iterator[Progress]:
    """A line that stands on a terminal while weights are read, or packed on the way, and is gone after."""
    with terminal.Line(quiet) as line:
        line.show("loading ...")
        yield _Meter(line, f"loading {name}", "bytes")


@contextmanager
def meter(what: str, unit: str, quiet: bool) -> Iterator[Progress]:
    """A line that stands on a terminal while something is done: how much of it, how fast, how long still."""
    with terminal.Line(quiet) as line:
        yield _Meter(line, what, unit)


class _Meter:
    """tiny reads: 1,200 of 7,355 tokens, 410 tokens/s, 15 s left"""

    def __init__(self, line: terminal.Line, what: str, unit: str) -> None:
        self._line, self._what, self._unit = line, what, unit
        self._began = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total:
            self._line.clear()
            return
        if now - self._shown < _OFTEN:
            return
        self._shown = now
        spent = now - self._began
        in_bytes = self._unit == "bytes"
        some, all_ = (format_bytes(done), format_bytes(total)) if in_bytes else (f"{done:,}", f"{total:,} {self._unit}")
        said = f"{self._what}: {some} of {all_}"
        if done and spent > _KNOWN:
            rate = done / spent
            left = f"{format_duration((total - done) / rate)} left"
            pace = f"{format_bytes(rate) if in_bytes else f'{figure(rate)} {self._unit}'}/s"
            self._line.show(f"{said}, {pace}, {left}", f"{said}, {left}", f"{self._what}: {left}")
        else:
            self._line.show(said)
