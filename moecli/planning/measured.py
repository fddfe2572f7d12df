"""The bandwidths that were measured on this machine: remembered in MOECLI_HOME, and what forecasts begin with."""

from __future__ import annotations

import json
import logging
import math
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.errors import CheckpointError, MoecliError, json_object
from moecli.planning.speed import TYPICAL_DISK, TYPICAL_RAM, Bandwidths
from moecli.store import filesystem

_LOG = logging.getLogger(__name__)
_PLACES = ("ram", "disk")


def recall() -> Bandwidths:
    """What was measured here, else what is typical. "measured" is the evidence where memory and disk both were."""
    known = _read()
    ram, disk = (known.get(place) for place in _PLACES)
    both = ram is not None and disk is not None
    return Bandwidths(ram or TYPICAL_RAM, disk or TYPICAL_DISK, evidence="measured" if both else "typical")


def remember(*, ram: float | None = None, disk: float | None = None) -> None:
    """Keep bytes per second that were measured now; None leaves what is known. Where nothing can be written, nothing is
    kept."""
    new = {place: speed for place, speed in zip(_PLACES, (ram, disk), strict=True) if _is_speed(speed)}
    if not new:
        return
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": platform.node(), **_read(), **new})
        filesystem.write(file, [f"{text}\n".encode()])
    except (OSError, MoecliError) as error:
        _LOG.info("measured bandwidths are not kept: %s", error)


def _file() -> Path:
    return settings.home() / "bandwidths.json"


def _read() -> dict[str, float]:
    """Of this machine: a home folder may be shared by several."""
    with suppress(OSError, MoecliError):
        found: dict[str, Any] = json_object(_file().read_bytes(), CheckpointError)
        if found.get("machine") == platform.node():
            return {place: float(found[place]) for place in _PLACES if _is_speed(found.get(place))}
    return {}


def _is_speed(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
