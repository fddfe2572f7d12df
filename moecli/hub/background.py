"""Work in threads that nobody waits for at the end of the program, so that Ctrl-C ends every wait at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(action: Callable[[], Result]) -> Future[Result]:
    """Begin it in a thread of its own."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # of whatever kind, it belongs to the one who waits
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def each_in_background(action: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """The results in the order of the items, at most `at_once` under way; who stops listening starts no more."""
    rest = iter(items)
    waiting: deque[Future[Result]] = deque()
    while True:
        while len(waiting) < at_once and (item := next(rest, None)) is not None:
            waiting.append(in_background(partial(action, item)))
        if not waiting:
            return
        yield waiting.popleft().result()


def within(seconds: float, action: Callable[[], Result], discard: Callable[[Result], object]) -> Result | None:
    """The result if there is one in time, else None; one that comes later is discarded."""
    future = in_background(action)
    if wait([future], seconds).done:
        return future.result()

    def late(future: Future[Result]) -> None:
        if future.exception() is None:
            discard(future.result())

    future.add_done_callback(late)
    return None
