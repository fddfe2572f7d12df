"""Where experts can be beside a GPU, and decoders that have them there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from moecli.engine.decoder import Decoder
from moecli.engine.load import Model
from moecli.planning.memory import estimate_memory
from moecli.planning.rates import Pace, Rates
from tests.support.stores import split_plan

_QUICK, _SLOW = Pace(1e15, 0.0), Pace(1.0, 1.0)
RATES = {
    "copied": Rates(1e15, _SLOW, _QUICK),
    "stay": Rates(1.0, _QUICK, _SLOW),
    "both": Rates(1e9, Pace(1e9, 0.0), _QUICK),
    "measured": None,
}


def decoders(
    model: Model, dtype: str, card: torch.device, rates: Iterable[str] = tuple(RATES), positions: int = 256
) -> Iterator[tuple[str, Decoder]]:
    """All experts on the card; half of them, the others in RAM; a third on it, a third in RAM, a third on disk.

    `rates` are names of RATES: where experts are computed that the card does not hold.
    """
    count = estimate_memory(model.spec, dtype, positions).expert_count
    splits = {"all": (count, None), "half": (count // 2, None)}
    if model.streams:
        splits["disk"] = (count // 3, count // 3)
    for place, (on_device, in_ram) in splits.items():
        plan = split_plan(model.spec, dtype, on_device, in_ram, positions)
        assert plan.device.experts == on_device and (plan.disk.experts > 0) == (place == "disk")
        for name in rates if place != "all" else ("measured",):
            yield f"{place}, {name}", model.decoder(plan, device=card, rates=RATES[name])
