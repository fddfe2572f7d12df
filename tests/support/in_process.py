"""The program in this process, without the seconds that a new one takes to import: one command after another."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from moecli.cli import app

typer.main.get_command = cache(typer.main.get_command)  # made anew it takes longer than most commands


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def failure(self) -> str:
        """Its sentence, and its hint; empty where there was none."""
        return "".join(line + "\n" for line in self.err.splitlines() if line.startswith(("error: ", "hint: ")))


class _Kept(io.BytesIO):
    """Outlives the streams that are laid over it."""

    def close(self) -> None:
        pass


def moecli(*arguments: str | Path) -> Ended:
    """Run to the end; stdin is empty and nothing is a terminal."""
    out, err = _Kept(), _Kept()
    kept = sys.argv, sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["moecli", *map(str, arguments)]
    sys.stdin = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(each, encoding="utf-8", write_through=True) for each in (out, err))
    code = 0
    try:
        app.dispatch()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = kept
    return Ended(code, out.getvalue().decode(), err.getvalue().decode())
