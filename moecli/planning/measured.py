"""What was measured on this machine, RAM, disk and card: remembered in MOECLI_HOME, and what forecasts begin with."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.errors import CheckpointError, MoecliError, json_object
from moecli.planning.memory import MemoryEstimate
from moecli.planning.rates import Pace, Rates
from moecli.planning.speed import Bandwidths, Sources
from moecli.store import filesystem

_LOG = logging.getLogger(__name__)
_PLACES = ("ram", "disk")


@dataclass(frozen=True, slots=True)
class CardSpeeds:
    """Bytes per second that a card reads and writes of its own memory, and that pinned memory goes up to it and down
    from it."""

    memory: float
    up: float
    down: float


@dataclass(frozen=True, slots=True)
class Card:
    """A card as it was found last. `free`: bytes that a run may take, its context included.

    `kernels`: whether moecli's own run there. `rates`: of the experts that runs have measured beside it, see `Card.of`.
    """

    name: str
    free: int
    kernels: bool
    speeds: CardSpeeds
    rates: Mapping[str, Rates] = field(default_factory=dict)

    def of(self, memory: MemoryEstimate) -> Rates | None:
        """The rates of experts in this format and of this size; None where no run has measured them."""
        return self.rates.get(_key(memory))

    def knowing(self, memory: MemoryEstimate, rates: Rates) -> Card:
        """The same card, with what a run has measured of such experts."""
        return replace(self, rates={**self.rates, _key(memory): rates})


def _key(memory: MemoryEstimate) -> str:
    return f"{memory.dtype}, {memory.bytes_per_expert} bytes"


def recall() -> Bandwidths:
    """What was measured here, else what is typical."""
    known = _read()
    found, sources = Bandwidths(), Sources()
    if ram := known.get("ram"):
        found, sources = replace(found, ram=ram), replace(sources, ram="measured")
    if disk := known.get("disk"):
        found, sources = replace(found, disk=disk), replace(sources, disk="measured")
    return with_card(replace(found, sources=sources), _card(known))


def with_card(bandwidths: Bandwidths, card: Card | None) -> Bandwidths:
    """The same machine with this card, if it is one."""
    if card is None:
        return bandwidths
    sources = replace(bandwidths.sources, device="measured", link="measured")
    return replace(bandwidths, device=card.speeds.memory, link=card.speeds.up, kernels=card.kernels, sources=sources)


def recall_card() -> Card | None:
    """The card that was used last on this machine."""
    return _card(_read())


def remember(*, ram: float | None = None, disk: float | None = None, card: Card | None = None) -> None:
    """Keep what was measured now, in bytes per second; None leaves what is known. Where nothing can be written, nothing
    is kept."""
    new: dict[str, Any] = {place: speed for place, speed in zip(_PLACES, (ram, disk), strict=True) if _is_speed(speed)}
    if card is not None:
        new["card"] = asdict(card)
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


def _read() -> dict[str, Any]:
    """Of this machine: a home folder may be shared by several."""
    with suppress(OSError, MoecliError):
        found: dict[str, Any] = json_object(_file().read_bytes(), CheckpointError)
        if found.get("machine") == platform.node():
            kept: dict[str, Any] = {place: float(found[place]) for place in _PLACES if _is_speed(found.get(place))}
            return kept | ({"card": found["card"]} if _card(found) else {})
    return {}


def _card(known: Mapping[str, Any]) -> Card | None:
    """None where there is none, or its entry is damaged."""
    entry: Any = known.get("card")
    with suppress(KeyError, TypeError, ValueError):
        speeds = CardSpeeds(**{name: speed for name, speed in dict(entry["speeds"]).items() if _is_speed(speed)})
        name, free, kernels = entry["name"], entry["free"], entry["kernels"]
        if type(name) is str and type(free) is int and type(kernels) is bool and free > 0:
            return Card(name, free, kernels, speeds, _rates(entry.get("rates")))
    return None


def _rates(known: Any) -> dict[str, Rates]:
    """Those that are sound."""
    found = {}
    for key, entry in known.items() if isinstance(known, dict) else ():
        with suppress(KeyError, TypeError, ValueError):
            paces = [Pace(**dict(entry[side])) for side in ("host", "device")]
            sound = all(_is_speed(pace.bytes_per_s) and _is_speed(1 + pace.further) for pace in paces)
            if sound and _is_speed(entry["copy"]):
                found[key] = Rates(entry["copy"], *paces)
    return found


def _is_speed(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
