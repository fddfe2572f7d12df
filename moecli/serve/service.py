"""What every API asks for: a model by name, prompts as ids, and replies; alike for all of them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request

from moecli.engine.constraint import Constraint, constrain
from moecli.engine.loaded import OpenedModel
from moecli.engine.sampling import SamplingOptions, new_seed
from moecli.errors import MoecliError
from moecli.library.resolve import ModelRef
from moecli.serve.asked import ChatOptions
from moecli.serve.engine import Engine
from moecli.serve.http import Refused, while_there
from moecli.serve.models import ServedModel, ServedModels, context_of
from moecli.serve.reply import AnswerEvent, Called, Ended, Job, Piece, Reply
from moecli.text.answers import PLAIN, AnswerStyle, behind_reasoning, style_after
from moecli.text.chat import Message
from moecli.text.grammar import Grammar, marks
from moecli.text.tool_calls import required

T = TypeVar("T")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ROLES = {"developer": "system"}  # as later documents of OpenAI call it


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How an answer is to be made, as all APIs can say it; None leaves it to the model's vendor, or to chance."""

    sampling: SamplingOptions
    seed: int | None = None
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, and how its answer goes on: in the same text, parted, held to a grammar."""

    ids: Sequence[int]
    continues: bool = False
    style: AnswerStyle = PLAIN
    constraint: Constraint | None = None  # of an answer that is new


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that is complete."""

    pieces: Sequence[Piece]
    ended: Ended

    calls: Sequence[Called] = ()

    @property
    def text(self) -> str:
        """What is said; the reasoning before it is apart."""
        return "".join(piece.text for piece in self.pieces if not piece.reasoning)

    @property
    def reasoning(self) -> str:
        return "".join(piece.text for piece in self.pieces if piece.reasoning)


class Service:
    """The models that are served, and the engine."""

    def __init__(self, engine: Engine, models: ServedModels) -> None:
        self.engine, self.models = engine, models

    async def all(self) -> list[ServedModel]:
        """Every model by name."""
        return await asyncio.to_thread(lambda: list(self.models.all()))

    async def find(self, name: str) -> ModelRef:
        """The model of that name. ModelNotFound if it is not served."""
        return await asyncio.to_thread(self.models.find, name)

    async def open(self, name: str) -> OpenedModel:
        """The same, with its tokenizer and headers read. MoecliError if they are unfit."""
        return await asyncio.wrap_future(self.engine.open(await self.find(name)))

    async def chat(self, opened: OpenedModel, messages: Sequence[Message], asked: ChatOptions) -> Prompt:
        """A conversation as the model reads it, and what its answer has to be.

        A model without a chat template continues the messages, blank lines between them. Refused for what it cannot do.
        """
        said = [replace(each, role=_ROLES.get(each.role, each.role)) for each in messages]
        tokenizer = opened.tokenizer
        if tokenizer.chat_template is None or opened.spec.encoder:
            asked.refuse_without_template(opened, said)
            text = "\n\n".join(each.content for each in said if each.content)
            return await self.held(opened, await self.text(opened, text), asked.grammar)

        def encoded() -> Prompt:
            given = asked.given(opened, said)
            ids = self._checked(opened, tokenizer.encode_chat(said, given))
            return Prompt(ids, style=style_after(tokenizer, ids, given.get("tools") or ()))

        prompt = await asyncio.to_thread(encoded)
        if asked.think is False and prompt.style.opened:
            raise Refused(400, f"{opened.name} reasons before each answer", "leave think out")
        grammar = asked.grammar
        if asked.must_call and (prompt.style.calls is not None or prompt.style.channels):
            known = await asyncio.to_thread(marks, tokenizer, opened.end_ids)
            grammar = required(prompt.style.calls, asked.must_call, known) if prompt.style.calls else None
            if grammar is None:
                raise Refused(400, f"{opened.name} cannot be made to call a tool", 'tool_choice "auto" leaves it to it')
        return await self.held(opened, prompt, grammar)

    async def held(self, opened: OpenedModel, prompt: Prompt, grammar: Grammar | None) -> Prompt:
        """The same, its answer held to a grammar. GrammarError if it cannot be."""
        if grammar is None:
            return prompt

        def held() -> Constraint:
            known = marks(opened.tokenizer, opened.end_ids)
            return constrain(opened, behind_reasoning(grammar, prompt.style, known))

        return replace(prompt, constraint=await asyncio.to_thread(held))

    async def text(self, opened: OpenedModel, text: str) -> Prompt:
        """A text that the answer goes on in."""
        ids = await asyncio.to_thread(opened.tokenizer.encode, text)
        return Prompt(self._checked(opened, ids), not opened.spec.encoder)

    async def any(self, opened: OpenedModel, prompt: str | Sequence[int]) -> Prompt:
        """The same of a text, or of ids that a client has made."""
        if isinstance(prompt, str):
            return await self.text(opened, prompt)
        return Prompt(self._checked(opened, list(prompt)), not opened.spec.encoder)

    def submit(self, opened: OpenedModel, prompt: Prompt, options: AnswerOptions) -> Reply:
        """The reply to come. Busy if too many wait."""
        seed = new_seed() if options.seed is None else options.seed & (2**64 - 1)
        sampling = options.sampling.resolve(opened.defaults)
        return self.engine.submit(
            Job(
                opened.ref, prompt.ids, sampling, seed, options.max_tokens, tuple(filter(None, options.stops)),
                prompt.continues, prompt.style, prompt.constraint and prompt.constraint.copy(), options.top_logprobs,
                options.keep_alive,
            )
        )  # fmt: skip

    def submit_all(self, wanted: Sequence[tuple[OpenedModel, Prompt, AnswerOptions]]) -> list[Reply]:
        """The replies to several at once; none if one is refused."""
        replies: list[Reply] = []
        try:
            for each in wanted:
                replies.append(self.submit(*each))
        except MoecliError:
            for reply in replies:
                reply.abandon()
            raise
        return replies

    def preload(self, opened: OpenedModel, keep_alive: float | None) -> Reply:
        """A reply that is over once the model is loaded."""
        return self.submit(opened, Prompt(()), AnswerOptions(SamplingOptions(), keep_alive=keep_alive))

    def _checked(self, opened: OpenedModel, ids: list[int]) -> list[int]:
        if not ids:
            raise Refused(400, "the prompt holds no tokens")
        if not 0 <= min(ids) <= max(ids) < opened.spec.vocab_size:
            raise Refused(400, f"token ids of {opened.name} are 0 to {opened.spec.vocab_size - 1}")
        if len(ids) > (most := context_of(opened)):
            hint = "shorten it, or start the server with a larger --ctx"
            raise Refused(400, f"the prompt is {len(ids)} tokens and the context {most}", hint)
        return ids


async def begun(request: Request, replies: Sequence[Reply]) -> float:
    """Wait until the first of these answers begins; the seconds that loading took. MoecliError if one cannot."""

    async def wait() -> float:
        return max([(await reply.started()).load_s for reply in replies[:1]], default=0.0)

    return await _kept(request, replies, wait())


async def whole(request: Request, replies: Sequence[Reply]) -> list[Answer]:
    """The complete answers. MoecliError where one fails."""

    async def collect() -> list[Answer]:
        return [await _answer(reply) for reply in replies]

    return await _kept(request, replies, collect())


async def merged(replies: Sequence[Reply]) -> AsyncIterator[tuple[int, AnswerEvent]]:
    """Numbered events of several answers as they come; the first reply has begun."""
    events: asyncio.Queue[tuple[int, AnswerEvent | BaseException]] = asyncio.Queue()

    async def follow(number: int, reply: Reply) -> None:
        try:
            if number:
                await reply.started()
            async for event in reply:
                events.put_nowait((number, event))
        except Exception as error:
            events.put_nowait((number, error))

    tasks = [asyncio.ensure_future(follow(*each)) for each in enumerate(replies)]
    try:
        left = len(tasks)
        while left:
            number, event = await events.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event, Ended)
            yield number, event
    finally:
        for task in tasks:
            task.cancel()


def keep_alive_seconds(value: str | float) -> float:
    """Ollama's notation: "5m", "1h30m", 300 (seconds), 0 to unload at once, any negative for ever. Refused if none."""
    if isinstance(value, str):
        text = value.strip()
        parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
        if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text):
            value = float(text)
        elif parts and re.fullmatch(r"-?([0-9.]+(ms|s|m|h))+", text):
            value = sum(float(number) * _UNITS[unit] for number, unit in parts) * (-1 if text[0] == "-" else 1)
        else:
            raise Refused(400, f"keep_alive '{value[:40]}' is no duration", 'it takes "5m", seconds, 0 or -1')
    return math.inf if value < 0 else value


async def _answer(reply: Reply) -> Answer:
    await reply.started()
    pieces: list[Piece] = []
    calls: list[Called] = []
    async for event in reply:
        if isinstance(event, Ended):
            return Answer(pieces, event, calls)
        if isinstance(event, Called):
            calls.append(event)
        else:
            pieces.append(event)
    raise AssertionError("an answer ends with Ended")


async def _kept(request: Request, replies: Sequence[Reply], work: Coroutine[Any, Any, T]) -> T:
    """What comes of `work`; whatever ends it, a client that leaves or another answer's failure, ends the replies."""
    try:
        return await while_there(request, work)
    except BaseException:
        for reply in replies:
            reply.abandon()
        raise
