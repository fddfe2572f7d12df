"""How the program and its commands explain themselves: help, and wrong usage in our words instead of the parser's."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from moecli import settings
from moecli.cli import elsewhere
from moecli.errors import UsageError, printable
from moecli.output import help as pages
from moecli.output import terminal

_WRONG: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports no name for it
_SYNONYMS = {"ls": "list", "show": "inspect"}


class Command(TyperCommand):
    """A command whose help is a page of ours and whose parse errors are UsageErrors."""

    allow_extra_args = True  # refused here, in better words

    def get_help_option(self, ctx: Any) -> Any:
        return _light(super().get_help_option(ctx))

    def get_help(self, ctx: typer.Context) -> NoReturn:  # type: ignore[override]
        _show(page(self, ctx))

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not ctx.resilient_parsing and (word := elsewhere.mistaken(args, known := _options(self, ctx))):
            raise _no_such_option(word, known, ctx)
        try:
            rest = super().parse_args(ctx, args)
        except _WRONG as error:
            raise _explained(error, self, ctx) from error
        if rest and not ctx.resilient_parsing:
            raise _left_over(ctx, rest)
        return rest


class Group(TyperGroup):
    """The program itself: `table` has of each command its heading, function and examples. It is made when needed."""

    table: Mapping[str, tuple[str, Callable[..., None], str]]

    def get_help_option(self, ctx: Any) -> Any:
        return _light(super().get_help_option(ctx))

    def list_commands(self, ctx: Any = None) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = name_of(cmd_name)
        if name not in self.commands and name in self.table:
            _, function, examples = self.table[name]
            alone = typer.Typer(
                add_completion=False, rich_markup_mode=None, context_settings=dict(self.context_settings)
            )
            alone.command(name, cls=Command, epilog=examples)(function)
            self.commands[name] = get_command(alone)
        return self.commands.get(name)

    def summaries(self) -> Iterator[tuple[str, str, str]]:
        """Heading, name and first sentence of each command."""
        for name, (heading, function, _) in self.table.items():
            yield heading, name, re.split(r"(?<=[.?!])\s", inspect.getdoc(function) or "")[0]

    def get_help(self, ctx: typer.Context) -> NoReturn:  # type: ignore[override]
        _show(page(self, ctx))

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        try:
            return super().parse_args(ctx, args)
        except _WRONG as error:
            raise _explained(error, self, ctx) from error

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise _no_such_command(args, list(self.table))
        return super().resolve_command(ctx, args)


def name_of(typed: str) -> str:
    """The command that a word means."""
    return _SYNONYMS.get(typed, typed)


def preset(group: Any, typed: str, presets: Sequence[settings.Preset]) -> list[str]:
    """The options that the user's file adds to the command that is typed.

    UsageError if any line of the file is for no command, or has an option that its command lacks.
    """
    found: list[str] = []
    program = typer.Context(group, info_name="moecli")
    for place, name, options in presets:
        command = group.get_command(program, name)
        if command is None:
            near = _nearest(name, list(group.table))
            hint = f"did you mean {near}?" if near else "moecli --help lists the commands"
            raise UsageError(f"{place}: there is no command '{printable(name, 40)}'", hint)
        context = typer.Context(command, info_name=name_of(name), parent=program)
        try:
            command.make_parser(context).parse_args(list(options))
        except _WRONG as error:
            explained = _explained(error, command, context)
            raise UsageError(f"{place}: {explained.message}", explained.hint) from error
        if name_of(name) == name_of(typed):
            found += options
    return found


def _light(help_option: Any) -> Any:
    """With a default: typer reads None with pydantic, whose import takes longer than all the rest."""
    if help_option is not None:
        help_option.default = False
    return help_option


def _show(shown: pages.Page) -> NoReturn:
    """Print a page of help on stdout, and end the command."""
    terminal.write_styled(lambda colours: pages.text(shown, colours))
    raise typer.Exit


def page(command: Command | Group, ctx: Any) -> pages.Page:
    """The help of a command, from its docstring and options; of the program, from its commands and variables too."""
    about = tuple(" ".join(part.split()) for part in (command.help or "").split("\n\n") if part.strip())
    panels: dict[str, list[tuple[str, str]]] = {} if isinstance(command, Group) else {"Arguments": [], "Options": []}
    if isinstance(command, Group):
        for heading, name, summary in command.summaries():
            panels.setdefault(heading, []).append((name, summary))
    arguments = []
    parameters: list[Any] = command.get_params(ctx)
    for parameter in parameters:
        if parameter.hidden:
            continue
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panels.setdefault(str(parameter.rich_help_panel or kind), []).append((_term(parameter), _meaning(parameter)))
        if kind == "Arguments":
            arguments.append(_term(parameter) if parameter.required else f"[{_term(parameter)}]")
    pieces = [ctx.command_path, "[OPTIONS]", *arguments]
    if isinstance(command, Group):
        pieces = [ctx.command_path, "COMMAND", "[OPTIONS]", "[ARGUMENTS]"]
        panels["Environment"] = [(variable.name, variable.meaning) for variable in settings.VARIABLES]
    lines = (line.strip().removeprefix("Example: ") for line in (command.epilog or "").splitlines())
    return pages.Page(
        usage=" ".join(pieces),
        about=about,
        sections=tuple(pages.Section(heading, tuple(rows)) for heading, rows in panels.items() if rows),
        examples=tuple(line for line in lines if line and line != "Examples:"),
    )


def _term(parameter: Any) -> str:
    """-n, --max-tokens N, or the name of an argument."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    names = ", ".join(sorted(parameter.opts, key=lambda name: name.startswith("--")))
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'TEXT'}"


def _meaning(parameter: Any) -> str:
    shown = parameter.show_default
    default = shown if isinstance(shown, str) else parameter.default if shown else None
    known = default not in (None, False, True, "") and not callable(default)
    return f"{parameter.help or ''}{f' [default: {default}]' if known else ''}"


def _explained(error: Any, command: Any, ctx: Any) -> UsageError:
    """What the parser says, in our words; its classes have no public names."""
    more = f"{ctx.command_path} --help"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return _no_such_option(error.option_name, _options(command, ctx), ctx)
    if kind == "BadOptionUsage":
        takes = {name: parameter for parameter in command.get_params(ctx) for name in parameter.opts}
        parameter = takes.get(error.option_name)
        if parameter is None or parameter.is_flag:
            return UsageError(f"{printable(error.option_name, 40)} takes no value", more)
        return UsageError(f"{error.option_name} needs a value", _meaning(parameter))
    if kind == "MissingParameter":
        example = next(iter(page(command, ctx).examples), more)
        return UsageError(f"{_term(error.param)} is missing", example)
    if kind == "BadParameter" and error.param is not None:
        name = next(iter(sorted(getattr(error.param, "opts", ()), key=len, reverse=True)), "")
        return _bad_value(name if name.startswith("-") else _term(error.param), error)
    return UsageError(error.format_message().rstrip("."), more)


def _options(command: Any, ctx: Any) -> list[str]:
    """The names of all options of a command."""
    return [name for parameter in command.get_params(ctx) for name in parameter.opts if name[0] == "-"]


def _no_such_option(typed: str, known: Sequence[str], ctx: Any) -> UsageError:
    near = difflib.get_close_matches(typed, known, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"{ctx.command_path} --help lists what there is"
    hint = elsewhere.hint(typed, known, ctx.command_path) or hint
    return UsageError(f"there is no option {printable(typed, 40)}", hint)


def _bad_value(name: str, error: Any) -> UsageError:
    """A value that is not of its option's type."""
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    value = printable(str(problems[0].get("input", "")), 40) if problems else ""
    kind = {"N": "a whole number", "X": "a number", "K": "a whole number", "P": "a number"}.get(
        str(error.param.metavar)
    )
    if not (value and kind):
        return UsageError(f"{name}: {error.message}")
    return UsageError(f"{name} {value} is not {kind}", _meaning(error.param))


def _left_over(ctx: Any, rest: Sequence[str]) -> UsageError:
    """More arguments than the command takes."""
    words = [*_arguments(ctx), *rest]
    if ctx.command.name == "run" and len(words) > 1:
        prompt = shlex.quote(" ".join(words[1:]))
        return UsageError("the prompt is in several words", f"put it in quotes: moecli run {words[0]} {prompt}")
    return UsageError(f"unexpected '{printable(' '.join(rest), 60)}'", f"{ctx.command_path} --help shows what it takes")


def _arguments(ctx: Any) -> Iterator[str]:
    for parameter in ctx.command.get_params(ctx):
        if parameter.param_type_name == "argument" and isinstance(value := ctx.params.get(parameter.name), str):
            yield value


def _no_such_command(args: Sequence[str], known: Sequence[str]) -> UsageError:
    typed = args[0]
    rest = shlex.join(args[1:4]) if len(args) < 5 else "..."
    near = difflib.get_close_matches(typed.lower(), known, n=1, cutoff=0.6)
    if typed.lower() == "logs":
        hint = "nothing is kept: MOECLI_LOG=info moecli ... logs to stderr"
    elif word := elsewhere.COMMANDS.get(typed.lower()):
        hint = f"here it is: moecli {word} {rest}".rstrip()
    elif near:
        hint = f"did you mean moecli {near[0]}?"
    elif _is_model(typed):
        hint = f"to use a model: moecli run {shlex.join(args[:2])}"
    else:
        hint = "moecli --help lists the commands"
    return UsageError(f"there is no command '{printable(typed, 40)}'", hint)


def _nearest(typed: str, known: Sequence[str]) -> str | None:
    """The command that a word for none may mean."""
    alike = difflib.get_close_matches(typed.lower(), known, n=1, cutoff=0.6)
    return elsewhere.COMMANDS.get(typed.lower()) or next(iter(alike), None)


def _is_model(typed: str) -> bool:
    from moecli.model import catalog

    return "/" in typed or os.path.exists(typed) or catalog.find(typed) is not None or typed == catalog.BUILT_IN  # noqa: PTH110
