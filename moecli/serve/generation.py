"""One answer in the making: it chooses tokens from logits, makes text of them, and knows when it is over."""

from __future__ import annotations

import time
import uuid

from torch import Tensor

from moecli.engine.prefixes import Slot
from moecli.engine.sampling import Sampler, TokenScore, score
from moecli.serve.models import ResidentModel
from moecli.serve.reply import Called, Ended, Piece, Reply, Scored
from moecli.text.answers import parts_of
from moecli.text.spans import SpanStream
from moecli.text.stream import TextStream
from moecli.text.tool_calls import ToolCall


class Generation:
    """A prompt that is read piece by piece, then a token a step."""

    def __init__(self, reply: Reply, model: ResidentModel, slot: Slot, ends: list[int], load_s: float) -> None:
        """`slot`: one of the model's; `ends`: where the pieces of the prompt end that it does not hold."""
        self.reply, self.model, self.slot = reply, model, slot
        opened = model.loaded.opened
        job, self._tokenizer = reply.job, opened.tokenizer
        self._end_ids, self._encoder = opened.end_ids, bool(opened.spec.encoder)
        self._ends, self._cached, self._load_s = ends, len(slot.ids), load_s
        capacity = slot.cache.capacity
        most = capacity if self._encoder else capacity - len(job.prompt) + 1
        self._limit = most if job.max_tokens is None else min(most, job.max_tokens)
        self._rule = job.constraint
        self._sampler = Sampler(job.sampling, job.seed, self._rule)
        self._text: list[int] = [opened.spec.start_id] if self._encoder else list(job.prompt)
        self._stream = (
            SpanStream(self._tokenizer, job.prompt, job.stops)
            if self._encoder
            else TextStream(
                self._tokenizer, job.stops, job.prompt if job.continues or self._rule else (), marks=job.style.marks
            )
        )
        self._parts = parts_of(job.style)
        self._scored: list[Scored] = []
        self._made = 0
        self._began = time.perf_counter()
        self._prompt_s = 0.0

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be read."""
        return bool(self._ends)

    @property
    def last(self) -> int:
        """The newest token, which no cache holds."""
        return self._text[-1]

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were read before."""
        return self._cached

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return self._made

    def next_piece(self) -> list[int]:
        """What of the prompt is read next."""
        return list(self.reply.job.prompt[len(self.slot.ids) : self._ends.pop(0)])

    def accept(self, logits: Tensor) -> bool:
        """Choose the next token from logits [V], float32 on the CPU; False once the answer is over."""
        if not self._made:
            self._prompt_s = time.perf_counter() - self._began
        token = self._sampler.pick(logits, self._text)
        self._made += 1
        self._text.append(token)
        if token in self._end_ids:
            return self._end(stopped=True)
        if self.reply.job.top_logprobs is not None:
            self._scored.append(self._named(score(logits, token, self.reply.job.top_logprobs)))
        self._show(self._stream.push(token))
        whole = self._stream.stopped or (self._rule is not None and self._rule.length == self._made)
        if whole or self._made == self._limit:
            return self._end(whole)
        return True

    def _end(self, stopped: bool) -> bool:
        self._show(self._stream.finish(), last=True)
        spent = time.perf_counter() - self._began
        self.reply.put(
            Ended(
                "stop" if stopped or self._stream.stopped else "length",
                self._stream.stop,
                len(self.reply.job.prompt),
                self._cached,
                self._made,
                self._load_s,
                self._prompt_s,
                spent - self._prompt_s,
            )
        )
        return False

    def _show(self, text: str, last: bool = False) -> None:
        parts = self._parts.push(text) if text else []
        for part in [*parts, *(self._parts.finish() if last else ())]:
            if isinstance(part, ToolCall):
                self.reply.put(Called(uuid.uuid4().hex[:9], part))  # as long as Mistral's templates want it
            else:
                self.reply.put(Piece(part.text, tuple(self._scored), part.reasoning))
                self._scored.clear()
        if last and self._scored:
            self.reply.put(Piece("", tuple(self._scored)))

    def _named(self, score: TokenScore) -> Scored:
        top = tuple((self._name(token), logprob) for token, logprob in score.top)
        return Scored(self._name(score.token_id), score.logprob, top)

    def _name(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special=False)
