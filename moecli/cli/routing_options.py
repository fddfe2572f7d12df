"""The options of `inspect --routing`: one table of names, help and defaults, and what is meant by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from moecli.cli import options
from moecli.errors import UsageError
from moecli.formats import FORMATS
from moecli.formats.words import with_dense

_MORE = ("html", "svg", "png", "pdf", "matrix")
FORMATS_OF_OUTPUT = (*options.FORMS, *_MORE)
COLORMAPS = ("diverging", "viridis", "cividis", "magma")
_PICTURES = {"title": ("html", "svg", "png", "pdf"), "colormap": ("html", "svg", "png", "pdf"), "dpi": ("png",)}


def _option(
    *names: str, help: str, metavar: str | None = None, callback: Callable[..., Any] | None = None,
    panel: str = "With --routing", values: Sequence[str] | None = None, complete: options.Completer | None = None,
) -> Any:  # fmt: skip
    return options.option(
        *names, help=help, metavar=metavar or "N", panel=panel, check=callback, values=values, complete=complete
    )


def _complete_against(incomplete: str) -> Iterator[options.Choice]:
    if incomplete.startswith("dtype=") or not incomplete:
        yield from ((f"dtype={name}", "") for name in FORMATS if f"dtype={name}".startswith(incomplete))
    yield from options.complete_model(incomplete)


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """The options that go with `--routing`: the name, type, help and default of each, and what was given."""

    prompt: Annotated[str | None, _option(help="A text to read; stdin comes before it.", metavar="TEXT")] = None
    prompts: Annotated[
        Path | None,
        _option(
            help="A prompt a line, JSONL, a JSON array, CSV, or - for stdin. Default: a small set.", metavar="FILE"
        ),
    ] = None
    limit: Annotated[int | None, _option(help="Prompt tokens to read in all.", callback=options.at_least(1))] = None
    max_tokens: Annotated[
        int,
        _option(
            "--max-tokens", "-n", help="Generate so many after each prompt; 0: none.", callback=options.at_least(0)
        ),
    ] = 0
    from_: Annotated[
        Path | None, _option("--from", help="Analyse this trace; MODEL may be left out.", metavar="TRACE")
    ] = None
    save_trace: Annotated[
        Path | None,
        _option(help="Keep the trace (.csv, .jsonl, else compact).", metavar="FILE"),
    ] = None
    probabilities: Annotated[bool, _option("--probabilities", help="Keep every gate probability in the trace.")] = False
    against: Annotated[
        str | None,
        _option(help="Compare with another MODEL, a TRACE, or dtype=q4.", metavar="OTHER", complete=_complete_against),
    ] = None
    expert_capacity: Annotated[
        int | None,
        _option(help="As of moecli run: tokens that an expert takes; 0: all.", callback=options.at_least(0)),
    ] = None
    raw: Annotated[bool, _option("--raw", help="No chat template around the prompts.")] = False
    tokenizer: Annotated[
        str | None,
        _option(
            help="Take the tokenizer of this file, folder, model or Hub id.",
            metavar="NAME",
            complete=options.complete_model,
        ),
    ] = None
    dtype: options.Dtype = "auto"
    dense: options.Dense = None
    ctx: options.Context = None
    ram: options.Ram = None
    threads: options.Threads = None
    seed: Annotated[
        int, _option(help="Random seed; the same seed gives the same text.", callback=options.at_least(0))
    ] = 0
    format: Annotated[
        str | None,
        _option(
            help=f"{', '.join(options.FORMS)}; with --routing also {', '.join(_MORE)} (CSV, layers by experts).",
            metavar="FORMAT",
            panel=options.OUTPUT,
            values=FORMATS_OF_OUTPUT,
        ),
    ] = None
    output: Annotated[
        Path | None, _option("--output", "-o", help="Write to this file.", metavar="FILE", panel=options.OUTPUT)
    ] = None
    layers: Annotated[str | None, _option(help="Show these only: 0,3-5.", metavar="LIST")] = None
    sort: Annotated[bool, _option("--sort", help="Order each row of the heatmap by load.")] = False
    by: Annotated[str | None, _option(help="domain: a heatmap for each.", metavar="domain", values=("domain",))] = None
    title: Annotated[str | None, _option(help="Title of a picture; empty: none.", metavar="TEXT")] = None
    colormap: Annotated[
        str, _option(help=f"Colours of a picture: {', '.join(COLORMAPS)}.", metavar="NAME", values=COLORMAPS)
    ] = COLORMAPS[0]
    dpi: Annotated[int, _option(help="Dots per inch of a PNG; 300 if not given.", callback=options.at_least(30))] = 300
    capacity: Annotated[str | None, _option(help="Capacity factors for overflow: 1,1.25,2.", metavar="LIST")] = None

    def refuse(self) -> None:
        """UsageError naming the first of these options that was given: without --routing only some may be."""
        for each in fields(self):
            if each.name not in ("format", "output") and getattr(self, each.name) != each.default:
                name = each.name.rstrip("_").replace("_", "-")
                raise UsageError(f"--{name} goes with --routing", "moecli inspect MODEL --routing")

    def with_formats(self) -> RoutingOptions:
        """The same with one word for both formats. UsageError for a word that is not known."""
        return replace(self, dtype=with_dense(self.dtype, self.dense), dense=None)

    def form(self, json: bool) -> str:
        """The form of the output: by --format or --json, else by the name of the file, else a table."""
        if self.by not in (None, "domain"):
            raise UsageError.unknown("--by", self.by, "domain")
        form = options.form(self.format, json, self.output, FORMATS_OF_OUTPUT)
        if self.colormap not in COLORMAPS:
            raise UsageError.unknown("--colormap", self.colormap, ", ".join(COLORMAPS))
        for each in fields(self):
            if form not in _PICTURES.get(each.name, (form,)) and getattr(self, each.name) != each.default:
                raise UsageError(
                    f"--{each.name} goes with {', '.join(_PICTURES[each.name])}", "name a file: -o routing.png"
                )
        return form

    def chosen_layers(self) -> frozenset[int] | None:
        """The numbers of --layers; None for all layers. UsageError for what is no list."""
        if (text := self.layers) is None:
            return None
        numbers: set[int] = set()
        for part in text.split(","):
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
            run = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
            if not run:
                raise UsageError(f"--layers {text} is no list of layers", "write numbers and ranges: 0,3-5")
            numbers.update(run)
        return frozenset(numbers)

    def factors(self) -> tuple[float, ...]:
        """The numbers of --capacity; empty where they are left to the analysis. UsageError for what is no list."""
        if (text := self.capacity) is None:
            return ()
        try:
            factors = tuple(float(part) for part in text.split(","))
        except ValueError:
            factors = ()
        if not factors or not all(0 < factor < 1e6 for factor in factors):
            raise UsageError(f"--capacity {text} is no list of factors", "write positive numbers: 1,1.25,2")
        return factors
