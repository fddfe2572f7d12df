"""What `--help` shows, as data, and as text as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass

_INDENT = 2
_GAP = 2
_WIDEST_TERM = 24  # of the left column; what is longer has its meaning below it
_NARROW = 60  # columns: on fewer, every meaning stands below its term
_LEAST = 30  # columns of text, however narrow the terminal


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and rows of a term and its meaning."""

    heading: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One `--help`: `about` is paragraphs, `examples` are command lines, which are never wrapped."""

    usage: str
    about: tuple[str, ...]
    sections: tuple[Section, ...]
    examples: tuple[str, ...]


def text(page: Page, colours: bool) -> str:
    """The page, wrapped between words at the width of the terminal (COLUMNS counts; 80 where there is neither)."""
    width = max(shutil.get_terminal_size().columns - 1, _LEAST)
    heading, term = ("\x1b[1m", "\x1b[36m") if colours else ("", "")
    blocks = [f"{_styled('Usage:', heading)} {_wrapped(page.usage, width, _INDENT, len('Usage: '))}"]
    blocks += [_wrapped(paragraph, width, 0) for paragraph in page.about]
    fitting = [len(term) for section in page.sections for term, _ in section.rows if len(term) <= _WIDEST_TERM]
    column = _INDENT * 4 if width < _NARROW else _INDENT + max(fitting, default=0) + _GAP
    for section in page.sections:
        blocks.append("\n".join([_styled(f"{section.heading}:", heading), *_rows(section, width, column, term)]))
    if page.examples:
        lines = [" " * _INDENT + example for example in page.examples]
        blocks.append("\n".join([_styled("Examples:", heading), *lines]))
    return "\n\n".join(blocks) + "\n"


def _rows(section: Section, width: int, column: int, style: str) -> list[str]:
    lines = []
    for term, meaning in section.rows:
        shown = " " * _INDENT + _styled(term, style)
        room = column - _INDENT - len(term)
        if width < _NARROW or room < _GAP:
            lines += [shown, " " * column + _wrapped(meaning, width, column, column)]
        else:
            lines.append(shown + " " * room + _wrapped(meaning, width, column, column))
    return lines


def _wrapped(paragraph: str, width: int, indent: int, used: int = 0) -> str:
    """`used` columns of the first line are taken; the others begin after `indent` blanks. No word is cut."""
    lines = textwrap.wrap(
        paragraph, width, initial_indent=" " * used, subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines)[used:]


def _styled(words: str, style: str) -> str:
    return f"{style}{words}\x1b[0m" if style else words
