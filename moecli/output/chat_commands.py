"""What can be typed in a chat beside messages: commands that begin with a slash."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from moecli.engine.answer import Answer
from moecli.errors import MoecliError, UsageError, printable
from moecli.output import loading, tables, terminal
from moecli.output.answer import statistics
from moecli.output.markdown import MarkdownStream
from moecli.store import filesystem
from moecli.text import transcript
from moecli.text.transcript import Transcript
from moecli.units import format_bytes

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession, GenerationConfig

_SAMPLING: dict[str, type[int] | type[float]] = {
    "temperature": float, "top-k": int, "top-p": float, "min-p": float, "repeat-penalty": float,
}  # fmt: skip
_NUMBERS: dict[str, type[int] | type[float]] = {**_SAMPLING, "seed": int, "max-tokens": int}
_MARKDOWN = "markdown"
_KEYS = {
    '"""': "begins and ends a message of several lines; what is pasted is one message, too",
    "Ctrl-C": "stops an answer",
    "Up": "brings back what was typed, also in earlier chats (MOECLI_HISTORY=0 keeps none)",
}


class Writer(Protocol):
    """Shows an answer as it comes."""

    def write(self, piece: str) -> None: ...

    def finish(self) -> None: ...


class _Plain:
    """As it is."""

    def __init__(self) -> None:
        self._ended = False

    def write(self, piece: str) -> None:
        terminal.write(piece)
        self._ended = piece.endswith("\n")

    def finish(self) -> None:
        terminal.write("" if self._ended else "\n")


@dataclass(slots=True)
class Chat:
    """A chat on a terminal: its session, the last answer, and how answers are shown."""

    session: ChatSession
    answer: Answer | None = None
    markdown: bool = False

    def writer(self) -> Writer:
        """Who shows the next answer."""
        return MarkdownStream() if self.markdown else _Plain()


class Command(NamedTuple):
    """What stands behind its name in /help, what it is for, and what does it; that may return a message to answer."""

    takes: str
    meaning: str
    do: Callable[[Chat, str], str | None]


def obey(chat: Chat, message: str) -> str | None:
    """Do what a message that is a command says; returns the message to be answered, if there is one.

    A word behind a slash that is no path is a command. UsageError for one that there is not.
    """
    typed = message.strip()
    name, _, rest = typed.partition(" ")
    if not re.fullmatch(r"/[\w?-]*", message.split(" ")[0].rstrip()) or "\n" in typed:  # /usr/bin is none
        return message
    command = COMMANDS.get("/help" if name == "/?" else name.lower())
    if command is None:  # nobody who mistypes a command wants the model to answer it
        near = get_close_matches(name.lower(), COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {printable(name, 40)}", f"{meant}; a space before it makes it a message")
    if rest.strip() and not command.takes:
        raise UsageError(f"{name} takes nothing", f"{name} alone; a space before it makes it a message")
    return command.do(chat, rest.strip())


def _help(chat: Chat, rest: str) -> None:
    commands = {f"{name} {command.takes}".rstrip(): command.meaning for name, command in COMMANDS.items()}
    _say_rows({**commands, **_KEYS})


def _say_rows(rows: dict[str, str]) -> None:
    for name, meaning in rows.items():
        terminal.say(f"  {name:<{max(map(len, rows))}}  {meaning}")


def _clear(chat: Chat, rest: str) -> None:
    chat.session.clear()


def _system(chat: Chat, text: str) -> None:
    """Set it, drop it with `off`, or show it."""
    session = chat.session
    if not text:
        terminal.say(f"system: {session.config.system or 'none'}")
        return
    if not session.is_chat:
        raise UsageError(f"{session.loaded.name} has no chat template, and no system message", "say it in your text")
    session.configure(replace(session.config, system=None if text == "off" else text))


def _set(chat: Chat, text: str) -> None:
    """NAME VALUE, as the options are called; UsageError for others."""
    if not text:
        _show(chat, "")
        return
    name, _, value = text.replace("=", " ", 1).partition(" ")
    name, value = name.lstrip("-").replace("_", "-").lower(), value.strip()
    if name == _MARKDOWN:
        _set_markdown(chat, value)
        return
    if name not in _NUMBERS:
        known = [*_NUMBERS, _MARKDOWN]
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"nothing is called {printable(name, 40)}", f"{hint}; /system TEXT sets the system message")
    chat.session.configure(_changed(chat.session.config, name, value))


def _changed(config: GenerationConfig, name: str, value: str) -> GenerationConfig:
    try:
        number = _NUMBERS[name](value)
    except ValueError:
        kind = "a whole number" if _NUMBERS[name] is int else "a number"
        raise UsageError(f"{name} '{printable(value, 40)}' is not {kind}", f"/set {name} 1") from None
    change: dict[str, Any] = {name.replace("-", "_"): number}
    if name in _SAMPLING:
        return replace(config, sampling=replace(config.sampling, **change))
    if number < (least := int(name == "max-tokens")):
        raise UsageError(f"{name} {number} is out of range", f"it takes {least} or more")
    return replace(config, **change)


def _set_markdown(chat: Chat, value: str) -> None:
    if value not in ("on", "off"):
        raise UsageError(f"{_MARKDOWN} '{printable(value, 40)}' is neither on nor off", f"/set {_MARKDOWN} on")
    if value == "on" and not sys.stdout.isatty():
        raise UsageError("stdout is no terminal: what a model writes goes there as it is", "leave markdown off")
    chat.markdown = value == "on"


def _show(chat: Chat, rest: str) -> None:
    session, config = chat.session, chat.session.config
    how = config.sampling
    _say_rows(
        {
            "model": f"{session.loaded.name} in {session.loaded.dtype}, on {session.loaded.device}",
            "context": _context(session),
            "system": config.system or "none",
            **{name: str(getattr(how, name.replace("-", "_"))) for name in _SAMPLING},
            "seed": str(config.seed),
            "max-tokens": str(config.max_tokens),
            _MARKDOWN: "on" if chat.markdown else "off",
        }
    )


def _context(session: ChatSession) -> str:
    return f"{session.used_tokens:,} of {session.loaded.cache.capacity:,} tokens used"


def _retry(chat: Chat, rest: str) -> str:
    """The last message once more, by another seed: the same one gives the same answer."""
    session = chat.session
    message = session.conversation.take_back()
    if message is None:
        raise UsageError("nothing was said yet", "type a message")
    session.configure(replace(session.config, seed=session.config.seed + 1))
    return message


def _save(chat: Chat, name: str) -> None:
    session, file = chat.session, _file(name, "/save")
    if not session.conversation.messages:
        raise UsageError("nothing was said yet", "type a message")
    if file.exists():
        try:
            transcript.read(file)
        except (MoecliError, OSError):
            raise UsageError(f"{printable(name, 80)} is there, and is no saved chat", "name another file") from None
    said = Transcript(session.loaded.name, session.config.system, session.conversation.messages)
    filesystem.write(file, [transcript.to_bytes(said)])
    terminal.say_written(file)


def _load(chat: Chat, name: str) -> None:
    session = chat.session
    try:
        found = transcript.read(_file(name, "/load"))
    except OSError as error:
        raise UsageError(f"{printable(name, 80)} cannot be read: {error.strerror}", "/save FILE wrote it") from error
    session.configure(replace(session.config, system=found.system))
    session.conversation.restore(found.messages)
    other = "" if found.model == session.loaded.name else f", said with {printable(found.model, 60)}"
    terminal.say(f"{len(found.messages):,} messages{other}; the next answer reads them first")


def _file(name: str, command: str) -> Path:
    if not name:
        raise UsageError(f"{command} needs a file", f"{command} talk.json")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UsageError(f"nobody has the home folder of {printable(name, 80)}", "write the whole path") from None


def _stats(chat: Chat, rest: str) -> None:
    session, experts = chat.session, chat.session.loaded.decoder.experts.statistics
    rows = {}
    if chat.answer is not None:
        rows["last answer"] = statistics(session.loaded, chat.answer)[0]
    rows["context"] = _context(session)
    if uses := experts.hits + experts.misses:
        rows["experts"] = (
            f"{uses:,} uses so far, {tables.percent(experts.hits / uses)} in memory; "
            f"{format_bytes(experts.bytes_read)} read from disk"
        )
    _say_rows(rows)


def _experts(chat: Chat, rest: str) -> None:
    """The heatmap of the last answer, which is read again for it."""
    from moecli.output.routing import heatmap
    from moecli.output.routing.heat import heat_of

    with loading.meter("looking", "tokens", False) as watch:
        trace = chat.session.routing_of_answer(watch)
    if trace is None:
        raise UsageError("there is no answer to look at", "type a message")
    to = tables.console(file=terminal.styled(sys.stderr))
    heats = [heat_of(trace, f"{trace.tokens:,} tokens of the last answer")]
    tables.show(to, *heatmap.blocks(to, heats), heatmap.legend(to, heats))


def _leave(chat: Chat, rest: str) -> None:
    """The chat sees to it."""


COMMANDS = {
    "/clear": Command("", "forget the conversation", _clear),
    "/retry": Command("", "answer the last message anew, by another seed", _retry),
    "/system": Command("TEXT", "set the system message; off: none; without TEXT: show it", _system),
    "/set": Command("NAME VALUE", f"set {', '.join((*_NUMBERS, _MARKDOWN))}", _set),
    "/show": Command("", "show model, context and what is set", _show),
    "/save": Command("FILE", "keep the conversation in a file", _save),
    "/load": Command("FILE", "go on with a conversation that was kept", _load),
    "/stats": Command("", "what the last answer and the experts took", _stats),
    "/experts": Command("", "a heatmap of the experts that the last answer took", _experts),
    "/help": Command("", "show this", _help),
    "/bye": Command("", "leave; so do Ctrl-D, exit and quit", _leave),
}
