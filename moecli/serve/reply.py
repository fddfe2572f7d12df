"""What passes between the server's event loop and the engine's thread: a job, and its reply piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from moecli.engine.constraint import Constraint
from moecli.engine.sampling import Sampling
from moecli.errors import MoecliError
from moecli.library.resolve import ModelRef
from moecli.text.answers import PLAIN, AnswerStyle
from moecli.text.tool_calls import ToolCall


@dataclass(frozen=True, slots=True)
class Job:
    """One answer that is wanted: of which model, after which ids, and how it is made.

    An empty prompt wants the model to be loaded, and nothing else: its reply is started, and that is all.
    """

    ref: ModelRef
    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    max_tokens: int | None = None  # None: as many as the context takes
    stops: Sequence[str] = ()
    continues: bool = False  # in the prompt's own text: a space before the first word counts
    style: AnswerStyle = PLAIN  # how reasoning and calls are told apart
    constraint: Constraint | None = None  # what the answer has to be; its own
    top_logprobs: int | None = None  # alternatives that are told of each token; None: no probabilities at all
    keep_alive: float | None = None  # seconds that the model stays after the answer; None: as the server is set


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of the answer, its log-probability, and the likeliest tokens in its place with theirs."""

    token: str
    logprob: float
    top: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The model is loaded, and the prompt is read next. `load_s`: seconds of the loading."""

    load_s: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown, and the tokens that came since the last piece, where they are scored."""

    text: str
    tokens: Sequence[Scored] = ()
    reasoning: bool = False  # before the answer itself


@dataclass(frozen=True, slots=True)
class Called:
    """A tool that is to be called, as the last text wants it."""

    id: str
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Ended:
    """Why the answer is over, and what it cost, in tokens and seconds."""

    reason: Literal["stop", "length"]
    stop: str | None  # the stop text that ended it
    prompt_tokens: int
    cached_tokens: int  # of the prompt, read before
    tokens: int
    load_s: float
    prompt_s: float
    decode_s: float


AnswerEvent = Piece | Called | Ended
Event = Started | AnswerEvent


class Reply:
    """The events of one job: the engine's thread puts them, the event loop that made the reply iterates over them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.abandoned = False  # nobody waits for it any more
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | MoecliError] = asyncio.Queue()

    def put(self, event: Event | MoecliError) -> None:
        """Called by the engine. An error is the last event."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def abandon(self) -> None:
        """The engine stops at its next step; of no effect on an answer that is over."""
        self.abandoned = True

    async def started(self) -> Started:
        """The first event. MoecliError where there is none."""
        event = await self._next()
        assert isinstance(event, Started)
        return event

    async def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        """The events after `started`, up to Ended. MoecliError where the answer fails."""
        while True:
            event = await self._next()
            assert not isinstance(event, Started)
            yield event
            if isinstance(event, Ended):
                return

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, MoecliError):
            raise event
        return event
