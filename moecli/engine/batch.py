"""Many prompts that are answered together: read together, then a token of each a step; each answer is as if alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from moecli.engine.answer import Answer, Request, Writer
from moecli.engine.cache import Cache
from moecli.engine.decoder import Decoder
from moecli.engine.finite import is_finite, not_finite
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.sampling import Sampler
from moecli.errors import CheckpointError, NotEnoughMemory
from moecli.kernels.blocking import BLOCK, MAX_TOKENS
from moecli.planning.placement import Plan
from moecli.store.progress import Progress

_RESIDENT = 4 * MAX_TOKENS  # texts side by side where no expert is read again: more cost memory and save nothing
Watch = Callable[[int, int, int], None]  # answers that are over, tokens of all prompts and answers done, of at most


def plan_for(opened: OpenedModel, needs: Sequence[int]) -> Plan:
    """The plan for texts of so many tokens each, as many side by side as bring most tokens a second.

    Its caches together have room for `memory.batch` texts of `memory.context` tokens, the longest. NotEnoughMemory.
    """
    longest = max(needs)
    best = alone = opened.plan(longest)
    count = min(len(needs), -(-sum(needs) // longest))
    count = min(count, _RESIDENT) if alone.fits else count
    while count > 1:
        with suppress(NotEnoughMemory):
            plan = opened.plan(longest, count, None if opened.spec.encoder else min(BLOCK, count * longest))
            same = plan.memory.dtype == alone.memory.dtype and plan.fits >= alone.fits
            if same and _tokens_per_byte(opened, plan) > _tokens_per_byte(opened, best):
                best = plan
        count //= 2
    return best


def _tokens_per_byte(opened: OpenedModel, plan: Plan) -> float:
    """Tokens that a step brings for each byte that it reads: dense weights once, and what its texts' experts take."""
    texts, memory = plan.memory.batch, plan.memory
    if not memory.expert_count:
        return texts
    router = opened.spec.mixtures[0][1].router
    touched = 1 - (1 - router.top_k / router.experts) ** texts
    if plan.fits:
        return texts
    return texts / (memory.dense.bytes + touched * plan.disk.expert_bytes)


@dataclass(slots=True)
class _Text:
    """A prompt, and its answer so far."""

    number: int
    request: Request
    cache: Cache
    writer: Writer
    answer: Answer
    limit: int  # tokens of the answer
    sampler: Sampler
    ids: list[int]  # the newest is in no cache
    made: int = 0


class Batch:
    """Answers requests with one model, whose plan says how many go side by side."""

    def __init__(self, loaded: LoadedModel, watch: Watch) -> None:
        self._loaded, self._watch = loaded, watch
        memory = loaded.plan.memory
        self._room = memory.batch * memory.context  # tokens of all caches
        self._at_once = memory.block
        self._running: list[_Text] = []
        self._over = self._done = self._most = 0

    def answer(self, requests: Sequence[tuple[int, Request]]) -> Iterator[tuple[int, Answer | CheckpointError]]:
        """Yield numbers and answers as they are over. An answer that fails is its error: weights that are no numbers.

        New ones begin where half of the room is free: they are read together.
        """
        waiting = deque(requests)
        self._most = sum(len(request.prompt) + self._limit(request) for _, request in requests)
        while waiting or self._running:
            if waiting and 2 * self._taken <= self._room:
                yield from self._admit(waiting)
            if self._running:
                logits = self._decoder.next_logits(
                    torch.tensor([text.ids[-1] for text in self._running]), [text.cache for text in self._running]
                )
                yield from self._accept(list(self._running), logits)

    @property
    def _decoder(self) -> Decoder:
        return self._loaded.decoder

    @property
    def _taken(self) -> int:
        return sum(text.cache.capacity for text in self._running)

    def _limit(self, request: Request) -> int:
        """Tokens of its answer, at most."""
        context = self._loaded.plan.memory.context
        return min(request.max_tokens, context if self._decoder.encoder else context - len(request.prompt) + 1)

    def _need(self, request: Request) -> int:
        """Tokens that its cache holds."""
        limit = self._limit(request)
        return max(len(request.prompt), limit) if self._decoder.encoder else len(request.prompt) + limit - 1

    def _admit(self, waiting: deque[tuple[int, Request]]) -> Iterator[tuple[int, Answer | CheckpointError]]:
        """Read as many of those that wait as there is room for."""
        texts: list[_Text] = []
        while waiting:
            number, request = waiting[0]
            need = self._need(request)
            if self._taken + need > self._room and self._running:
                break
            waiting.popleft()
            cache, answer = self._decoder.new_cache(need, self._loaded.plan.memory.chunk), Answer()
            writer, sampler = Writer(self._loaded.opened.tokenizer, request, answer), request.sampler(answer)
            text = _Text(number, request, cache, writer, answer, self._limit(request), sampler, list(request.prompt))
            texts.append(text)
            self._running.append(text)
        for group in self._groups(texts):
            yield from self._accept(group, self._read(group))

    def _groups(self, texts: Sequence[_Text]) -> Iterator[list[_Text]]:
        """Those whose prompts are read at once: in a decode step, side by side as far as a pass goes, or alone."""
        decoder = self._decoder
        few = [text for text in texts if len(text.request.prompt) <= MAX_TOKENS]
        together = decoder.encoder is None and decoder.reads_alike and not decoder.rotates_by_length
        if few and decoder.encoder is None and decoder.can_draft:
            yield few
        else:
            yield from ([text] for text in few)
        group, tokens = list[_Text](), 0
        for text in texts:
            length = len(text.request.prompt)
            if length <= MAX_TOKENS:
                continue
            if group and (tokens + length > self._at_once or not together):
                yield group
                group, tokens = [], 0
            group.append(text)
            tokens += length
        if group:
            yield group

    def _read(self, group: Sequence[_Text]) -> torch.Tensor:
        """Read the prompts of a group: the logits [N, V] after each."""
        decoder, prompts = self._decoder, [torch.tensor(text.request.prompt) for text in group]
        caches = [text.cache for text in group]
        for text in group:
            text.answer.timing.prompt_tokens = len(text.request.prompt)
        if len(group) > 1 and len(prompts[0]) <= MAX_TOKENS:
            logits = self._step_through(prompts, caches)
        elif len(group) > 1:
            logits = decoder.logits(decoder.read_texts(prompts, caches, self._told(sum(map(len, prompts))))).cpu()
        elif decoder.encoder is not None:
            group[0].answer.timing.dropped = decoder.read(prompts[0], caches[0])
            group[0].ids = [decoder.spec.start_id]
            logits = decoder.next_logits(torch.tensor(group[0].ids), caches)
        else:
            told = self._told(len(prompts[0]))
            logits = decoder.logits(decoder.forward(prompts[0], caches[0], last_only=True, watch=told)).cpu()
        self._done += sum(map(len, prompts))
        return logits

    def _told(self, tokens: int) -> Progress:
        """How far so many tokens are that are read now."""
        return lambda done, total: self._watch(self._over, self._done + tokens * done // total, self._most)

    def _step_through(self, prompts: Sequence[torch.Tensor], caches: Sequence[Cache]) -> torch.Tensor:
        """Short prompts, which are decode steps, a token of each at a time."""
        found: dict[int, torch.Tensor] = {}
        for place in range(max(map(len, prompts))):
            some = [number for number, prompt in enumerate(prompts) if len(prompt) > place]
            ids = torch.stack([prompts[number][place] for number in some])
            logits = self._decoder.next_logits(ids, [caches[number] for number in some])
            found |= dict(zip(some, logits, strict=True))
        return torch.stack([found[number] for number in range(len(prompts))])

    def _accept(self, texts: Sequence[_Text], logits: torch.Tensor) -> Iterator[tuple[int, Answer | CheckpointError]]:
        """Choose the next token of each text; yield those that are over, whose places are free."""
        over: list[tuple[int, Answer | CheckpointError]] = []
        for text, scores in zip(texts, logits, strict=True):
            ended = self._choose(text, scores)
            if ended is not None:
                self._running.remove(text)
                self._over += 1
                self._most -= text.limit - text.made
                over.append((text.number, ended))
        self._watch(self._over, self._done, self._most)
        yield from over

    def _choose(self, text: _Text, logits: torch.Tensor) -> Answer | CheckpointError | None:
        """What ends the text; None while it goes on."""
        if not is_finite(logits):
            return not_finite("in the logits", self._decoder.dtype)
        token = text.sampler.pick(logits, text.ids)
        text.made, self._done = text.made + 1, self._done + 1
        text.ids.append(token)
        piece = text.writer.add(token)
        if piece is None or text.writer.stopped:
            text.writer.end("stop")
        elif text.made == text.limit:
            text.writer.end("length")
        else:
            return None
        return text.answer
