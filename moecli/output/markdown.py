"""Markdown on a terminal while it is written: a block is shown once it is whole, so that no line is drawn again."""

from __future__ import annotations

import re

from rich.markdown import Markdown

from moecli.output import tables, terminal

_FENCE = re.compile(r" {0,3}(```|~~~)")


class MarkdownStream:
    """Collects what a model writes; headings, lists, tables and code appear block by block, as blank lines end them."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._rest = ""
        self._fence: str | None = None  # what ends the code that a line has begun

    def write(self, piece: str) -> None:
        """The next piece of the text."""
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._take(line)

    def finish(self) -> None:
        """Show what is left: a block that was cut off, too."""
        self._lines.append(self._rest)
        self._rest, self._fence = "", None
        self._show()

    def _take(self, line: str) -> None:
        self._lines.append(line)
        if fence := _FENCE.match(line):
            if self._fence is None:
                self._fence = fence[1]
            elif self._fence == fence[1]:
                self._fence = None
        if not line.strip() and self._fence is None:
            self._show()

    def _show(self) -> None:
        text = terminal.steerless("\n".join(self._lines))
        self._lines.clear()
        if text.strip():
            tables.show(tables.console(), Markdown(text, hyperlinks=False))
            terminal.write("\n")
