"""One answer: prompt ids in, pieces of text out, with every rule that ends it. Where token ids meet text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from moecli.engine.block import RoutingObserver
from moecli.engine.constraint import Constraint
from moecli.engine.decoder import Look
from moecli.engine.generate import Session, Timing
from moecli.engine.sampling import Sampler, Sampling, ScoringSampler, TokenScore, score
from moecli.planning.memory import scored_at_once
from moecli.store.progress import Progress, silent
from moecli.text.answers import PLAIN, AnswerStyle
from moecli.text.spans import SpanStream
from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "interrupt"]
_STOP: FinishReason = "stop"
_LENGTH: FinishReason = "length"


@dataclass(frozen=True, slots=True)
class Request:
    """What one answer may be. `end_ids` end it and are not part of it; so do the strings in `stops`."""

    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    stops: Sequence[str] = ()
    watch: Progress = silent  # of the prompt's tokens
    continues: bool = False  # the answer goes on in the prompt's own text: a space before its first word counts
    fills: bool = False  # the answer is what is missing in the prompt
    style: AnswerStyle = PLAIN
    constraint: Constraint | None = None  # what the answer has to be
    top_logprobs: int | None = None  # alternatives that are scored beside each token; None: no token is
    echo: bool = False  # the prompt's tokens are scored, too

    def sampler(self, answer: Answer) -> Sampler:
        """What chooses the tokens of `answer`, and scores them there if they are to be."""
        if self.top_logprobs is None:
            return Sampler(self.sampling, self.seed, self.constraint)
        return ScoringSampler(self.sampling, self.seed, self.top_logprobs, answer.scores, self.constraint)

    @property
    def keeps_space(self) -> bool:
        """Whether a space before the first word is shown: where the text goes on, or a grammar has counted it."""
        return self.continues or self.constraint is not None


@dataclass(slots=True)
class Answer:
    """What has been said so far, and what it cost; complete when the pieces are."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "interrupt"  # until it ends by itself
    timing: Timing = field(default_factory=Timing)
    prompt: str = ""  # what it answers
    style: AnswerStyle = PLAIN  # how reasoning is told apart in its text
    scores: list[TokenScore] = field(default_factory=list)  # of `token_ids`, where they are wanted; perhaps of one more
    prompt_ids: Sequence[int] = ()
    prompt_scores: list[TokenScore] = field(default_factory=list)  # of all but the first, where they are wanted


class Writer:
    """Makes text of one answer's tokens, with every rule that ends it; keeps `answer` up to date."""

    def __init__(self, tokenizer: Tokenizer, request: Request, answer: Answer) -> None:
        self._request, self._answer = request, answer
        self._stream = (
            SpanStream(tokenizer, request.prompt, request.stops)
            if request.fills
            else TextStream(
                tokenizer, request.stops, request.prompt if request.keeps_space else (), marks=request.style.marks
            )
        )

    def add(self, token: int) -> str | None:
        """What can be printed now that this token is known; None if it ends the answer and is no part of it."""
        if token in self._request.end_ids:
            return None
        self._answer.token_ids.append(token)
        piece = self._stream.push(token)
        self._answer.text += piece
        return piece

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come, or the answer is all that its grammar allows."""
        rule = self._request.constraint
        return self._stream.stopped or (rule is not None and rule.length == len(self._answer.token_ids))

    def end(self, reason: FinishReason) -> str:
        """What was held back, now that nothing more comes; `reason` unless a stop text says why."""
        rest = self._stream.finish()
        self._answer.text += rest
        self._answer.finish_reason = "stop" if self._stream.stopped else reason
        return rest


def pieces(
    session: Session, tokenizer: Tokenizer, request: Request, answer: Answer, observer: RoutingObserver | None = None
) -> Iterator[str]:
    """Yield printable text as it is generated, and keep `answer` up to date."""
    writer, reason = Writer(tokenizer, request, answer), _LENGTH
    answer.prompt_ids = request.prompt
    look = _scorer(session, request, answer) if request.echo else None
    for token in session.generate(
        request.prompt, request.sampler(answer), request.max_tokens, answer.timing, observer, request.watch, look
    ):
        piece = writer.add(token)
        if piece:
            yield piece
        if piece is None or writer.stopped:
            reason = _STOP
            break
    if rest := writer.end(reason):
        yield rest


def _scorer(session: Session, request: Request, answer: Answer) -> Look:
    """Puts the scores of the prompt's tokens into the answer while it is read, by what came before each."""

    def look(start: int, states: Tensor) -> None:
        decoder, targets = session.decoder, request.prompt[start + 1 : start + 1 + len(states)]
        del answer.prompt_scores[start:]  # read again after a device had no memory for it
        for part in states[: len(targets)].split(scored_at_once(decoder.spec)):
            first = len(answer.prompt_scores) - start
            answer.prompt_scores += [
                score(row, token, request.top_logprobs or 0)
                for row, token in zip(decoder.logits(part).cpu(), targets[first:], strict=False)
            ]

    return look
