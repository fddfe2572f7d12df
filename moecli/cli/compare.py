"""`moecli compare`: two models, or two formats of one, on the same text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import options, running, texts
from moecli.errors import UsageError
from moecli.output import loading, terminal

EXAMPLES = """Examples:

  moecli compare tiny --dtype bf16,q4

  moecli compare mixtral:q8 mixtral:q4 -f wiki.txt --ram 12GiB

  moecli compare ./my-model ./my-finetune --prompts questions.jsonl --json
"""


@dataclass(frozen=True, slots=True)
class PlacingTwo(running.Placing):
    """The same of two models; `dtype` may be two formats."""

    dtype: Annotated[
        str,
        options.option(
            "--dtype", "--quant", metavar="A,B", panel=options.MEMORY, default=True, values=options.DTYPES,
            help="Format of both, or one of each with a comma between; as `run` takes them.",
        ),
    ] = "auto"  # fmt: skip

    def each(self) -> Sequence[running.Placing]:
        """That of the first and that of the second. UsageError for a word that is not known."""
        dtypes = [name.strip() for name in self.dtype.split(",")]
        if len(dtypes) > 2:
            raise UsageError(f"--dtype {self.dtype} names {len(dtypes)} formats", "two models have two: --dtype q8,q4")
        return [replace(self, dtype=name).checked() for name in (dtypes[0], dtypes[-1])]


@options.with_options_of_fields
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Two models, as `run` takes them: mixtral:q8 mixtral:q4; or one with --dtype q8,q4.",
            autocompletion=options.complete_model,
            show_default=False,
        ),
    ],
    *,
    file: Annotated[
        Path | None,
        options.option(
            "--file", "-f", metavar="FILE",
            help="Read this text, or JSONL of lists of token ids; - is stdin. Default: a small set of passages.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        options.option(metavar="FILE", help="Read these prompts: one a line, JSONL, a JSON array, CSV; - is stdin."),
    ] = None,
    stride: texts.Stride = None,
    raw: options.Raw = False,
    tokenizer: options.Tokenizer = None,
    placing: PlacingTwo = PlacingTwo(),
    json: options.Json = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_color: options.NoColor = False,
) -> None:  # fmt: skip
    """Compare two models, or two formats of one: perplexity, KL divergence, the likeliest token, routing of each layer.

    Both are in memory side by side, and share one --ram; a layer of each is passed in turn, so that experts on disk
    are read once. The first is what the second is held against.
    """
    both = placing.each()
    if len(models) > 2 or (len(models) == 1 and both[0].dtype == both[1].dtype):
        raise UsageError(f"two models are compared, not {len(models)}", f"moecli compare {models[0]} --dtype q8,q4")
    if file is not None and prompts is not None:
        raise UsageError("--file and --prompts cannot both be meant", "leave one of them out")
    if stride is not None and file is None:
        raise UsageError("--stride goes with --file", "prompts are read one by one")
    refs = [
        each.find(model, offline, quiet, yes, tokenizer)[0]
        for model, each in zip((models[0], models[-1]), both, strict=True)
    ]
    with terminal.status("loading ...", quiet):
        from moecli.engine.compare import check_comparable, compare_text
        from moecli.engine.likelihood import plan_to_score
        from moecli.engine.loaded import open_for_run
        from moecli.output.compare import show
        from moecli.output.json.compare import document

        opened = [open_for_run(ref, each.load_options(ref.dtype)) for ref, each in zip(refs, both, strict=True)]
        first = min(opened, key=lambda each: each.spec.context_length)
        if file is not None:
            read = texts.of_file(first, file, placing.ctx, stride)
        else:
            read = texts.of_prompts(first, prompts, placing.ctx, raw)
        check_comparable(*opened)
        plans = plan_to_score(opened, read.windows)
    for each, plan in zip(opened, plans, strict=True):
        if not quiet:
            terminal.say_notes(each.notes)
        if verbose:
            terminal.say(f"{each.name}: {loading.explain(plan)}")
    with loading.progress(" and ".join(dict.fromkeys(each.name for each in opened)), quiet) as progress:
        decoders = [each.decoder(plan, progress) for each, plan in zip(opened, plans, strict=True)]
    began = time.perf_counter()
    with loading.meter("reading", "tokens", quiet or json) as watch:
        found = compare_text(decoders, read.windows, plans[0].memory.block, watch)
    spent = time.perf_counter() - began
    names = [each.name for each in opened]
    if json:
        terminal.write_json(document(names, plans, decoders, found, read.cut, spent))
    else:
        show(names, plans, found, read.cut, no_color)
        if not quiet:
            loading.tell_read(found.first.tokens, spent, plans, [each.experts.statistics for each in decoders])
