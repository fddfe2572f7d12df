"""The interactive chat: read a message, stream the answer; Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli import settings
from moecli.engine.answer import Answer
from moecli.errors import MoecliError
from moecli.output import loading, tables, terminal
from moecli.output.answer import tell_statistics
from moecli.output.chat_commands import Chat, obey
from moecli.output.messages import Messages

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession

_LEAVE = "/bye", "/exit", "/quit", "exit", "quit"
_NEARLY = 0.8  # of the context


def chat(session: ChatSession, quiet: bool) -> None:
    """Until /bye or the end of input. A failure in one turn is told, and the chat goes on."""
    if not quiet:
        kind = "chat" if session.is_chat else "a base model: it continues your text"
        if session.fills_spans:
            kind = "no chat: it fills gaps, each message by itself; write <extra_id_0>, <extra_id_1>, ... for them"
        terminal.say(f"{session.loaded.name} ({kind}). /help shows what can be typed, /bye leaves.")
    here = Chat(session)
    messages = Messages(settings.home() / "chat-history.jsonl" if settings.keeps_history() and not quiet else None)
    while (message := messages.read()) is not None:
        if message.strip() in _LEAVE:
            return
        try:
            again = obey(here, message)
        except KeyboardInterrupt:
            again = None  # of a command that takes long
        except MoecliError as error:
            terminal.report(error)
            again = None
        if again is not None and again.strip():
            _turn(here, again, quiet)


def _turn(here: Chat, message: str, quiet: bool) -> None:
    session, answer = here.session, Answer()
    writer = here.writer()
    try:
        with loading.meter("reading", "tokens", quiet) as watch:
            for piece in session.ask(message, answer, watch):
                writer.write(piece)
    except KeyboardInterrupt:
        pass  # the answer so far stays, in the conversation too
    except MoecliError as error:
        if error.hint and "--ctx" in error.hint:
            error = MoecliError(error.message, "/clear forgets the conversation; or leave, and raise --ctx")
        terminal.report(error)
        return
    writer.finish()
    here.answer = answer
    if not quiet:
        tell_statistics(session.loaded, answer)
    _tell_room(session, answer)


def _tell_room(session: ChatSession, answer: Answer) -> None:
    """In words, before the context is full, and when it is."""
    used, most = session.used_tokens, session.loaded.cache.capacity
    if session.fills_spans or used < _NEARLY * most:
        return
    more = "/clear begins anew, /save FILE keeps what was said; --ctx N at the next start has more"
    if answer.finish_reason == "length" and used >= most:
        terminal.say(f"note: the context of {most:,} tokens is full, and the answer ends here: {more}")
    else:
        tables.whisper(f"{used:,} of {most:,} tokens of the context are used: {more}")
