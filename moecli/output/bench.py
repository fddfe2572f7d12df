"""How a measurement is shown: measured beside forecast in a table, the machine's limits; one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moecli.kernels.choice import chosen
from moecli.output import tables, terminal
from moecli.planning import machine
from moecli.planning.memory import read_bytes_per_token
from moecli.units import figure, format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moecli.engine.bench import Result
    from moecli.engine.runner import Runner

_NOTICEABLE = 0.1  # share of the processors
_BEYOND_CACHES = 128 * 2**20

_Band = tuple[float, float]


@contextmanager
def progress(repeat: int, quiet: bool) -> Iterator[Callable[[int, int, int], None]]:
    """A line that stands on a terminal while it is measured, and is gone after."""
    line = terminal.Line(quiet)

    def show(number: int, done: int, total: int) -> None:
        what = f"run {number} of {repeat}" if number else "warming up"
        line.show(f"{what}: {done:,} of {total:,} tokens")

    try:
        yield show
    finally:
        line.clear()


def screen(runner: Runner, result: Result, no_color: bool) -> None:
    """One screen on stdout."""
    to = tables.console(no_color)
    tables.show(to, _title(runner, result), _speeds(result), tables.facts(_facts(runner, result)))


def _title(runner: Runner, result: Result) -> RenderableType:
    work, threads = result.workload, machine.compute_threads(runner.choices.threads)
    return tables.title(
        f"{runner.name} in {runner.dtype}",
        f"{_kernel(runner)} kernel on {runner.device}, {threads} thread{'s' * (threads > 1)}; "
        f"prompt {work.prompt_tokens:,} tokens, answer {work.max_tokens:,}",
    )


def _speeds(result: Result) -> RenderableType:
    rows = [
        (name, figure(rate), _band((min(each), max(each))), _band(band), _verdict(rate, band))
        for name, rate, each, band in (
            ("prefill", result.prefill, [one.prefill_rate for one in result.repetitions], result.prefill_band),
            ("decode", result.decode, [one.decode_rate for one in result.repetitions], result.decode_band),
        )
    ]
    runs = f"{result.workload.repeat} run{'s' * (result.workload.repeat > 1)}"
    return tables.grid(("tokens/s", "median", runs, "forecast", ""), rows, left=(0, 4))


def _verdict(rate: float, band: _Band) -> str:
    return "below it" if rate < band[0] else "above it" if rate > band[1] else "as forecast"


def _facts(runner: Runner, result: Result) -> list[tuple[str, str]]:
    plan, bandwidths = result.expected.plan, result.expected.bandwidths
    per_token = read_bytes_per_token(runner.model.spec, runner.dtype)
    ram = f"reads {_rate(bandwidths.ram)}"
    if result.expected.sample < _BEYOND_CACHES:
        ram += f" (partly from the cache: measured with {format_bytes(result.expected.sample)})"
    if result.ram_rate is not None:
        ram += f"; decode reads {_rate(result.ram_rate)}, {tables.percent(result.ram_rate / bandwidths.ram)} of it"
    rows = [
        ("memory", f"{format_bytes(result.peak_rss)} at the peak, {format_bytes(plan.ram.total)} planned"),
        ("weights", f"{format_bytes(per_token)} for each token; loaded in {figure(result.load_s)} s"),
        ("RAM", ram),
    ]
    if result.disk_rate is not None and result.hit_rate is not None:
        rows += [
            ("disk", f"reads {_rate(bandwidths.disk)}; {_rate(result.disk_rate)} while experts were read"),
            (
                "experts",
                f"{plan.disk.experts:,} of {plan.memory.expert_count:,} on disk; decode finds "
                f"{tables.percent(result.hit_rate)} in memory and reads {format_bytes(result.disk_bytes_per_token)} "
                "for each token",
            ),
        ]
    if result.others >= _NOTICEABLE:
        rows.append(("busy", f"other programs took {tables.percent(result.others)} of the processors meanwhile"))
    return rows


def _band(band: _Band) -> str:
    return f"{figure(band[0])} to {figure(band[1])}"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f} GB/s"


def _kernel(runner: Runner) -> str:
    return chosen(runner.dtype, runner.device.type)


def document(runner: Runner, result: Result) -> dict[str, Any]:
    """`bench --json`: the keys of the command-line contract."""
    work, plan, bandwidths, speed = (
        result.workload,
        result.expected.plan,
        result.expected.bandwidths,
        result.expected.speed,
    )
    return {
        "schema_version": 1,
        "model": runner.name,
        "dtype": runner.dtype,
        "device": str(runner.device),
        "kernel": _kernel(runner),
        "threads": machine.compute_threads(runner.choices.threads),
        "policy": runner.choices.policy,
        "seed": runner.seed,
        "context": plan.memory.context,
        "prompt_tokens": work.prompt_tokens,
        "max_tokens": work.max_tokens,
        "repeat": work.repeat,
        "load_s": result.load_s,
        "prefill_tokens_per_s": result.prefill,
        "decode_tokens_per_s": result.decode,
        "hit_rate": result.hit_rate,
        "bytes_read": result.bytes_read,
        "disk_bytes_per_token": result.disk_bytes_per_token,
        "disk_bytes_per_s": result.disk_rate,
        "read_bytes_per_token": read_bytes_per_token(runner.model.spec, runner.dtype),
        "ram_bytes_per_s": result.ram_rate,
        "ram_share": None if result.ram_rate is None else result.ram_rate / bandwidths.ram,
        "peak_rss_bytes": result.peak_rss,
        "planned_bytes": {"device": plan.device.total, "ram": plan.ram.total, "disk": plan.disk.total},
        "forecast": {
            "decode_tokens_per_s": _limits(result.decode_band),
            "prefill_tokens_per_s": _limits(result.prefill_band),
            "first_token_s": _limits((speed.first_token_low_s, speed.first_token_high_s)),
            "evidence": speed.evidence,
            "ram_bandwidth_bytes_per_s": bandwidths.ram,
            "ram_sample_bytes": result.expected.sample,
            "disk_bandwidth_bytes_per_s": bandwidths.disk if plan.disk.experts else None,
        },
        "other_programs_share": result.others,
        "within_forecast": result.within_forecast,
        "repetitions": [
            {
                "prefill_tokens_per_s": each.prefill_rate,
                "decode_tokens_per_s": each.decode_rate,
                "bytes_read": each.prefill.bytes_read + each.decode.bytes_read,
            }
            for each in result.repetitions
        ],
    }


def _limits(band: _Band) -> dict[str, float]:
    return {"low": band[0], "high": band[1]}
