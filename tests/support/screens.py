"""Screens as a stream with given powers receives them. `python -m tests.support.screens` writes the golden ones anew,
to be looked at before they are kept."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.style import Style

from moecli.output.routing import View, screen, shades
from moecli.routing.analysis import Analysis
from tests.support import reports as samples

WHOLE = View()
FOLDER = Path(__file__).parents[1] / "output" / "screens"
TERMINALS = {
    "piped": {},
    "no-colour": {"FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": "1"},
    "dumb": {"FORCE_COLOR": "1", "TERM": "dumb"},
    "16-colours": {"FORCE_COLOR": "1", "TERM": "xterm"},
    "256-colours": {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
    "truecolour": {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"},
}
_NAMES = "FORCE_COLOR", "NO_COLOR", "TERM", "COLORTERM", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"


@dataclass(frozen=True)
class Screen:
    """A golden screen."""

    experts: int
    active: int
    layers: int
    columns: int
    terminal: str = "piped"
    encoding: str = "utf-8"
    kind: str = ""  # "compared", "several", "mixtral"
    view: View = WHOLE

    @property
    def name(self) -> str:
        parts = [f"{self.experts}x{self.layers}", f"{self.columns}", self.terminal, self.encoding, self.kind]
        flags = [name for name in ("sort", "by_domain") if getattr(self.view, name)]
        return "-".join(part for part in (*parts, *flags) if part not in ("", "utf-8"))

    def analysis(self) -> Analysis:
        if self.kind == "mixtral":
            return samples.mixtral()
        make = {"compared": samples.compared, "several": samples.several}.get(self.kind, samples.sample)
        return make(self.experts, self.active, self.layers)

    def text(self) -> str:
        return shown(self.analysis(), self.view, self.columns, self.terminal, self.encoding)


GOLDEN = (
    Screen(8, 2, 6, 40),
    Screen(8, 2, 6, 80),
    Screen(8, 2, 6, 80, "no-colour"),
    Screen(8, 2, 6, 80, "dumb"),
    Screen(8, 2, 6, 80, "16-colours"),
    Screen(8, 2, 6, 120, "truecolour", view=View(by_domain=True)),
    Screen(8, 2, 6, 80, encoding="ascii"),
    Screen(8, 2, 64, 120),
    Screen(8, 2, 6, 120, kind="compared"),
    Screen(8, 2, 6, 80, kind="several"),
    Screen(8, 2, 32, 80, kind="mixtral"),
    Screen(64, 8, 6, 40),
    Screen(64, 8, 64, 120, view=View(sort=True)),
    Screen(64, 8, 6, 200, view=View(by_domain=True)),
    Screen(256, 8, 6, 80),
    Screen(256, 8, 6, 80, encoding="ascii", view=View(sort=True)),
    Screen(256, 8, 6, 200, "256-colours"),
)


def shown(
    analysis: Analysis, view: View = WHOLE, columns: int = 80, terminal: str = "piped", encoding: str = "utf-8"
) -> str:
    """What arrives, at the first screen of a process: rich keeps the codes of a style as that stream had them."""
    for cached in (Style.parse, Style._add, shades._diverging):
        cached.cache_clear()
    with _environment(TERMINALS[terminal] | {"COLUMNS": str(columns)}):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace", newline="")
        kept, sys.stdout = sys.stdout, stream
        try:
            screen(analysis, layers=view.layers, sort=view.sort, by_domain=view.by_domain)
        finally:
            sys.stdout = kept
        stream.flush()
        return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    try:
        for name in _NAMES:
            os.environ.pop(name, None)
        os.environ.update(wanted)
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in GOLDEN:
        (FOLDER / f"{each.name}.txt").write_text(each.text(), encoding="utf-8", newline="")
