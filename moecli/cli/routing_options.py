"""The options of `inspect --routing`, and what is meant by them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from moecli.cli import options
from moecli.errors import UsageError
from moecli.formats import FORMATS

FORMATS_OF_OUTPUT = ("table", "json", "csv", "md", "html", "svg", "png")


def _option(*names: str, help: str, metavar: str | None = None, callback: Callable[..., Any] | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, callback=callback, show_default=False)


Routing = Annotated[bool, _option("--routing", help="Run the model on prompts and show what its router does.")]
PromptText = Annotated[str | None, _option("--prompt", help="A text to read; stdin comes before it.", metavar="TEXT")]
Prompts = Annotated[
    Path | None,
    _option("--prompts", help="A prompt a line, or JSONL with text and domain. Default: a small set.", metavar="FILE"),
]
Limit = Annotated[int | None, _option("--limit", help="Prompt tokens to read in all.", callback=options.at_least(1))]
MaxTokens = Annotated[
    int,
    _option("--max-tokens", "-n", help="Generate so many after each prompt; 0: none.", callback=options.at_least(0)),
]
FromTrace = Annotated[
    Path | None, _option("--from", help="Analyse this trace; MODEL may be left out.", metavar="TRACE")
]
SaveTrace = Annotated[
    Path | None, _option("--save-trace", help="Keep the trace (.csv, .jsonl, else compact).", metavar="FILE")
]
Probabilities = Annotated[bool, _option("--probabilities", help="Keep every gate probability in the trace.")]
Against = Annotated[
    str | None,
    _option("--against", help="Compare with another MODEL, a TRACE, or dtype=q4.", metavar="MODEL|TRACE|dtype=..."),
]
Raw = Annotated[bool, _option("--raw", help="No chat template around the prompts.")]
Seed = Annotated[int, _option("--seed", help="Of what is generated.", callback=options.at_least(0))]
Format = Annotated[str | None, _option("--format", help=f"{', '.join(FORMATS_OF_OUTPUT)}.", metavar="FORMAT")]
Output = Annotated[Path | None, _option("--output", "-o", help="Write to this file.", metavar="FILE")]
Layers = Annotated[str | None, _option("--layers", help="Show these only: 0,3-5.", metavar="LIST")]
Sort = Annotated[bool, _option("--sort", help="Order each row of the heatmap by load.")]
By = Annotated[str | None, _option("--by", help="domain: a heatmap for each.", metavar="domain")]
Capacity = Annotated[str | None, _option("--capacity", help="Capacity factors for overflow: 1,1.25,2.", metavar="LIST")]


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options of `--routing`, as given."""

    prompt: str | None = None
    prompts: Path | None = None
    limit: int | None = None
    max_tokens: int = 0
    from_trace: Path | None = None
    save_trace: Path | None = None
    probabilities: bool = False
    against: str | None = None
    raw: bool = False
    dtype: str = "auto"
    ctx: int | None = None
    ram: str | None = None
    threads: int | None = None
    seed: int = 0
    format: str | None = None
    output: Path | None = None
    layers: str | None = None
    sort: bool = False
    by: str | None = None
    capacity: str | None = None

    def refuse(self) -> None:
        """UsageError where one was given without --routing."""
        for each in fields(self):
            if getattr(self, each.name) != each.default:
                name = {"from_trace": "from"}.get(each.name, each.name.replace("_", "-"))
                raise UsageError(f"--{name} goes with --routing", "moecli inspect MODEL --routing")

    def form(self, json: bool) -> str:
        """Of the output, by option or by the name of the file."""
        if self.by not in (None, "domain"):
            raise UsageError(f"--by {self.by} is not known", "it takes domain")
        if self.dtype != "auto" and self.dtype not in FORMATS:
            raise UsageError(f"--dtype {self.dtype} is not known", f"it takes auto, {', '.join(FORMATS)}")
        named = self.output.suffix[1:].replace("txt", "table") if self.output else ""
        form = self.format or ("json" if json else named or "table")
        if form not in FORMATS_OF_OUTPUT:
            spelled = f"--format {form}" if self.format else f"--output {self.output}"
            raise UsageError(f"{spelled} is not a known format", f"--format takes {', '.join(FORMATS_OF_OUTPUT)}")
        if json and form != "json":
            raise UsageError(f"--json and --format {form} cannot both be meant", "leave one of them out")
        return form

    def chosen_layers(self) -> frozenset[int] | None:
        """As numbers; None for all."""
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
        """Of capacity, as numbers; none where they are left to the analysis."""
        if (text := self.capacity) is None:
            return ()
        try:
            factors = tuple(float(part) for part in text.split(","))
        except ValueError:
            factors = ()
        if not factors or not all(0 < factor < 1e6 for factor in factors):
            raise UsageError(f"--capacity {text} is no list of factors", "write positive numbers: 1,1.25,2")
        return factors
