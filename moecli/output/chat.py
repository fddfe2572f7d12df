"""The interactive chat: read a line, stream the answer; Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from moecli.engine.answer import Answer
from moecli.errors import MoecliError
from moecli.output import terminal
from moecli.output.answer import statistics

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession

_HELP = "/clear forgets the conversation, /bye leaves (so does Ctrl-D), Ctrl-C stops an answer"


def chat(session: ChatSession, quiet: bool) -> None:
    """Until /bye or the end of input. A failure in one turn is told, and the chat goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing for input(), where there is one
    if not quiet:
        kind = "chat" if session.is_chat else "a base model: it continues your text"
        terminal.say(f"{session.loaded.name} ({kind}). {_HELP}.")
    while (line := _read_line()) is not None:
        command = line.strip()
        if command in ("/bye", "/exit", "/quit"):
            return
        if command == "/clear":
            session.clear()
        elif command in ("/help", "/?"):
            terminal.say(_HELP)
        elif command:
            _turn(session, line, quiet)


def _turn(session: ChatSession, line: str, quiet: bool) -> None:
    answer = Answer()
    try:
        for piece in session.ask(line, answer):
            terminal.write(piece)
    except KeyboardInterrupt:
        pass  # the answer so far stays, in the conversation too
    except MoecliError as error:
        terminal.report(error)
        return
    terminal.write("\n" if not answer.text.endswith("\n") else "")
    if not quiet:
        terminal.say(statistics(session.loaded, answer))


def _read_line() -> str | None:
    """One line of input; None at its end. Ctrl-C at the prompt starts the line anew."""
    while True:
        try:
            return terminal.clean(input(">>> "))
        except EOFError:
            terminal.say("")
            return None
        except KeyboardInterrupt:
            terminal.say("")
