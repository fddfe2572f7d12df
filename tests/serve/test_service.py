"""What requests say, and what the engine is told of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress

import pytest

from moecli.engine.constraint import constrain
from moecli.engine.loaded import LoadOptions, open_for_run
from moecli.engine.sampling import Sampling
from moecli.errors import MoecliError
from moecli.library.resolve import resolve
from moecli.serve.engine import Engine, EngineOptions
from moecli.serve.http import Refused, explained, status_of, told
from moecli.serve.parts import Part, text_of
from moecli.serve.reply import AnswerEvent, Ended, Event, Job, Piece, Reply
from moecli.serve.service import keep_alive_seconds
from moecli.store.progress import silent
from moecli.text.grammar import GrammarError, of_regex


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("5m", 300), ("1h30m", 5400), ("90", 90), (90, 90), (0, 0), ("0", 0), ("1.5s", 1.5), ("250ms", 0.25),
        (-1, math.inf), ("-1", math.inf), ("-5m", math.inf),
    ],
)  # fmt: skip
def test_keep_alive_is_a_duration_as_ollama_writes_it(said: str | float, seconds: float) -> None:
    assert keep_alive_seconds(said) == seconds


@pytest.mark.parametrize("said", ["", "soon", "5 minutes", "m5", "1d", "nan", "inf", "..s"])
def test_what_is_no_duration(said: str) -> None:
    with pytest.raises(Refused, match="is no duration"):
        keep_alive_seconds(said)


def test_a_content_is_a_text_or_parts_of_one() -> None:
    assert text_of(None) == "" and text_of("a") == "a"
    assert text_of([Part(type="text", text="a"), Part(type="text", text="b")]) == "a\nb"
    with pytest.raises(Refused, match="parts of type 'image_url' are not supported"):
        text_of([Part(type="image_url")])


def test_each_api_is_told_of_failures_in_its_own_form() -> None:
    error = Refused(404, "no such model", "these are: tiny")
    assert (status_of(error), explained(error)) == (404, "no such model: these are: tiny")
    assert told("/api/chat", 404, "gone") == {"error": "gone"}
    assert told("/v1/messages", 503, "full")["error"] == {"type": "overloaded_error", "message": "full"}
    assert told("/v1/completions", 404, "gone")["error"]["code"] == "model_not_found"


@contextmanager
def engine() -> Iterator[Engine]:
    """An engine of two texts in a thread of its own."""
    options = EngineOptions(LoadOptions(threads=1, context=256), 2, 8, 60)
    made = Engine(options, lambda name: nullcontext(silent))
    with ThreadPoolExecutor(1) as own:
        running = own.submit(made.run)
        try:
            yield made
        finally:
            made.end()
        running.result(60)


async def events(reply: Reply) -> list[AnswerEvent]:
    await reply.started()
    return [event async for event in reply]


def test_a_client_that_leaves_frees_its_place_before_the_next_token() -> None:
    """The one who leaves when its third text comes gets no fourth, and the other one all of its answer."""
    ref = resolve("tiny")

    async def ask(engine: Engine) -> tuple[int, AnswerEvent]:
        leaver, stayer = (
            engine.submit(Job(ref, [5, 6, 7 + number], Sampling(), 0, 40 + number)) for number in range(2)
        )
        shown, put = 0, leaver.put

        def leave(event: Event | MoecliError) -> None:
            nonlocal shown
            shown += isinstance(event, Piece)
            if shown == 3:
                leaver.abandon()
            put(event)

        leaver.put = leave  # type: ignore[method-assign]
        ended = (await events(stayer))[-1]
        return shown, ended

    with engine() as running:
        shown, ended = asyncio.run(ask(running))
    assert shown == 3 and isinstance(ended, Ended) and ended.tokens == 41
    assert (running.metrics.abandoned, running.running) == (1, 0)


def test_an_answer_whose_grammar_breaks_fails_alone() -> None:
    ref = resolve("tiny")
    opened = open_for_run(ref, LoadOptions(threads=1, context=256))
    broken = constrain(opened, of_regex("[ab]+"))
    with suppress(GrammarError):
        broken.accept(opened.tokenizer.encode("c", special=False)[-1])

    async def ask(engine: Engine) -> list[AnswerEvent]:
        other = engine.submit(Job(ref, [5, 6, 7], Sampling(), 0, 9))
        failed = engine.submit(Job(ref, [5, 6, 8], Sampling(), 0, 9, constraint=broken))
        with pytest.raises(GrammarError, match="cannot go on as the grammar wants it") as refused:
            await events(failed)
        assert status_of(refused.value) == 400
        return await events(other)

    with engine() as running:
        ended = asyncio.run(ask(running))[-1]
    assert isinstance(ended, Ended) and ended.tokens == 9 and running.metrics.failures == 1
