"""`moecli run --prompts`: the lines of a file, answered together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moecli.errors import MoecliError, UsageError, printable
from moecli.output import terminal

if TYPE_CHECKING:
    from moecli.engine.batch_items import Item
    from moecli.engine.chat import GenerationConfig
    from moecli.engine.loaded import LoadedModel, OpenedModel
    from moecli.output.answer_lines import AnswerLines
    from moecli.planning.placement import Plan
    from moecli.routing.prompt_lines import Line

_NAMED = 5  # lines without an answer


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, what of it is answered already, and the plan for the rest; None if nothing is left."""

    items: Sequence[Item]
    answers: AnswerLines
    plan: Plan | None
    bundled: bool  # the tasks whose answers are checked


def check(prompts: Path, others: dict[str, object]) -> None:
    """UsageError for options that are of one prompt."""
    for name, value in others.items():
        if value not in (None, False):
            raise UsageError(f"{name} does not go with --prompts {prompts}", "a line of the file is a prompt")


def read(prompts: Path) -> list[Line]:
    """The lines of the file, of stdin, or the bundled tasks. MoecliError if there are none."""
    from moecli.routing import prompt_lines, tasks

    if str(prompts) == tasks.NAME:
        return [*tasks.asked()]
    return prompt_lines.read(prompts, terminal.read_stdin_bytes() if str(prompts) == "-" else None, terminal.say)


def prepare(
    opened: OpenedModel,
    config: GenerationConfig,
    prompts: Path,
    lines: Sequence[Line],
    output: Path | None,
    seeded: bool,
) -> Job:
    """Look at what is there, and plan the rest. NotEnoughMemory; MoecliError if `output` holds something else.

    Unless it is `seeded`, an earlier run's seed counts on.
    """
    from moecli.engine import batch
    from moecli.engine.batch_items import items
    from moecli.output.answer_lines import AnswerLines
    from moecli.routing.prompt_lines import Asked
    from moecli.routing.tasks import NAME

    answers = AnswerLines(output)
    if not seeded:
        seeds = (
            told["seed"]
            for told, line in zip(answers.there, lines, strict=False)
            if isinstance(line, Asked) and line.seed is None and type(told.get("seed")) is int
        )
        config = replace(config, seed=next(seeds, config.seed))
    asked = items(opened, config, lines, opened.options.dtype)
    answers.check([item.key for item in asked])
    needs = [item.need for item in asked[len(answers.there) :] if item.request is not None]
    plan = batch.plan_for(opened, needs) if needs else None
    return Job(asked, answers, plan, str(prompts) == NAME)


def answer(loaded: LoadedModel | None, job: Job, quiet: bool) -> None:
    """Write the answers that are not there yet. MoecliError, once all are written, if some prompts have none."""
    from moecli.engine.answer import Answer
    from moecli.engine.batch import Batch
    from moecli.output.batch import Meter, tell
    from moecli.output.json.batch import answered, failed
    from moecli.routing import tasks

    answers, begin = job.answers, len(job.answers.there)
    if begin and not quiet:
        terminal.say(f"{begin:,} of {len(job.items):,} answers are there already")
    for place, item in enumerate(job.items[begin:], begin):
        if item.request is None:
            answers.put(place, failed(item.line, item.key, item.problem))
    if loaded is not None:
        waiting = [
            (place, item.request) for place, item in enumerate(job.items[begin:], begin) if item.request is not None
        ]
        interrupted = False
        with terminal.Line(quiet) as line:
            meter = Meter(line, len(waiting))
            try:
                for place, made in Batch(loaded, meter).answer(waiting):
                    item = job.items[place]
                    assert item.request is not None
                    if isinstance(made, Answer):
                        judged = tasks.check(str(item.line.id), made.text) if job.bundled else None
                        answers.put(place, answered(item.line, item.key, item.request, made, judged))
                    else:
                        answers.put(place, failed(item.line, item.key, made.message))
            except KeyboardInterrupt:
                interrupted = True
        if not quiet:
            tell(loaded, meter, len(answers.there) - begin)
        if interrupted:
            raise typer.Exit(130)
    wrong = [told for told in answers.there if "error" in told]
    if wrong:
        raise _unanswered(wrong, len(job.items))


def _unanswered(wrong: Sequence[dict[str, object]], count: int) -> MoecliError:
    told = "; ".join(f"line {each['line']}: {printable(str(each['error']), 100)}" for each in wrong[:_NAMED])
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return MoecliError(f"{len(wrong)} of {count} prompts have no answer: {told}{more}")
