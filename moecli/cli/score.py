"""`moecli score`: how likely given answers are after a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli import options, running
from moecli.errors import UsageError
from moecli.output import loading, terminal

EXAMPLES = """Examples:

  moecli score tiny "The sea is" --labels blue,green,made of paper

  moecli score mixtral "Is this review positive or negative? I would buy it again." --labels positive,negative --json

  moecli score mixtral --labels yes,no < question.txt
"""


@options.with_options_of_fields
def score(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="What is answered, in quotes; piped text comes before it.", show_default=False
        ),
    ] = None,
    *,
    labels: Annotated[
        str | None, options.option(metavar="A,B,...", help="The answers, commas between; a space begins each of them.")
    ] = None,
    system: options.System = None,
    raw: options.Raw = False,
    tokenizer: options.Tokenizer = None,
    placing: running.PlacingOne = running.PlacingOne(),
    json: options.Json = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_color: options.NoColor = False,
) -> None:
    """Show how likely given answers are after a prompt.

    The log-probability is the sum over an answer's tokens, so that long answers have lower ones.
    """
    placing = placing.checked()
    names = [name.strip() for name in (labels or "").split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UsageError("--labels needs answers that differ", f'moecli score {model} "prompt" --labels yes,no')
    text = running.behind_stdin(prompt or "")
    if not text:
        raise UsageError("the prompt is empty", f'moecli score {model} "prompt" --labels {labels}')
    ref, _ = placing.find(model, offline, quiet, yes, tokenizer)
    with terminal.status("loading ...", quiet):
        from moecli.engine.chat import GenerationConfig
        from moecli.engine.loaded import open_for_run
        from moecli.engine.sampling import Sampling
        from moecli.engine.score import encode_labels, plan_for, score_labels
        from moecli.output.json.score import document
        from moecli.output.score import show

        opened = open_for_run(ref, placing.load_options(ref.dtype))
        config = GenerationConfig(Sampling(), 0, system=system and terminal.clean(system), raw=raw)
        wanted = encode_labels(opened, config, text, list(map(terminal.clean, names)))
        plan = plan_for(opened, wanted)
    if not quiet:
        terminal.say_notes(opened.notes)
    if verbose:
        terminal.say(loading.explain(plan))
    with loading.progress(opened.name, quiet) as progress:
        loaded = opened.load(plan, progress)
    with loading.meter("reading", "tokens", quiet or json) as watch:
        scores = score_labels(loaded, wanted, watch)
    if json:
        terminal.write_json(document(loaded, wanted, scores))
    else:
        show(scores, no_color)
