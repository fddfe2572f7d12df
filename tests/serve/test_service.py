"""What requests say, and what the engine is told of it."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from moecli.engine.loaded import LoadOptions
from moecli.engine.sampling import Sampling
from moecli.library.resolve import resolve
from moecli.serve.engine import Engine, EngineOptions
from moecli.serve.http import Refused, explained, status_of, told
from moecli.serve.parts import Part, text_of
from moecli.serve.reply import Ended, Job, Piece
from moecli.serve.service import keep_alive_seconds
from moecli.store.progress import silent


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


def test_a_client_that_leaves_frees_its_place_before_the_next_token() -> None:
    """The one who leaves when its third text comes gets no fourth, and the other one all of its answer."""
    ref = resolve("tiny")

    async def ask(engine: Engine) -> tuple[int, Ended]:
        leaver, stayer = (
            engine.submit(Job(ref, [5, 6, 7 + number], Sampling(), 0, 40 + number)) for number in range(2)
        )
        shown = 0
        put = leaver.put

        def leave(event: object) -> None:
            nonlocal shown
            shown += isinstance(event, Piece)
            if shown == 3:
                leaver.abandon()
            put(event)  # type: ignore[arg-type]

        leaver.put = leave  # type: ignore[method-assign]
        await stayer.started()
        events = [event async for event in stayer]
        assert isinstance(events[-1], Ended)
        return shown, events[-1]

    options = EngineOptions(LoadOptions(threads=1, context=256), 2, 8, 60)
    engine = Engine(options, lambda name: nullcontext(silent))
    with ThreadPoolExecutor(1) as own:
        running = own.submit(engine.run)
        try:
            shown, ended = asyncio.run(ask(engine))
        finally:
            engine.end()
        running.result(60)
    assert (shown, ended.tokens, engine.metrics.abandoned, engine.running) == (3, 41, 1, 0)
