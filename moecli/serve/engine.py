"""The one thread that owns the model: it loads, reads prompts a piece at a time, and lets all texts grow together.

A turn of its loop reads one piece of the first prompt that waits for that, then takes every text that is read a token
further in one step, so that weights are read once for all of them. A long prompt holds nobody up for longer than a
piece, and no bit of an answer depends on who else is served.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from moecli.engine.finite import is_finite, not_finite
from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.errors import MoecliError
from moecli.kernels.blocking import MAX_TOKENS
from moecli.library.resolve import ModelRef
from moecli.serve.generation import Generation
from moecli.serve.metrics import Metrics
from moecli.serve.models import Identity, OpenSession, ResidentModel, identity
from moecli.serve.reply import Job, Reply, Started
from moecli.serve.residents import Loading, Residents

_LOG = logging.getLogger(__name__)
_MOST_OPENED = 4  # models whose tokenizer and headers stay at hand
T = TypeVar("T")


class Busy(MoecliError):
    """A request for which there is no room now."""


class _Abandoned(Exception):
    """Nobody waits for what is being computed."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How models are loaded, how many texts grow side by side (None: as the model allows), and how many may wait."""

    load: LoadOptions
    texts: int | None
    queue: int
    keep_alive: float  # seconds that a model stays after its last answer
    session: OpenSession | None = None  # of the one model


class Engine:
    """Whoever calls `run` is the engine's thread; every other method may be called from any thread."""

    def __init__(self, options: EngineOptions, loading: Loading) -> None:
        self.options, self.metrics = options, Metrics()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: deque[Reply] = deque()
        self._running: list[Generation] = []
        self.residents = Residents(options.texts, loading, options.session)
        self._opened: OrderedDict[Identity, OpenedModel] = OrderedDict()
        self._lock = threading.Lock()
        self._unstarted = 0  # replies that were submitted and not begun
        self._stopping = self._over = False

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._unstarted

    def submit(self, job: Job) -> Reply:
        """The reply to come; to be called by the event loop that reads it. Busy if too many wait."""
        reply = Reply(job)
        with self._lock:
            if self._stopping:
                raise Busy("the server is about to end", "ask again once it is back")
            if self._unstarted >= self.options.queue:
                raise Busy(f"{self._unstarted} requests wait already", "ask again later, or raise --queue")
            self._unstarted += 1
        self._inbox.put(lambda: self._waiting.append(reply))
        return reply

    def open(self, ref: ModelRef) -> Future[OpenedModel]:
        """A model's tokenizer and headers, read between two steps. MoecliError if they are unfit."""
        return self._call(lambda: self._open(ref))

    def keep(self, ref: ModelRef, seconds: float) -> Future[bool]:
        """Let a model stay so long from now: whether it is loaded."""
        return self._call(lambda: self.residents.keep(ref, seconds))

    def stop(self) -> None:
        """Begin nothing more; answers under way go on. May be called by a signal handler."""
        self._stopping = True
        self._inbox.put(lambda: None)  # wakes it

    def end(self) -> None:
        """Stop after the step under way."""
        self.stop()
        self._over = True
        self._inbox.put(lambda: None)

    def run(self) -> None:
        """Serve until `end`."""
        while not self._over:
            self._receive()
            self._drop_abandoned()
            try:
                self._admit()
                self._read_piece()
                self._step()
            except MoecliError as error:
                self._fail_all(error)
            except Exception as error:  # a bug, or a library's: those who wait are told, the next ones find a new model
                _LOG.exception("the engine failed")
                self._fail_all(MoecliError(f"the engine failed: {type(error).__name__}", "see the server's stderr"))
                self.residents.unload_all()
        self._fail_all(Busy("the server has ended"))
        self.residents.unload_all()

    def _call(self, action: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def act() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action())
                except Exception as error:
                    future.set_exception(error)

        self._inbox.put(act)
        return future

    def _receive(self) -> None:
        """Do what others ask for; with nothing else to do, wait for that, or for a model's time to go."""
        idle = not (self._running or self._waiting or self._over)
        left = self.residents.expire(self._busy() | {identity(reply.job.ref) for reply in self._waiting})
        try:
            if idle:
                self._inbox.get(timeout=None if left > threading.TIMEOUT_MAX else max(0.0, left))()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _busy(self) -> set[Identity]:
        """The models in which texts grow."""
        return {identity(text.model.ref) for text in self._running}

    def _drop_abandoned(self) -> None:
        for text in [each for each in self._running if each.reply.abandoned]:
            self.metrics.abandoned += 1
            self._close(text)
        for reply in [each for each in self._waiting if each.abandoned or self._stopping]:
            self._waiting.remove(reply)
            self._begun()
            self.metrics.abandoned += reply.abandoned
            reply.put(Busy("the server is about to end", "ask again once it is back"))

    def _admit(self) -> None:
        """Begin what waits, in the order of arrival, while there are free caches and room for its model."""
        while self._waiting:
            reply = self._waiting[0]
            try:
                resident, load_s = self._bring(reply)
            except (MoecliError, _Abandoned) as error:
                self._waiting.popleft()
                self._begun()
                self.metrics.failures += 1
                reply.put(error if isinstance(error, MoecliError) else Busy("the server is about to end"))
                continue
            if resident is None:
                return
            if not reply.job.prompt:
                self._waiting.popleft()
                self._begun()
                self._extend(reply)
                reply.put(Started(load_s))
                continue
            found = resident.slots.take(reply.job.prompt)
            if found is None:
                return
            self._waiting.popleft()
            self._begun()
            self._running.append(Generation(reply, resident, *found, load_s))
            reply.put(Started(load_s))

    def _begun(self) -> None:
        with self._lock:
            self._unstarted -= 1

    def _bring(self, reply: Reply) -> tuple[ResidentModel | None, float]:
        """The model of a reply, and the seconds that loading it took; None while those in use leave no room."""
        ref = reply.job.ref
        if (found := self.residents.find(ref)) is not None:
            return found, 0.0
        opened, began = self._open(ref), time.perf_counter()

        def told(done: int, total: int) -> None:
            if self._stopping or reply.abandoned:
                raise _Abandoned

        loaded = self.residents.load(opened, self._busy(), told)
        if loaded is None:
            return None, 0.0
        self.residents.keep(ref, self.options.keep_alive)
        self.metrics.loads += 1
        return loaded, time.perf_counter() - began

    def _open(self, ref: ModelRef) -> OpenedModel:
        key = identity(ref)
        if key not in self._opened:
            opened = open_for_run(ref, replace(self.options.load, dtype=ref.dtype))
            if len(self._opened) == _MOST_OPENED:
                self._opened.popitem(last=False)
            self._opened[key] = opened
        self._opened.move_to_end(key)
        return self._opened[key]

    def _read_piece(self) -> None:
        """A piece of the first prompt that is not read; behind the last one stands its first token."""
        text = next((each for each in self._running if each.reading), None)
        if text is None:
            return
        decoder, slot, piece = text.model.loaded.decoder, text.slot, text.next_piece()

        def watch(done: int, total: int) -> None:
            if self._over or text.reply.abandoned:
                raise _Abandoned

        try:
            if decoder.encoder is not None:
                decoder.read(torch.tensor(piece), slot.cache, watch=watch)
                states = decoder.forward(torch.tensor([text.last]), slot.cache)
            else:
                whole = len(text.reply.job.prompt)
                states = decoder.forward(torch.tensor(piece), slot.cache, last_only=True, watch=watch, prompt=whole)
                text.model.slots.read(slot, piece)
        except _Abandoned:
            slot.clear()  # its layers disagree
            return
        self.metrics.prompt_tokens += len(piece)
        if not text.reading:
            self._accept(text, decoder.logits(states[-1:]).cpu()[0])

    def _step(self) -> None:
        """One more token of every text that is read, those of one model together."""
        grown: dict[int, list[Generation]] = {}
        for text in self._running:
            if not text.reading and text.made:
                grown.setdefault(id(text.model), []).append(text)
        for texts in grown.values():
            for start in range(0, len(texts), MAX_TOKENS):
                some = texts[start : start + MAX_TOKENS]
                for text, logits in zip(some, self._logits(some[0].model, some), strict=True):
                    text.slot.ids.append(text.last)
                    self._accept(text, logits)

    def _logits(self, model: ResidentModel, texts: list[Generation]) -> torch.Tensor:
        """The scores after the newest token of each text [N, V], to the bit as for each alone."""
        decoder = model.loaded.decoder
        ids, caches = torch.tensor([text.last for text in texts]), [text.slot.cache for text in texts]
        self.metrics.steps += 1
        return decoder.next_logits(ids, caches)

    def _accept(self, text: Generation, logits: torch.Tensor) -> None:
        if not is_finite(logits):
            text.reply.put(not_finite("in the logits", text.model.loaded.decoder.dtype))
            self.metrics.failures += 1
            self._close(text)
            return
        try:
            goes_on = text.accept(logits)
        except MoecliError as error:  # its grammar's, and nobody else's
            text.reply.put(error)
            self.metrics.failures += 1
            self._close(text)
            return
        self.metrics.tokens += 1
        if not goes_on:
            self.metrics.answers += 1
            self._close(text)

    def _close(self, text: Generation) -> None:
        """Its cache is free for the next one, and the model's time begins anew."""
        self._running.remove(text)
        text.model.slots.give_back(text.slot)
        self.metrics.cached_tokens += text.cached
        self._extend(text.reply)

    def _extend(self, reply: Reply) -> None:
        asked = reply.job.keep_alive
        self.residents.keep(reply.job.ref, self.options.keep_alive if asked is None else asked)

    def _fail_all(self, error: MoecliError) -> None:
        """Every answer under way fails, and what its cache holds counts no more; those that wait go on waiting."""
        for text in list(self._running):
            text.reply.put(error)
            text.slot.clear()
            self.metrics.failures += 1
            self._close(text)
        if self._over:
            while self._waiting:
                self._waiting.popleft().put(error)
