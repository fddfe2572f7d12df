"""The interactive chat: read a message, stream the answer; Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from moecli import settings
from moecli.engine.answer import Answer
from moecli.errors import MoecliError
from moecli.output import loading, terminal
from moecli.output.answer import tell_statistics
from moecli.output.messages import Messages

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession

_COMMANDS = {
    "/clear": "forget the conversation",
    "/help": "show this",
    "/bye": "leave; so do Ctrl-D, exit and quit",
}
_KEYS = {
    '"""': "begins and ends a message of several lines; what is pasted is one message, too",
    "Ctrl-C": "stops an answer",
    "Up": "brings back what was typed, also in earlier chats",
}
_LEAVE = "/bye", "/exit", "/quit", "exit", "quit"


def chat(session: ChatSession, quiet: bool) -> None:
    """Until /bye or the end of input. A failure in one turn is told, and the chat goes on."""
    if not quiet:
        kind = "chat" if session.is_chat else "a base model: it continues your text"
        if session.fills_spans:
            kind = "no chat: it fills gaps, each message by itself; write <extra_id_0>, <extra_id_1>, ... for them"
        terminal.say(f"{session.loaded.name} ({kind}). /help shows what can be typed, /bye leaves.")
    messages = Messages(None if quiet else settings.home() / "chat-history.jsonl")
    while (message := messages.read()) is not None:
        typed = message.strip()
        if typed in _LEAVE:
            return
        if typed == "/clear":
            session.clear()
        elif typed in ("/help", "/?"):
            _help()
        elif re.fullmatch(r"/[\w?-]*", message.split(" ")[0].rstrip()) and "\n" not in typed:  # /usr/bin is none
            _refuse(typed.split()[0])
        elif typed:
            _turn(session, message, quiet)


def _help() -> None:
    rows = {**_COMMANDS, **_KEYS}
    for name, meaning in rows.items():
        terminal.say(f"  {name:<{max(map(len, rows))}}  {meaning}")


def _refuse(typed: str) -> None:
    """Nobody who mistypes a command wants the model to answer it."""
    near = get_close_matches(typed.lower(), _COMMANDS, 1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}"
    terminal.report(MoecliError(f"unknown command {typed}", f"{meant}; a space before it makes it a message"))


def _turn(session: ChatSession, message: str, quiet: bool) -> None:
    answer = Answer()
    try:
        with loading.meter("reading", "tokens", quiet) as watch:
            for piece in session.ask(message, answer, watch):
                terminal.write(piece)
    except KeyboardInterrupt:
        pass  # the answer so far stays, in the conversation too
    except MoecliError as error:
        if error.hint and "--ctx" in error.hint:
            error = MoecliError(error.message, "/clear forgets the conversation; or leave, and raise --ctx")
        terminal.report(error)
        return
    terminal.write("\n" if not answer.text.endswith("\n") else "")
    if not quiet:
        tell_statistics(session.loaded, answer)
