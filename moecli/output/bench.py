"""How a measurement is shown: measured beside forecast in a table, and the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

from moecli.formats.words import formats_of
from moecli.kernels.choice import chosen
from moecli.output import tables, terminal
from moecli.planning import machine
from moecli.planning.memory import read_bytes_per_token
from moecli.units import figure, format_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from moecli.engine.bench import Result
    from moecli.engine.loaded import LoadedModel

_NOTICEABLE = 0.1  # share of the processors
_BEYOND_CACHES = 128 * 2**20

_Band = tuple[float, float]


@contextmanager
def progress(repeat: int, quiet: bool) -> Iterator[Callable[[int, int, int], None]]:
    """A line that stands on a terminal while it is measured, and is gone after."""
    with terminal.Line(quiet) as line:

        def show(number: int, done: int, total: int) -> None:
            what = f"run {number} of {repeat}" if number else "warming up"
            line.show(f"{what}: {done:,} of {total:,} tokens")

        yield show


def screen(loaded: LoadedModel, result: Result, no_color: bool) -> None:
    """Print the measurement beside its forecast, and what the machine gives, on stdout."""
    to = tables.console(no_color)
    tables.show(to, _title(loaded, result), *_speeds(to, result), tables.Facts(_facts(loaded, result)))


def _title(loaded: LoadedModel, result: Result) -> RenderableType:
    work, threads = result.workload, machine.compute_threads(loaded.opened.options.threads)
    kernel = chosen(formats_of(loaded.dtype).experts, loaded.device.type)
    return tables.title(
        f"{loaded.name} in {loaded.dtype}",
        f"{kernel} kernel on {loaded.device}, {threads} thread{'s' * (threads > 1)}; "
        f"prompt {work.prompt_tokens:,} tokens, answer {work.max_tokens:,}",
    )


def _speeds(to: Console, result: Result) -> Sequence[RenderableType]:
    """One table, or on a narrow screen what was measured, then what was forecast."""
    rows = [
        (name, figure(rate), _band((min(each), max(each))), _band(band), _verdict(rate, band))
        for name, rate, each, band in (
            ("prefill", result.prefill, [one.prefill_rate for one in result.repetitions], result.prefill_band),
            ("decode", result.decode, [one.decode_rate for one in result.repetitions], result.decode_band),
        )
    ]
    if each := result.parallel:
        name, ratio = f"decode, {result.workload.parallel} texts", median(each) / result.decode
        rows.append((name, figure(median(each)), _band((min(each), max(each))), "", f"{ratio:.2f} times one text"))
    runs = f"{result.workload.repeat} run{'s' * (result.workload.repeat > 1)}"
    header = ("tokens/s", "median", runs, "forecast", "")
    if tables.columns_that_fit(to, header, rows) < len(header) - 1:
        return tables.blocks(to, header, rows)
    return [tables.grid(header, rows, left=(0, 4))]


def _verdict(rate: float, band: _Band) -> str:
    return "below it" if rate < band[0] else "above it" if rate > band[1] else "as forecast"


def _facts(loaded: LoadedModel, result: Result) -> list[tuple[str, str]]:
    plan, bandwidths = result.expected.plan, result.expected.bandwidths
    per_token = read_bytes_per_token(loaded.opened.spec, loaded.dtype)
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
    if plan.device.dense:
        source = "" if bandwidths.sources.device == "measured" else f" ({bandwidths.sources.device})"
        rows.append(("GPU", f"{_rate(bandwidths.device)}, over its link {_rate(bandwidths.link)}{source}"))
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
