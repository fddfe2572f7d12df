"""The command reference and the man page, made from what `--help` says; cog calls these functions."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import cog

from moecli import __version__, settings
from moecli.cli.app import PROGRAM, app

EXITS = {
    "0": "done",
    "1": "a failure that is explained",
    "2": "wrong usage",
    "3": "`memory --check`: does not fit; `verify`: something differs; `bench`: outside its forecast",
    "130": "interrupted; the text so far stays",
}


@dataclass
class Help:
    """One `--help`, taken apart: the usage, paragraphs, the rows of each section, and what follows them."""

    usage: str
    about: list[str] = field(default_factory=list)
    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)


def read(*command: str) -> Help:
    """The help of a command, on a terminal so wide that nothing is wrapped."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(args=[*command, "--help"], prog_name=PROGRAM, terminal_width=10_000, max_content_width=10_000)
    usage, *lines = out.getvalue().splitlines()
    shown = Help(usage.removeprefix("Usage: "))
    rows: list[tuple[str, str]] | None = None
    for line in filter(str.strip, lines):
        if heading := re.fullmatch(r"(\w+):", line):
            rows = shown.sections.setdefault(heading[1], [])
        elif rows is not None and re.match(r"  \S.*\S {2,}\S", line):
            term, meaning = re.split(r" {2,}", line.strip(), maxsplit=1)
            if term != "-h, --help":
                rows.append((term, meaning.replace("  [", " [")))
        else:
            (shown.after if shown.sections else shown.about).append(line.strip())
    return shown


def commands() -> Iterator[tuple[str, Help]]:
    """Every command in the order of `moecli --help`."""
    for name, _ in read().sections["Commands"]:
        yield name, read(name)


def examples(shown: Help) -> list[str]:
    """The command lines at the end of a help."""
    return [each.removeprefix("Example: ") for each in shown.after if each != "Examples:"]


def reference() -> None:
    """Every command with its arguments, options and examples, in Markdown."""
    for name, shown in commands():
        cog.outl(f"\n## moecli {name}\n\n```\n{shown.usage}\n```\n\n" + "\n\n".join(shown.about))
        for rows in filter(None, shown.sections.values()):
            cog.outl("\n| | |\n|---|---|")
            for term, meaning in rows:
                cog.outl(f"| `{_cell(term)}` | {_cell(meaning)} |")
        cog.outl("\n```bash\n" + "\n".join(examples(shown)) + "\n```")


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
    _terms(top.sections["Options"])
    cog.outl(".SH COMMANDS")
    for name, shown in commands():
        cog.outl(f'.SS "{PROGRAM} {name}"\n.B {_roff(shown.usage)}')
        for paragraph in shown.about:
            cog.outl(f".PP\n{_roff(paragraph)}")
        for rows in shown.sections.values():
            _terms(rows)
        cog.outl(".PP\n.EX\n" + "\n".join(map(_roff, examples(shown))) + "\n.EE")
    cog.outl(".SH ENVIRONMENT")
    _terms([(variable.name, variable.meaning) for variable in settings.VARIABLES])
    cog.outl(".SH EXIT STATUS")
    _terms([(code, meaning.replace("`", "")) for code, meaning in EXITS.items()])


def _terms(rows: list[tuple[str, str]]) -> None:
    for term, meaning in rows:
        cog.outl(f".TP\n.B {_roff(term)}\n{_roff(meaning)}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
