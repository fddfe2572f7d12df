"""bitsandbytes, imported late and kept away from the network."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.Lock()


def load() -> ModuleType:
    """The bitsandbytes module. Its first import takes seconds.

    On a processor with AVX-512 BF16 that import asks the `kernels` package, if it is installed, to fetch a product
    from the Hub, and logs a warning when it cannot. So `kernels` is hidden meanwhile: bitsandbytes then uses its own.
    """
    with _lock:
        if "bitsandbytes" in sys.modules:
            return sys.modules["bitsandbytes"]
        with _hidden("kernels"), _quiet(logging.getLogger("bitsandbytes")):
            return importlib.import_module("bitsandbytes")


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """A package that cannot be imported, installed or not."""
    inside = {each: sys.modules.pop(each) for each in list(sys.modules) if each.split(".")[0] == name}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(inside)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
