"""The figures and the heatmap as Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from moecli.output import tables
from moecli.output.routing import heatmap, sides
from moecli.output.routing.heat import Heat
from moecli.output.routing.sections import Section
from moecli.output.routing.words import name
from moecli.routing.analysis import Analysis

_WIDTH = 100
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def document(analysis: Analysis, heats: Sequence[Heat], found: Sequence[Section], subtitle: str) -> str:
    """The Markdown file: headings, the heatmap in blocks of characters, pipe tables."""
    lines = [f"# Routing of {escaped(name(analysis.name))}", "", escaped(subtitle), ""]
    lines += [f"> {escaped(note)}\n" for note in sides.notes(analysis)]
    lines += ["```text", _drawn(heats), "```", ""]
    for section in found:
        lines += [f"## {escaped(section.title)}", ""]
        if section.rows:
            lines += [
                _row(section.header),
                _row(("---", *("---" if section.texts else "--:" for _ in section.header[1:])), escape=False),
            ]
            lines += [*map(_row, section.rows), ""]
        lines += [f"{escaped(sentence)}\n" for sentence in section.sentences]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """The text with a backslash before all that Markdown would take for markup."""
    return _SPECIAL.sub(r"\\\1", text)


def _row(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(escaped(cell) if escape else cell for cell in cells) + " |"


def _drawn(heats: Sequence[Heat]) -> str:
    to = tables.console(file=io.StringIO(), width=_WIDTH, color_system=None)
    parts = [*heatmap.blocks(to, heats), heatmap.legend(to, heats)]
    drawn = "\n\n".join(part.plain for part in parts)
    return "\n".join(line.rstrip().replace("```", "'''") for line in drawn.splitlines())
