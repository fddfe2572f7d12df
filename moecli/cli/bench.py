"""`moecli bench`: prefill and decode measured on random text, beside the forecast for it."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli import options, running
from moecli.output import loading, terminal

EXAMPLES = """Examples:

  moecli bench tiny

  moecli bench mixtral --dtype q4 --ram 12GiB --prompt-tokens 128 --max-tokens 32

  moecli bench olmoe --parallel 4

  moecli bench olmoe --repeat 5 --json
"""


@options.with_options_of_fields
def bench(
    model: options.Model,
    *,
    prompt_tokens: Annotated[
        int | None,
        options.option(metavar="N", help="Length of the random prompt.", default="512", check=options.at_least(1)),
    ] = None,
    max_tokens: Annotated[
        int | None,
        options.option(
            "--max-tokens",
            "-n",
            metavar="N",
            default="128",
            check=options.at_least(1),
            help="Number of tokens to decode after it.",
        ),
    ] = None,
    repeat: Annotated[
        int, options.option(metavar="N", help="Number of repetitions.", default=True, check=options.at_least(1))
    ] = 3,
    parallel: Annotated[
        int,
        options.option(metavar="N", help="Decode N texts side by side, too.", default=True, check=options.at_least(1)),
    ] = 1,
    seed: running.Seed = 0,
    placing: running.PlacingOne = running.PlacingOne(),
    json: options.Json = False,
    format: options.Form = None,
    output: options.Output = None,
    offline: options.Offline = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_color: options.NoColor = False,
) -> None:
    """Measure prefill and decode on random text, beside the forecast for it.

    Exit 3: a median lies outside its forecast.
    """
    placing = placing.checked()
    form = options.record_form(format, json, output)
    ref, agreed = placing.find(model, offline, quiet, yes)
    with terminal.status("measuring this machine ...", quiet):
        from moecli.engine import bench as engine
        from moecli.engine.loaded import open_for_run
        from moecli.output import bench as show
        from moecli.output import records
        from moecli.output.json.bench import document

        opened = open_for_run(ref, placing.load_options(ref.dtype))
        work = engine.workload(opened, prompt_tokens, max_tokens, repeat, seed or 0, parallel)
        expected = engine.expect(opened, work)
    if not quiet:
        terminal.say_notes(opened.notes)
    if verbose:
        terminal.say(loading.explain(expected.plan))
    if expected.speed.middle < running.SLOW:
        terminal.say(loading.expectation(opened, expected.plan, expected.speed))
        terminal.confirm("go on?", yes or agreed)
    with loading.progress(opened.name, quiet) as progress:
        loaded, load_s = engine.load(opened, expected, progress)
    with show.progress(work.repeat, quiet) as watch:
        result = engine.measure(loaded, work, expected, load_s, watch)
    if form != "table":
        records.write([document(loaded, result)], form, output)
    else:
        show.screen(loaded, result, no_color)
    if not result.within_forecast:
        raise typer.Exit(3)
