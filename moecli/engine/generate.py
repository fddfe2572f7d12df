"""Generation: prefill once, then a token at a time, or drafts checked together. Knows ids and nothing of text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from moecli.engine.block import RoutingObserver
from moecli.engine.cache import Cache
from moecli.engine.decoder import Decoder, Look
from moecli.engine.device import ran_out
from moecli.engine.drafts import PromptLookup
from moecli.engine.finite import is_finite, not_finite
from moecli.engine.prefixes import Slot, Slots
from moecli.engine.sampling import Sampler
from moecli.errors import MoecliError
from moecli.kernels.blocking import CHUNK, MAX_TOKENS
from moecli.store.progress import Progress, silent

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(slots=True)
class Timing:
    """What one answer cost. Rates are tokens per second; None where nothing was measured."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, already in the cache
    dropped: float | None = None  # share of the prompt's choices that full experts dropped; None: they have no limit
    steps: int = 0  # tokens decoded after the prompt's own
    drafted: int = 0  # of these, guessed and checked beside others
    drafted_right: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second, those in the cache before not counted."""
        fed = self.prompt_tokens - self.cached_tokens
        return fed / self.prefill_s if self.prefill_s > 0 else None

    @property
    def decode_rate(self) -> float | None:
        """Decoded tokens per second."""
        return self.steps / self.decode_s if self.decode_s > 0 else None


@dataclass(slots=True)
class Session:
    """One text that grows: the decoder's cache and the ids it holds. Later turns reuse what they share.

    Where there is an encoder, it reads the prompt, and the text is the answer alone. `fall_back`, if there is one, is
    asked for another decoder and an empty cache when the device's memory runs out, and the text goes on with them.
    With `prefixes`, slots of this one cache, what is shared is used again in whole blocks, to the same bits.
    """

    decoder: Decoder
    cache: Cache
    held: list[int] = field(default_factory=list)
    lookup: bool = False  # drafts are looked up in the text: the same tokens, sooner where it repeats itself
    fall_back: Callable[[], tuple[Decoder, Cache]] | None = None
    prefixes: Slots | None = None
    _slot: Slot | None = None
    _encoded: list[int] | None = None  # the prompt, where an encoder has read it
    _asked: int = 0  # of `held`, the tokens before the last answer
    _torn: bool = False  # a forward pass was interrupted: the layers' caches disagree

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        limit: int,
        timing: Timing,
        observer: RoutingObserver | None = None,
        watch: Progress = silent,
        look: Look | None = None,
    ) -> Iterator[int]:
        """Yield up to `limit` ids after `prompt`, the whole text so far. The caller decides when to stop early.

        `watch` is told of the tokens fed at once, done and of how many. `look` sees what becomes of every token of the
        prompt, for which all of it is read.
        """
        if not prompt:
            raise MoecliError("the prompt is empty", "a model without a start token needs at least one token")
        if len(prompt) > self.cache.capacity:
            raise MoecliError(
                f"the prompt is {len(prompt)} tokens and the context {self.cache.capacity}",
                "shorten it, or raise --ctx",
            )
        timing.prompt_tokens = len(prompt)
        if team := self.decoder.team:
            team.begin()
        began = time.perf_counter()
        ends: list[int] = []  # of the pieces in which the prompt is read
        if self.decoder.encoder is not None:
            limit = min(limit, self.cache.capacity)
            pending = self._read(prompt, timing, observer, watch)
            seen = list(pending)
        else:
            limit = min(limit, self.cache.capacity - len(prompt) + 1)
            timing.cached_tokens, ends = self._take(prompt, anew=look is not None)
            self._asked = len(prompt)
            seen, pending = list(prompt), list(prompt[timing.cached_tokens :])
        _LOG.debug(
            "a prompt of %d tokens, %d of them cached; %d more at most", len(prompt), timing.cached_tokens, limit
        )
        drafts = PromptLookup(prompt) if self.lookup and observer is None and self.decoder.can_draft else None
        made = 0

        def told(done: int, total: int) -> None:
            watch(len(self.held) - timing.cached_tokens + done, len(prompt) - timing.cached_tokens)

        while made < limit:
            if observer is not None:
                observer.generated = made > 0
            room = min(limit - made, MAX_TOKENS) - 1
            draft = drafts.propose(room) if drafts and made else []
            tokens = []
            if made or not ends:
                scores = self._feed(pending + draft, 1 + len(draft), observer)
            else:
                for end in ends:
                    scores = self._read_piece(prompt, end, observer, told, look)
            for logits, guess in zip(scores, [*draft, None], strict=True):
                tokens.append(sampler.pick(logits, seen))
                seen.append(tokens[-1])
                if tokens[-1] != guess:
                    break
            self._forget(len(draft) + 1 - len(tokens))
            spent = time.perf_counter() - began
            if drafts:
                if made:
                    drafts.measured(1 + len(draft), spent)
                for token in tokens:
                    drafts.add(token)
            if made == 0:
                timing.prefill_s = spent
            else:
                timing.decode_s += spent
                timing.steps += len(tokens)
                timing.drafted += len(draft)
                timing.drafted_right += len(tokens) - 1
            if profile := self.decoder.profile:
                profile.end_step(profile.decode if made else profile.prefill, len(pending + draft), spent)
            made += len(tokens)
            pending = tokens[-1:]
            yield from tokens
            began = time.perf_counter()

    def read_answer_again(self, observer: RoutingObserver, watch: Progress = silent) -> None:
        """Feed the last answer once more, as it was generated, for an observer; the cache is what it was.

        To the bit, unless a window has moved on. The last token of an answer was never fed. `watch` is told of tokens.
        """
        answer, decoder = self.held[self._asked :], self.decoder
        if self._torn or not answer:
            return
        self._torn = True
        if (kept := self.cache.rewind(self._asked)) < self._asked:  # a window has moved on
            decoder.forward(torch.tensor(self.held[kept : self._asked]), self.cache, last_only=True)
        at_once = MAX_TOKENS if decoder.can_draft else 1
        for start in range(0, len(answer), at_once):
            decoder.forward(torch.tensor(answer[start : start + at_once]), self.cache, observer)
            watch(min(start + at_once, len(answer)), len(answer))
        self._torn = False

    def _read(
        self, prompt: Sequence[int], timing: Timing, observer: RoutingObserver | None, watch: Progress
    ) -> list[int]:
        """Let the encoder read `prompt`; returns what the answer begins with."""
        if observer is not None:
            observer.generated = False
        self._encoded = list(prompt)
        self.held.clear()
        ids = torch.tensor(self._encoded)
        timing.dropped = self._in_memory(lambda: self.decoder.read(ids, self.cache, observer, watch), again=False)
        return [self.decoder.spec.start_id]

    def _take(self, prompt: Sequence[int], anew: bool) -> tuple[int, list[int]]:
        """Keep what of the prompt is known, nothing if it is to be read anew: how many tokens that is, and where the
        pieces of the rest end."""
        if self.prefixes is None:
            return self._rewind(() if anew else prompt), [len(prompt)]
        if self._slot is not None:
            if self._torn:
                self._slot.clear()
            self.prefixes.give_back(self._slot)
        found = self.prefixes.take(prompt, anew)
        assert found is not None, "the one text is over"
        self._slot, ends = found
        self.held, self._torn = self._slot.ids, False
        return len(self.held), ends

    def _read_piece(
        self,
        prompt: Sequence[int],
        end: int,
        observer: RoutingObserver | None,
        watch: Progress,
        look: Look | None,
    ) -> torch.Tensor:
        """Read the prompt on to `end`; the logits [1, V] there."""
        whole, begin = None if self.prefixes is None else len(prompt), len(self.held)
        seen = None if look is None else partial(_further, look, begin)
        logits = self._feed(list(prompt[begin:end]), 1, observer, watch, whole, seen)
        if self.prefixes is not None and self._slot is not None:
            self.prefixes.note(self._slot)
        return logits

    def _feed(
        self,
        ids: list[int],
        wanted: int,
        observer: RoutingObserver | None,
        watch: Progress = silent,
        prompt: int | None = None,
        look: Look | None = None,
    ) -> torch.Tensor:
        """Append `ids` to the text; returns the logits [`wanted`, V] after the last. CheckpointError if not finite."""

        def forward() -> torch.Tensor:
            states = self.decoder.forward(torch.tensor(ids), self.cache, observer, wanted == 1, watch, prompt, look)
            return self.decoder.logits(states[-wanted:]).cpu()

        self._torn = True
        logits = self._in_memory(forward)
        self.held.extend(ids)
        self._torn = False
        if not is_finite(logits):
            read = None if self._encoded is None else torch.tensor(self._encoded)
            raise not_finite(self.decoder.first_not_finite(torch.tensor(self.held[-CHUNK:]), read), self.decoder.dtype)
        return logits

    def _in_memory(self, work: Callable[[], _T], again: bool = True) -> _T:
        """What `work` gives. Where the device has no memory left for it, it is done by what `fall_back` gives, once
        that has read what the text was so far (unless it is not to be read `again`)."""
        fallen = False
        while True:
            try:
                if fallen and again:
                    self._read_again()
                return work()
            except RuntimeError as error:
                if self.fall_back is None or not ran_out(error):
                    raise
            self.decoder, self.cache = self.fall_back()  # outside: an error's frames hold what they computed with
            self.prefixes = self._slot = None  # its bits are another decoder's from here on
            fallen = True

    def _read_again(self) -> None:
        self.cache.rewind(0)
        if self._encoded is not None:
            self.decoder.read(torch.tensor(self._encoded), self.cache)
        if self.held:
            self.decoder.forward(torch.tensor(self.held), self.cache, last_only=True)

    def _forget(self, count: int) -> None:
        """The last tokens were not to come."""
        if count:
            del self.held[-count:]
            kept = self.cache.rewind(len(self.held))
            assert kept == len(self.held), "a window never moves past what a step began with"

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Keep what cache and prompt share, at most all but the last id, whose logits are needed."""
        shared = 0
        for held, wanted in zip(self.held, prompt[:-1], strict=False):
            if held != wanted:
                break
            shared += 1
        kept = self.cache.rewind(0 if self._torn else shared)
        del self.held[kept:]
        return kept


def _further(look: Look, begin: int, start: int, states: torch.Tensor) -> None:
    """Let `look` count from the beginning of the text."""
    look(begin + start, states)
