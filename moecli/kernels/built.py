"""Whether the native library is there and wanted, for those that must not import torch to know."""

from __future__ import annotations

from pathlib import Path

from moecli import settings

FILE = Path(__file__).with_name("_native.so")


def expected() -> bool:
    """Whether attention on the CPU will be native: unless the library turns out not to load."""
    return settings.read("MOECLI_KERNEL") in (None, "native") and FILE.exists()
