"""transformers, which the tests compare with: loaded by those that ask it, not by whoever collects them."""

from __future__ import annotations

from typing import Any

import pytest


def transformers() -> Any:
    """The package, without its talk. Skips the test where it cannot be installed: under Python 3.10."""
    package = pytest.importorskip("transformers")
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    return package
