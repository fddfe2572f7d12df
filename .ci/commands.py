"""The command reference and the man page, made from what `--help` says; cog calls these functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import cog
import typer
from typer.main import get_command

from moecli import __version__, settings
from moecli.cli.app import PROGRAM, app
from moecli.cli.program import page
from moecli.output.help import Page

EXITS = {
    "0": "done",
    "1": "a failure that is explained",
    "2": "wrong usage",
    "3": "`memory --check`: does not fit; `verify`: something differs; `bench`: outside its forecast",
    "130": "interrupted; the text so far stays",
}


def read(*command: str) -> Page:
    """The help of the program or of a command."""
    program: Any = get_command(app)
    context = typer.Context(program, info_name=PROGRAM, **program.context_settings)
    if not command:
        return page(program, context)
    found = program.get_command(context, command[0])
    return page(found, typer.Context(found, info_name=command[0], parent=context, **found.context_settings))


def commands() -> Iterator[tuple[str, Page]]:
    """Every command in the order of `moecli --help`."""
    program: Any = get_command(app)
    for name in program.list_commands():
        yield name, read(name)


def sections(shown: Page) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Every heading and its rows, but --help."""
    for section in shown.sections:
        if rows := [row for row in section.rows if row[0] != "-h, --help"]:
            yield section.heading, rows


def reference() -> None:
    """Every command with its arguments, options and examples, in Markdown."""
    for name, shown in commands():
        cog.outl(f"\n## moecli {name}\n\n```\n{shown.usage}\n```\n\n" + "\n\n".join(shown.about))
        for heading, rows in sections(shown):
            cog.outl(f"\n| {heading} | |\n|---|---|")
            for term, meaning in rows:
                cog.outl(f"| `{_cell(term)}` | {_cell(meaning)} |")
        cog.outl("\n```bash\n" + "\n".join(shown.examples) + "\n```")


def exits() -> None:
    """What each exit code means."""
    cog.outl("| exit code | means |\n|---|---|")
    for code, meaning in EXITS.items():
        cog.outl(f"| {code} | {meaning} |")


def man() -> None:
    """All of it as one page for man(1)."""
    top = read()
    cog.outl(f'.TH {PROGRAM.upper()} 1 "" "{PROGRAM} {__version__}" "User Commands"')
    cog.outl(f".SH NAME\n{PROGRAM} \\- {_roff(top.about[0].rstrip('.'))}")
    cog.outl(f".SH SYNOPSIS\n.B {_roff(top.usage)}\n.SH OPTIONS")
    _terms(next(section.rows for section in top.sections if section.heading == "Options"))
    cog.outl(".SH COMMANDS")
    for name, shown in commands():
        cog.outl(f'.SS "{PROGRAM} {name}"\n.B {_roff(shown.usage)}')
        for paragraph in shown.about:
            cog.outl(f".PP\n{_roff(paragraph)}")
        for heading, rows in sections(shown):
            cog.outl(f".PP\n.I {_roff(heading)}")
            _terms(rows)
        cog.outl(".PP\n.I Examples\n.PP\n.nf\n" + "\n".join(map(_roff, shown.examples)) + "\n.fi")
    cog.outl(".SH ENVIRONMENT")
    _terms([(variable.name, variable.meaning) for variable in settings.VARIABLES])
    cog.outl(".SH EXIT STATUS")
    _terms([(code, meaning.replace("`", "")) for code, meaning in EXITS.items()])


def _terms(rows: Iterable[tuple[str, str]]) -> None:
    for term, meaning in rows:
        cog.outl(f".TP\n.B {_roff(term)}\n{_roff(meaning)}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
