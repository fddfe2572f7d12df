"""A figure with its standard error: as many decimals as that has a meaning for."""

from __future__ import annotations

import math

from moecli.engine.estimates import Estimate


def shown(of: Estimate, unit: str = "", scale: float = 1.0) -> str:
    """12.35 +/- 0.12: two digits of the error; without one, four of the value."""
    value, error = of.value * scale, None if of.error is None else of.error * scale
    if error is None or not math.isfinite(value) or not error:
        return f"{value:.4g}{unit}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} +/- {error:.{decimals}f}{unit}"
