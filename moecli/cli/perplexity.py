"""`moecli perplexity`: how well a model foretells a text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import options, running, texts
from moecli.output import loading, terminal

EXAMPLES = """Examples:

  moecli perplexity tiny notes.txt

  moecli perplexity mixtral:q4 wiki.txt --ctx 512 --ram 12GiB --json

  moecli perplexity olmoe book.txt --ctx 4096 --stride 2048
"""


@options.with_options_of_fields
def perplexity(
    model: options.Model,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="A text, or JSONL of lists of token ids, each a window; - or nothing is stdin.",
            show_default=False,
        ),
    ] = None,
    *,
    stride: texts.Stride = None,
    tokenizer: options.Tokenizer = None,
    placing: running.PlacingOne = running.PlacingOne(),
    json: options.Json = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_color: options.NoColor = False,
) -> None:
    """Show the perplexity of a text: e to the mean of -ln p over its tokens, each given those before it in its window.

    Windows have --ctx tokens (default: 2,048, or the model's context), BOS first where the tokenizer adds one. All
    pass one layer before any passes the next, so that experts on disk are read once. The error is one standard error.
    """
    placing = placing.checked()
    ref, _ = placing.find(model, offline, quiet, yes, tokenizer)
    with terminal.status("loading ...", quiet):
        from moecli.engine.likelihood import plan_to_score, read_text
        from moecli.engine.loaded import open_for_run
        from moecli.output.json.perplexity import document
        from moecli.output.perplexity import show

        opened = open_for_run(ref, placing.load_options(ref.dtype))
        read = texts.of_file(opened, file, placing.ctx, stride)
        (plan,) = plan_to_score([opened], read.windows)
    if not quiet:
        terminal.say_notes(opened.notes)
    if verbose:
        terminal.say(loading.explain(plan))
    with loading.progress(opened.name, quiet) as progress:
        decoder = opened.decoder(plan, progress)
    began = time.perf_counter()
    with loading.meter(f"{opened.name} reads", "tokens", quiet or json) as watch:
        found = read_text(decoder, read.windows, plan.memory.block, watch)
    spent = time.perf_counter() - began
    if json:
        terminal.write_json(document(opened.name, plan, decoder, found, read.cut, spent))
    else:
        show(f"{opened.name} in {plan.memory.dtype}", found, read.cut, no_color)
        if not quiet:
            loading.tell_read(found.tokens, spent, [plan], [decoder.experts.statistics])
