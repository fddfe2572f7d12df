"""Messages typed in a chat: lines that can be edited, several at once if pasted or quoted, those of earlier chats."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import ModuleType

from moecli import settings
from moecli.output import tables, terminal

_QUOTES = '"""'
_KEPT = 1000  # messages
_LONGEST = 10_000  # characters of one that is kept


class Messages:
    """Reads messages from the terminal. `history`: the file that keeps them, for the user alone; None: none is kept."""

    def __init__(self, history: Path | None) -> None:
        self._readline, self._history = _line_editor(), history
        if self._readline is not None and history is not None:
            for message in _read(history):
                self._offer(message)

    def read(self) -> str | None:
        """One message; None at the end of input. Ctrl-C at the prompt starts it anew."""
        while True:
            try:
                message = _message()
            except EOFError:
                terminal.say("")
                return None
            except KeyboardInterrupt:
                terminal.say("")
                tables.whisper("Ctrl-D or /bye leaves")
                continue
            self._keep(message)
            return message

    def _keep(self, message: str) -> None:
        if self._readline is None or not message.strip():
            return
        self._offer(message)
        if self._history is not None and len(message) <= _LONGEST:
            with contextlib.suppress(OSError):
                _append(self._history, message)

    def _offer(self, message: str) -> None:
        """To the Up key; not what this terminal's encoding cannot show."""
        assert self._readline is not None
        with contextlib.suppress(UnicodeEncodeError):
            self._readline.add_history(message)


def _message() -> str:
    """A line, or lines between three quotes and three quotes."""
    text = terminal.clean(input(">>> "))
    if not text.lstrip().startswith(_QUOTES):
        return text
    text = text.lstrip()[len(_QUOTES) :]
    while not text.rstrip().endswith(_QUOTES):
        text += "\n" + terminal.clean(input("... "))
    return text.rstrip().removesuffix(_QUOTES).strip("\n")


def _line_editor() -> ModuleType | None:
    """What edits the lines of input(), where there is such a thing: what is pasted comes as one."""
    settings.use_utf8()
    try:
        import readline
    except ImportError:
        return None
    readline.set_auto_history(False)
    readline.parse_and_bind("set enable-bracketed-paste on")
    return readline


def _read(history: Path) -> list[str]:
    """The last messages kept; a file that grew is cut to these."""
    try:
        lines = history.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 2 * _KEPT:
            beside = history.with_name(f"{history.name}.{os.getpid()}")
            beside.unlink(missing_ok=True)
            for line in lines[-_KEPT:]:
                _append(beside, json.loads(line))
            beside.replace(history)
    except (OSError, ValueError):
        lines = []
    messages = []
    for line in lines[-_KEPT:]:
        with contextlib.suppress(ValueError):
            messages.append(str(json.loads(line)))
    return messages


def _append(history: Path, message: str) -> None:
    history.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="ascii") as file:
        file.write(json.dumps(message) + "\n")
