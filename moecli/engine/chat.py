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
from moecli.engine.recorder import finish, new_recorder
from moecli.engine.sampling import Sampling
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
    grammar: Grammar | None = None  # what each answer has to be
    template_options: Mapping[str, Any] = field(default_factory=dict)


class Conversation:
    """What was said so far: messages, or for a base model or `raw` one growing text."""

    def __init__(self, opened: OpenedModel, config: GenerationConfig) -> None:
        self._tokenizer, self._vocab_size = opened.tokenizer, opened.spec.vocab_size
        self._options = config.template_options
        self._system = [Message("system", config.system)] if config.system else []
        self.reads_apart = bool(opened.spec.encoder)  # an encoder reads each prompt alone
        self.is_chat = opened.tokenizer.chat_template is not None and not (config.raw or self.reads_apart)
        self._messages: list[Message] = []
        self._ids: list[int] = []

    def prompt(self, text: str, turns: Sequence[Message] = ()) -> list[int]:
        """The ids of all that was said and `text`, up to where the model goes on. MoecliError if there are none.

        A chat takes `turns` for the text, where there are some.
        """
        if self.is_chat:
            said = turns or (Message("user", text),)
            ids = self._tokenizer.encode_chat([*self._system, *self._messages, *said], self._options)
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

    def add(self, text: str, prompt: list[int], answer: Answer) -> None:
        """`text`, which became `prompt`, and its answer belong to what was said."""
        self._messages += [Message("user", text), Message("assistant", answer.text)]
        self._ids = [*prompt, *answer.token_ids]

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._messages.clear()
        self._ids.clear()


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


class ChatSession:
    """A conversation whose answers are generated."""

    def __init__(self, loaded: LoadedModel, config: GenerationConfig, warn: fallback.Warn = _LOG.warning) -> None:
        """`warn` is told where the device's memory runs out, and the answer goes on with less of the model there."""
        self.loaded, self.config, self._warn = loaded, config, warn
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
        config, opened = self.config, self.loaded.opened
        style = style_after(opened.tokenizer, prompt) if self.is_chat else PLAIN
        constraint = None
        if config.grammar is not None:
            constraint = constrain(
                opened, behind_reasoning(config.grammar, style, marks(opened.tokenizer, opened.end_ids))
            )
        request = Request(
            prompt,
            config.sampling,
            config.seed,
            config.max_tokens,
            opened.end_ids,
            config.stops,
            watch,
            continues=not (self.is_chat or self.fills_spans),
            fills=self.fills_spans,
            style=style,
            constraint=constraint,
            top_logprobs=config.top_logprobs,
        )
        answer.prompt, answer.style = text, style
        kept = True
        try:
            yield from pieces(self._session, opened.tokenizer, request, answer, self._observer())
        except MoecliError:
            kept = False
            raise
        finally:
            if kept:
                self._conversation.add(text, prompt, answer)

    def clear(self) -> None:
        """Forget all turns; the next prompt begins a new conversation."""
        self._conversation.clear()

    def _begin(self) -> Session:
        loaded = self.loaded
        return Session(loaded.decoder, loaded.cache, lookup=self.config.lookup, fall_back=self._fall_back)

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
