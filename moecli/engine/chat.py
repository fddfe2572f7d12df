"""One conversation with a loaded model: text in, pieces of text out; recorded, if that is wanted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moecli.engine import fallback
from moecli.engine.answer import Answer, Request, pieces
from moecli.engine.block import RoutingObserver
from moecli.engine.cache import Cache
from moecli.engine.constraint import constrain
from moecli.engine.decoder import Decoder
from moecli.engine.generate import Session
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.prefixes import Slots, reading_of
from moecli.engine.recorder import Recorder, finish, new_builders, new_recorder
from moecli.engine.sampling import Sampling
from moecli.engine.session_file import SessionFile
from moecli.errors import CheckpointError, MoecliError
from moecli.planning.memory import default_context
from moecli.planning.placement import Plan
from moecli.routing.builder import TraceBuilder
from moecli.routing.trace import RoutingTrace
from moecli.store.progress import Progress, silent
from moecli.text.answers import PLAIN, behind_reasoning, style_after
from moecli.text.chat import Message
from moecli.text.grammar import Grammar, marks

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How answers are generated, and what the prompt looks like. Answers end before any text in `stops`."""

    sampling: Sampling
    seed: int
    max_tokens: int = 512
    stops: tuple[str, ...] = ()
    system: str | None = None  # message that a chat begins with
    raw: bool = False  # no chat template
    lookup: bool = True  # guess ahead where the text repeats itself
    top_logprobs: int | None = None  # alternatives that are scored beside each token; None: no token is
    echo: bool = False  # the prompt's tokens are scored, too
    grammar: Grammar | None = None  # what each answer has to be
    template_options: Mapping[str, Any] = field(default_factory=dict)


class Conversation:
    """What was said so far: messages, or for a base model or `raw` one growing text."""

    def __init__(self, opened: OpenedModel, config: GenerationConfig) -> None:
        self._opened, self._tokenizer, self._vocab_size = opened, opened.tokenizer, opened.spec.vocab_size
        self._options = config.template_options
        self.system = config.system  # what a chat begins with
        self.reads_apart = bool(opened.spec.encoder)  # an encoder reads each prompt alone
        self.is_chat = opened.tokenizer.chat_template is not None and not (config.raw or self.reads_apart)
        self._messages: list[Message] = []
        self._ids: list[int] = []
        self._begins: list[int] = []  # how many ids there were before each turn

    @property
    def messages(self) -> Sequence[Message]:
        """What was said, the user's messages and the answers in turn."""
        return self._messages

    def prompt(self, text: str, turns: Sequence[Message] = ()) -> list[int]:
        """The ids of all that was said and `text`, up to where the model goes on. MoecliError if there are none.

        A chat takes `turns` for the text, where there are some.
        """
        if self.is_chat:
            said = turns or (Message("user", text),)
            system = [Message("system", self.system)] if self.system else []
            ids = self._tokenizer.encode_chat([*system, *self._messages, *said], self._options)
        elif self.reads_apart:
            ids = self._tokenizer.encode(text)
        else:
            ids = [*self._ids, *self._tokenizer.encode(text, special=not self._ids)]
        if not ids:
            raise MoecliError("the prompt holds no tokens")
        if max(ids) >= self._vocab_size:
            raise CheckpointError(
                f"the tokenizer knows id {max(ids)} and the model only {self._vocab_size}",
                "tokenizer.json and the weights belong to different models",
            )
        return ids

    def request(self, prompt: Sequence[int], config: GenerationConfig, watch: Progress = silent) -> Request:
        """The answer that is wanted after a prompt's ids."""
        style, constraint = style_after(self._tokenizer, prompt) if self.is_chat else PLAIN, None
        if config.grammar is not None:
            known = marks(self._tokenizer, self._opened.end_ids)
            constraint = constrain(self._opened, behind_reasoning(config.grammar, style, known))
        return Request(
            prompt,
            config.sampling,
            config.seed,
            config.max_tokens,
            self._opened.end_ids,
            config.stops,
            watch,
            continues=not (self.is_chat or self.reads_apart),
            fills=self.reads_apart,
            style=style,
            constraint=constraint,
            top_logprobs=config.top_logprobs,
            echo=config.echo,
        )

    def add(self, text: str, prompt: list[int], answer: Answer) -> None:
        """`text`, which became `prompt`, and its answer belong to what was said."""
        self._messages += [Message("user", text), Message("assistant", answer.text)]
        self._begins.append(len(self._ids))
        self._ids = [*prompt, *answer.token_ids]

    def take_back(self) -> str | None:
        """Forget the last message and its answer; returns the message, None where there is none."""
        if not self._messages:
            return None
        *self._messages, asked, _ = self._messages
        del self._ids[self._begins.pop() :]
        return asked.content

    def restore(self, messages: Sequence[Message]) -> None:
        """Go on from what was said elsewhere: messages of user and assistant in turn."""
        self.clear()
        for asked, answered in zip(messages[::2], messages[1::2], strict=True):
            self._messages += [asked, answered]
            self._begins.append(len(self._ids))
            if not (self.is_chat or self.reads_apart):
                said = self._tokenizer.encode(asked.content + answered.content, special=not self._ids)
                self._ids = [*self._ids, *said]

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._messages.clear()
        self._ids = []
        self._begins.clear()


def plan_for(opened: OpenedModel, config: GenerationConfig, text: str | None) -> Plan:
    """Where everything goes, with a cache for `text` and its answer, or for a chat where it is None.

    NotEnoughMemory if it cannot; MoecliError if the prompt is longer than the context.
    """
    asked, trained = opened.options.context, opened.spec.context_length
    longest = asked or trained
    if text is None:
        conversation = Conversation(opened, config)
        with contextlib.suppress(MoecliError):  # whoever asks will be told
            conversation.prompt("a")  # lets the tokenizer note what it does not know of the template
        return opened.plan(asked or min(longest, default_context(opened.model.spec)))
    needed = len(Conversation(opened, config).prompt(text))
    if needed > longest:
        raise MoecliError(
            f"the prompt is {needed} tokens and the context {longest}",
            "shorten it, or raise --ctx beyond what the model was trained for",
        )
    if opened.spec.encoder:  # which reads one, while the decoder writes the other
        return opened.plan(min(longest, max(needed, config.max_tokens)))
    return opened.plan(min(longest, needed + config.max_tokens))


def prefixes_of(loaded: LoadedModel, file: SessionFile | None) -> Slots | None:
    """The model's one cache as a slot whose blocks are in a session file; None without one."""
    if file is None:
        return None
    return Slots([loaded.cache], reading_of(loaded.decoder, loaded.cache, loaded.plan.fits), file)


class ChatSession:
    """A conversation whose answers are generated."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: GenerationConfig,
        warn: fallback.Warn = _LOG.warning,
        file: SessionFile | None = None,
    ) -> None:
        """`warn` is told where the device's memory runs out, and the answer goes on with less of the model there.

        `file` has what was read before, and gets what is read.
        """
        self.loaded, self.config, self._warn, self._file = loaded, config, warn, file
        self._conversation = Conversation(loaded.opened, config)
        self._session = self._begin()

    @property
    def is_chat(self) -> bool:
        """Whether it has turns; a base model continues the text."""
        return self._conversation.is_chat

    @property
    def fills_spans(self) -> bool:
        """Whether it gives what is missing in a text, at the sentinels that stand for it."""
        return bool(self.loaded.opened.spec.encoder)

    def ask(self, text: str, answer: Answer, watch: Progress = silent) -> Iterator[str]:
        """Yield the answer piece by piece; `watch` is told how far the prompt is read.

        Even interrupted it stays part of the conversation; a failure does not.
        """
        prompt = self._conversation.prompt(text)
        if self.loaded.decoder.is_released:  # the device had no memory for less of it either: perhaps it has now
            self.loaded = fallback.load(self.loaded.opened, self.loaded.plan, warn=self._warn)
            self._session = self._begin()
        opened = self.loaded.opened
        request = self._conversation.request(prompt, self.config, watch)
        answer.prompt, answer.style = text, request.style
        kept = True
        try:
            yield from pieces(self._session, opened.tokenizer, request, answer, self._observer())
        except MoecliError:
            kept = False
            raise
        finally:
            if kept:
                self._conversation.add(text, prompt, answer)

    @property
    def conversation(self) -> Conversation:
        """What was said so far."""
        return self._conversation

    @property
    def used_tokens(self) -> int:
        """How many tokens of its context are taken."""
        return len(self._session.held)

    def configure(self, config: GenerationConfig) -> None:
        """Answer like this from now on; a system message counts for what was said, too."""
        self.config = config
        self._conversation.system = config.system

    def clear(self) -> None:
        """Forget all turns; the next prompt begins a new conversation."""
        self._conversation.clear()

    def routing_of_answer(self, watch: Progress = silent) -> RoutingTrace | None:
        """Which experts the tokens of the last answer took, which are read once more; None where there are none.

        Nothing that is said later depends on it. ConfigError for a model without routers.
        """
        opened = self.loaded.opened
        builders = new_builders(opened.name, opened.spec)
        stack, builder = list(builders.items())[-1]  # of the decoder
        recorder = Recorder(opened.spec, builder)
        recorder.begin(0)
        recorder.generated = True
        self._session.read_answer_again(recorder, watch)
        recorder.flush()
        if not recorder.recorded:
            return None
        return finish({stack: builder}, opened.spec, opened.tokenizer, opened.name, self.loaded.dtype).get(stack)

    def _begin(self) -> Session:
        loaded = self.loaded
        prefixes, self._file = prefixes_of(loaded, self._file), None  # which is of this decoder alone
        return Session(
            loaded.decoder, loaded.cache, lookup=self.config.lookup, fall_back=self._fall_back, prefixes=prefixes
        )

    def _fall_back(self) -> tuple[Decoder, Cache]:
        self.loaded = fallback.reload(self.loaded, self._warn)
        return self.loaded.decoder, self.loaded.cache

    def _observer(self) -> RoutingObserver | None:
        """Who sees the routing of the turn that begins."""
        return None


class RecordedSession(ChatSession):
    """A chat session that puts what the router does into `builders`, a prompt for each turn."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: GenerationConfig,
        builders: Mapping[str, TraceBuilder],
        warn: fallback.Warn = _LOG.warning,
    ) -> None:
        super().__init__(loaded, config, warn)
        self._builders = builders
        self._recorder = new_recorder(loaded.opened.spec, builders)
        self._turns = 0  # a failed one too

    def traces(self) -> dict[str, RoutingTrace]:
        """The routing of all turns so far, for each of the model's stacks; none if no token was recorded."""
        self._recorder.flush()
        if not self._recorder.recorded:
            return {}
        opened = self.loaded.opened
        return finish(self._builders, opened.spec, opened.tokenizer, opened.name, self.loaded.dtype)

    def _observer(self) -> RoutingObserver:
        self._recorder.begin(self._turns)
        self._turns += 1
        return self._recorder
