"""`moecli run`: generate text from a prompt, or chat."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecli.cli import batch, options, running
from moecli.errors import MoecliError, UsageError, printable
from moecli.output import loading, terminal

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession
    from moecli.engine.loaded import OpenedModel
    from moecli.routing.builder import TraceBuilder
    from moecli.text.grammar import Grammar

EXAMPLES = """Examples:

  moecli run tiny "The sea"

  moecli run mixtral:q4 --file notes.txt "Summarise this."

  git log -5 | moecli run mixtral "What changed?"

  moecli run mixtral "Why is the sky blue?" --temperature 0 --json

  moecli run mixtral --prompts questions.jsonl -o answers.jsonl
"""

_SAMPLING = "Sampling"
_DRAFTS = ("lookup", "off")
_LONGEST = 512  # tokens of an answer, unless asked for more


@options.with_options_of_fields
def run(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Text to continue, in quotes; - is stdin. Piped text comes before it. With neither, a chat begins.",
            show_default=False,
        ),
    ] = None,
    *,
    prompt_option: Annotated[
        str | None, options.option("--prompt", "-p", metavar="TEXT", help="The same as PROMPT.")
    ] = None,
    file: Annotated[
        Path | None,
        options.option("--file", "-f", metavar="FILE", help="Read this text file before the prompt; - is stdin."),
    ] = None,
    prompts: Annotated[
        Path | None,
        options.option(
            metavar="FILE",
            help="Answer each line of this file of JSON lines (- is stdin), all together; builtin:tasks has four.",
        ),
    ] = None,
    system: options.System = None,
    raw: options.Raw = False,
    template_option: Annotated[
        list[str] | None,
        options.option(
            metavar="NAME=VALUE", help="Option of the chat template, e.g. enable_thinking=false; may be repeated."
        ),
    ] = None,
    tokenizer: options.Tokenizer = None,
    max_tokens: Annotated[
        int | None,
        options.option(
            "--max-tokens",
            "-n",
            metavar="N",
            panel=_SAMPLING,
            check=options.at_least(1),
            help=f"Maximum number of tokens to generate; default: {_LONGEST}, or less where the model says so.",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        options.option(metavar="TEXT", panel=_SAMPLING, help="Stop at this text (not printed); may be repeated."),
    ] = None,
    temperature: Annotated[
        float | None, options.option(metavar="X", panel=_SAMPLING, help="Sampling temperature; 0 is greedy.")
    ] = None,
    top_k: Annotated[
        int | None,
        options.option(metavar="K", panel=_SAMPLING, help="Sample from the K most likely tokens; 0 disables it."),
    ] = None,
    top_p: Annotated[
        float | None,
        options.option(
            metavar="P", panel=_SAMPLING, help="Sample from the most likely tokens whose probabilities add up to P."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        options.option(metavar="P", panel=_SAMPLING, help="Drop tokens less likely than P times the most likely one."),
    ] = None,
    repeat_penalty: Annotated[
        float | None, options.option(metavar="X", panel=_SAMPLING, help="Repetition penalty; 1 disables it.")
    ] = None,
    json_schema: Annotated[
        Path | None,
        options.option(
            "--json-schema", metavar="FILE", panel=_SAMPLING, help="Answer in JSON that obeys the schema in this file."
        ),
    ] = None,
    grammar: Annotated[
        Path | None,
        options.option(
            metavar="FILE",
            panel=_SAMPLING,
            help="Answer as the grammar in this file allows: Lark, or by its name .gbnf or .regex.",
        ),
    ] = None,
    seed: running.Seed = None,
    draft: Annotated[
        str,
        options.option(
            metavar="WAY",
            panel=_SAMPLING,
            default=True,
            values=_DRAFTS,
            help="Guess ahead where the text repeats itself: lookup, off. The answer is the same.",
        ),
    ] = _DRAFTS[0],
    session: running.Session = None,
    expert_capacity: running.ExpertCapacity = None,
    placing: running.PlacingOne = running.PlacingOne(),
    output: Annotated[
        Path | None,
        options.option(
            "--output",
            "-o",
            metavar="FILE",
            panel=options.OUTPUT,
            help="With --prompts: write the answers here, and go on where an earlier run has stopped.",
        ),
    ] = None,
    logprobs: Annotated[
        int | None,
        options.option(
            metavar="N",
            panel=options.OUTPUT,
            check=options.at_least(0),
            help="With --json: the log-probability of each token, and of the N likeliest in its place.",
        ),
    ] = None,
    echo: Annotated[
        bool,
        options.option("--echo", panel=options.OUTPUT, help="With --logprobs: of the prompt's tokens, too."),
    ] = False,
    trace: Annotated[
        Path | None,
        options.option(
            metavar="FILE",
            panel=options.OUTPUT,
            help="Write which experts were used to this file; see inspect --routing.",
        ),
    ] = None,
    json: options.Json = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_color: options.NoColor = False,
) -> None:
    """Generate text from a prompt, or chat.

    Sampling options left out are the model's own (generation_config.json), else temperature 0.7.
    """
    placing = placing.checked()
    if draft not in _DRAFTS:
        raise UsageError.unknown("--draft", draft, " or ".join(_DRAFTS))
    options.check_output("--trace", trace)
    options.check_output("--session", session)
    if session is not None and trace is not None:
        raise UsageError("--trace records what is read, and --session reads nothing twice", "leave one of them out")
    if json_schema is not None and grammar is not None:
        raise UsageError("--json-schema and --grammar cannot both be meant", "leave one of them out")
    held_to, asked = _grammar(json_schema, grammar), dict(map(_template_option, template_option or ()))
    if asked and raw:
        raise UsageError("--raw uses no chat template, and so no --template-option", "leave one of them out")
    if logprobs is not None and not json:
        raise UsageError("--logprobs stands in the document of --json alone", "add --json")
    if echo and logprobs is None:
        raise UsageError("--echo goes with --logprobs", "add --json --logprobs 0")
    options.check_output("--output", output)
    if prompts is not None:
        of_one = {"PROMPT": prompt, "--prompt": prompt_option, "--file": file, "--session": session, "--trace": trace}
        batch.check(prompts, of_one | {"--json": json})
    elif output is not None:
        raise UsageError("--output goes with --prompts", f"moecli run {model} --prompts FILE.jsonl -o {output}")
    lines = None if prompts is None else batch.read(prompts)
    text = _read_prompt(model, prompt, prompt_option, file) if lines is None else None
    if text is None and json:
        raise UsageError("--json needs a prompt", f'moecli run {model} "prompt" --json')
    from moecli.library.resolve import Kind
    from moecli.output.memory import beyond

    ref, agreed = placing.find(model, offline, quiet, yes, tokenizer)
    with terminal.status("loading ...", quiet):
        from moecli.engine import fallback
        from moecli.engine.chat import ChatSession, GenerationConfig, RecordedSession, plan_for
        from moecli.engine.constraint import constrain
        from moecli.engine.loaded import open_for_run
        from moecli.engine.sampling import SamplingOptions, new_seed
        from moecli.engine.sessions import open_session
        from moecli.output.answer import gaps
        from moecli.text import template_options

        opened = open_for_run(ref, placing.load_options(ref.dtype, expert_capacity))
        sampling = SamplingOptions(temperature, top_k, top_p, min_p, repeat_penalty).resolve(opened.defaults)
        longest = max_tokens or min(_LONGEST, opened.defaults.max_new_tokens or _LONGEST)
        config = GenerationConfig(
            sampling, new_seed() if seed is None else seed, longest, tuple(map(terminal.clean, stop or ())),
            system=system and terminal.clean(system), raw=raw, lookup=draft == "lookup", top_logprobs=logprobs,
            echo=echo, grammar=held_to, template_options=asked,
        )  # fmt: skip
        template_options.check(opened.tokenizer, asked)
        if held_to is not None:
            constrain(opened, held_to)  # is refused before anything is loaded
        if echo and opened.spec.encoder:
            raise UsageError(
                f"{opened.name} reads its prompt all at once: no token of it follows another", "leave --echo out"
            )
        job = None
        if prompts is not None and lines is not None:
            job = batch.prepare(opened, config, prompts, lines, output, seed is not None)
        plan = plan_for(opened, config, text) if job is None else job.plan
    if not quiet:
        terminal.say_notes(opened.notes)
        terminal.say_notes(filter(None, [beyond(opened.spec, placing.ctx), text and gaps(opened, text)]))
    if system and (raw or opened.tokenizer.chat_template is None):
        why = "--raw uses no chat template" if raw else f"{opened.name} has no chat template"
        terminal.say(f"note: --system is left out: {why}")
    if plan is None and job is not None:  # nothing is left to load a model for
        batch.answer(None, job, quiet)
        return
    assert plan is not None
    if verbose:
        if unread := opened.spec.unread_keys:
            terminal.say(f"config.json: nothing reads {', '.join(printable(key, 60) for key in unread)}")
        terminal.say(f"{opened.name}: {loading.sampled(config)}")
        terminal.say(loading.explain(plan))
    if not plan.fits:
        speed = opened.estimate_throughput(plan)
        if not quiet or speed.middle < running.SLOW:
            terminal.say(loading.expectation(opened, plan, speed))
        if speed.middle < running.SLOW:
            terminal.confirm("go on?", yes or agreed)
    if ref.kind is Kind.BUILT_IN and not quiet and not json and sys.stderr.isatty():
        loading.introduce(ref.name)
    builders = None if trace is None else _builders(opened)
    with loading.progress(opened.name, quiet) as progress:
        loaded = fallback.load(opened, plan, progress, _warn)
    if verbose and (reasons := loading.reasons(loaded)):
        terminal.say(reasons)
    if job is not None:
        batch.answer(loaded, job, quiet)
        return
    if trace is None or builders is None:
        problems: list[MoecliError] = []
        kept = None if session is None else open_session(loaded, session, _warn, problems.append)
        try:
            _talk(ChatSession(loaded, config, _warn, kept), text, json, quiet)
        finally:
            if kept is not None:
                kept.close()
        if problems:
            raise problems[0]
        return
    recording = RecordedSession(loaded, config, builders, _warn)
    try:
        _talk(recording, text, json, quiet)
    finally:  # even if it was interrupted
        for stack, recorded in recording.traces().items():
            from moecli.routing import files

            written = files.write(recorded, trace, stack)
            if not (json or quiet):
                terminal.say_written(written)


def _warn(text: str) -> None:
    terminal.say(f"warning: {text}")


def _builders(opened: OpenedModel) -> dict[str, TraceBuilder]:
    """Of traces. ConfigError, before anything is loaded, if there can be none."""
    from moecli.engine.recorder import new_builders

    return new_builders(opened.name, opened.spec)


def _talk(session: ChatSession, text: str | None, json: bool, quiet: bool) -> None:
    """One answer, or a chat; then its profile, if there is one."""
    try:
        if text is not None:
            _answer(session, text, json, quiet)
        else:
            from moecli.output.chat import chat

            chat(session, quiet)
    finally:
        if profile := session.loaded.decoder.profile:
            from moecli.output.profile import table

            terminal.say(table(profile))


def _template_option(text: str) -> tuple[str, object]:
    """Name and value: JSON, else the text itself."""
    name, found, value = text.partition("=")
    if not found or not name.strip():
        hint = "it takes NAME=VALUE, such as enable_thinking=false"
        raise UsageError(f"--template-option '{printable(text, 60)}' has no value", hint)
    from json import loads

    try:
        return name.strip(), loads(value)
    except (ValueError, RecursionError):
        return name.strip(), value


def _grammar(schema: Path | None, grammar: Path | None) -> Grammar | None:
    """What the answer has to be. UsageError if that cannot be read."""
    if schema is None and grammar is None:
        return None
    from moecli.text.grammar import of_grammar_file, of_schema_file

    return of_grammar_file(grammar) if grammar is not None else of_schema_file(schema) if schema is not None else None


def _read_prompt(model: str, argument: str | None, option: str | None, file: Path | None) -> str | None:
    """Piped text, that of the file and the prompt, blank lines between; None on a terminal where there is none."""
    if argument is not None and option is not None:
        raise UsageError("PROMPT and --prompt cannot both be meant", "leave one of them out")
    if argument is not None and (named := _named_file(argument)) is not None:
        shown = printable(str(named), 60)
        hint = f"moecli run {model} -f {shown} reads it; -p {printable(argument, 60)} means the text itself"
        raise UsageError(f"the prompt '{printable(argument, 60)}' names a file", hint)
    typed = option if argument is None else argument
    read = "" if file is None or str(file) == "-" else running.read_file(file)
    if text := running.behind_stdin(typed or "", read):
        return text
    if typed is None and file is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    raise UsageError("the prompt is empty", f'moecli run {model} "prompt", or pipe text in')


def _named_file(prompt: str) -> Path | None:
    """A file of that name, where the prompt looks like one: a word with a dot or slash in it, or @word."""
    path = Path(prompt.removeprefix("@"))
    looks = len(prompt.split()) == 1 and len(prompt) < 256 and (prompt[0] == "@" or re.search(r"[./\\]", prompt))
    return path if looks and options.is_file(path) else None


def _answer(session: ChatSession, text: str, json: bool, quiet: bool) -> None:
    from moecli.engine.answer import Answer
    from moecli.output.answer import tell_filled, tell_statistics
    from moecli.output.json.run import document

    answer = Answer()
    interrupted = False
    try:
        with loading.meter("reading", "tokens", quiet or json) as watch:
            for piece in session.ask(text, answer, watch):
                if not json:
                    terminal.write(piece)
    except KeyboardInterrupt:
        interrupted = True
    if json:
        terminal.write_json(document(session, answer))
    elif not answer.text.endswith("\n"):
        terminal.write("\n")
    if interrupted and not quiet and sys.stderr.isatty() and not sys.stdout.isatty():
        terminal.say("")  # the line of the ^C
    if not quiet and not json:
        tell_filled(session, answer)
        tell_statistics(session.loaded, answer)
    if interrupted:
        raise typer.Exit(130)
