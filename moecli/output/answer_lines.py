"""The answers of a batch, a JSON object a line in the order of the prompts: to stdout, or to a file that goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moecli.errors import MoecliError, json_object, json_text, printable, unreadable
from moecli.output import terminal
from moecli.store.filesystem import unwritable


class AnswerLines:
    """Takes answers in any order, and writes each once all before it are written; a line is whole or cut, never mixed.

    `there` are those that an earlier run has written.
    """

    def __init__(self, path: Path | None) -> None:
        """None: stdout. CheckpointError for a file that cannot be read, MoecliError for one that holds other things."""
        self._path = path
        self._waiting: dict[int, dict[str, Any]] = {}
        self.there: list[dict[str, Any]] = []
        self._whole = 0  # bytes of it
        if path is None:
            return
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise unreadable(path, error) from error
        self._whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].split(b"\n")[:-1], 1):
            self.there.append(json_object(line, self._refuse(number)))

    def check(self, keys: Sequence[str]) -> None:
        """MoecliError unless what is there are the first answers to prompts with these keys."""
        for number, line in enumerate(self.there, 1):
            if number > len(keys) or line.get("key") != keys[number - 1]:
                raise self._refuse(number)("answers another prompt, or with other options")

    def put(self, place: int, document: dict[str, Any]) -> None:
        """The answer to the prompt in that place, from 0."""
        self._waiting[place] = document
        written = len(self.there)
        while (line := self._waiting.pop(written, None)) is not None:
            self._write(f"{json_text(line)}\n")
            self.there.append(line)
            written += 1

    def _write(self, line: str) -> None:
        if self._path is None:
            terminal.write(line)
            return
        content = line.encode()
        try:
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.truncate(self._whole)  # what a kill has left of a line
                file.seek(self._whole)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self._path, error) from error
        self._whole += len(content)

    def _refuse(self, number: int) -> Callable[[str], MoecliError]:
        shown = printable(str(self._path), 80)
        hint = "name another file, or move this one away"
        return lambda problem: MoecliError(f"--output {shown} holds something else: its line {number} {problem}", hint)
