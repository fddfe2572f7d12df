"""One answer: prompt ids in, pieces of text out, with every rule that ends it. Where token ids meet text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moecli.engine.block import RoutingObserver
from moecli.engine.constraint import Constraint
from moecli.engine.generate import Session, Timing
from moecli.engine.sampling import Sampler, Sampling, ScoringSampler, TokenScore
from moecli.store.progress import Progress, silent
from moecli.text.answers import PLAIN, AnswerStyle
from moecli.text.spans import SpanStream
from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "interrupt"]


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


def pieces(
    session: Session, tokenizer: Tokenizer, request: Request, answer: Answer, observer: RoutingObserver | None = None
) -> Iterator[str]:
    """Yield printable text as it is generated, and keep `answer` up to date."""
    stream = (
        SpanStream(tokenizer, request.prompt, request.stops)
        if request.fills
        else TextStream(
            tokenizer, request.stops, request.prompt if request.keeps_space else (), marks=request.style.marks
        )
    )
    rule = request.constraint
    sampler = (
        Sampler(request.sampling, request.seed, rule)
        if request.top_logprobs is None
        else ScoringSampler(request.sampling, request.seed, request.top_logprobs, answer.scores, rule)
    )
    reason: FinishReason = "length"
    for token in session.generate(request.prompt, sampler, request.max_tokens, answer.timing, observer, request.watch):
        if token in request.end_ids:
            reason = "stop"
            break
        answer.token_ids.append(token)
        if piece := stream.push(token):
            answer.text += piece
            yield piece
        if stream.stopped or (rule is not None and rule.length == len(answer.token_ids)):
            reason = "stop"
            break
    if rest := stream.finish():
        answer.text += rest
        yield rest
    answer.finish_reason = "stop" if stream.stopped else reason
