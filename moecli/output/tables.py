"""Tables, facts and bars that read the same on a terminal, in a pipe and without colour."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from moecli.errors import lines_printable
from moecli.output import terminal

__all__ = [
    "Facts",
    "Group",
    "bar",
    "blocks",
    "columns_that_fit",
    "console",
    "grid",
    "percent",
    "show",
    "title",
    "whisper",
]

_EIGHTHS = "▏▎▍▌▋▊▉█"
_GAP = 2
_WIDEST = 500
_LABEL = 11  # of facts, so that groups of them line up


class _Screen(Console):
    """rich's console on which what strangers wrote sets no colour and no title: it is cleaned before it is styled."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Before it is measured."""
        return super().render_str(lines_printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What was a Text from the beginning, too."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else lines_printable(text), style, control)


def console(no_color: bool = False, file: IO[str] | None = None, **more: Any) -> Console:
    """stdout, or another stream, as rich sees it: NO_COLOR, FORCE_COLOR, TERM=dumb and COLUMNS hold.

    Piped: 80 columns, plain. No markup, no emoji codes: texts are texts. `more` goes to rich.
    """
    no = True if no_color else None
    file = terminal.styled(sys.stdout) if file is None else file
    return _Screen(file=file, no_color=no, highlight=False, markup=False, emoji=False, **more)


def show(to: Console, *parts: RenderableType) -> None:
    """Print parts with a blank line between them, and no blanks at the ends of lines."""
    with to.capture() as capture:
        for index, part in enumerate(parts):
            if index:
                to.print()
            to.print(part, width=max(to.width, _least(to, part)), crop=False)
    lines = capture.get().splitlines()
    to.file.write("".join(f"{line.rstrip()}\n" for line in lines))
    to.file.flush()


def whisper(*texts: str) -> None:
    """A dim line of talk on stderr: on a terminal the first of these texts that fits, else the first."""
    to = console(file=terminal.styled(sys.stderr))
    text = next((text for text in texts if len(text) <= to.width), texts[-1]) if to.is_terminal else texts[0]
    to.print(Text(lines_printable(text), "dim"), soft_wrap=True)
    to.file.flush()


def _least(to: Console, part: RenderableType) -> int:
    """The width below which numbers would be cut: better a line that the terminal wraps."""
    if isinstance(part, Group):
        return max(_least(to, each) for each in part.renderables)
    return part.__rich_measure__(to, to.options.update(width=_WIDEST)).minimum if isinstance(part, Table) else 0


def title(text: str, rest: str = "") -> Text:
    """A name that stands out where it can, and what is said about it."""
    return Text.assemble((lines_printable(text), "bold"), lines_printable(f"  {rest}" if rest else ""))


@dataclass(frozen=True, slots=True)
class Facts:
    """Label and value, one pair a line: long values wrap under themselves; a command to paste has no line ends."""

    rows: Sequence[tuple[str, str | Text]]

    def __rich_console__(self, to: Console, options: ConsoleOptions) -> Iterator[Text]:
        indent = max(_LABEL, *(len(label) for label, _ in self.rows), 0) + _GAP
        for label, value in self.rows:
            text = value if isinstance(value, Text) else Text(lines_printable(value))
            whole = text.plain.startswith("moecli ")
            lines = [text] if whole else text.wrap(to, max(options.max_width - indent, 1), overflow="fold")
            for number, line in enumerate(lines):
                begin = Text((label if number == 0 else "").ljust(indent), "cyan")
                yield Text.assemble(begin, line, no_wrap=True, overflow="ignore")


def grid(
    header: Sequence[str], rows: Sequence[Sequence[str | Text]], left: Sequence[int] = (0,), total: bool = False
) -> Table:
    """A table without lines: columns in `left` are text, the others numbers, right-aligned; the last may be a sum."""
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for index, cells in enumerate(zip(header, *rows, strict=True)):
        justify: Literal["left", "right"] = "left" if index in left else "right"
        table.add_column(cells[0], justify=justify, no_wrap=True, min_width=max(map(len, cells)))
    for index, row in enumerate(rows):
        table.add_row(*row, style="bold" if total and index == len(rows) - 1 else None)
    return table


def columns_that_fit(to: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How many columns after the first stand side by side on this console; at least one."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    left = to.width - widths[0]
    for count, width in enumerate(widths[1:]):
        left -= width + _GAP
        if left < 0:
            return max(count, 1)
    return max(len(widths) - 1, 1)


def blocks(to: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    """A table in parts as wide as the console, each with the first column."""
    parts, start = [], 1
    while start < len(header):
        cells = [[row[0], *row[start:]] for row in (header, *rows)]
        count = columns_that_fit(to, cells[0], cells[1:]) + 1
        parts.append(grid(cells[0][:count], [row[:count] for row in cells[1:]]))
        start += count - 1
    return parts


def bar(to: Console, share: float, width: int, style: str = "blue") -> Text:
    """A share of one as a bar. Its length is the value; colour only repeats it. Never empty for more than nothing."""
    share = min(max(share, 0.0), 1.0)
    if not _shows_blocks(to):
        return Text(("#" * max(round(share * width), 1 if share else 0)).ljust(width, "."), style)
    eighths = max(round(share * width * 8), 1 if share else 0)
    whole, part = divmod(eighths, 8)
    return Text(("█" * whole + (_EIGHTHS[part - 1] if part else "")).ljust(width), style)


def percent(share: float) -> str:
    """A share of one as 100%, 96.6% or <0.1%: never 0 for what is there."""
    value = share * 100
    if value == 0 or value >= 99.95:
        return f"{value:.0f}%"
    return f"{value:.1f}%" if value >= 0.1 else "<0.1%"


def _shows_blocks(to: Console) -> bool:
    """Whether the stream can carry block characters: a UTF-8 one, as an ASCII one cannot."""
    try:
        _EIGHTHS.encode(to.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
