"""How functions that kernels call are made: compiled into them, or left plain where kernels are interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

from moecli.kernels.gpu import interpreted


def device_function(function: Callable[..., Any]) -> Any:
    """`triton.jit`, but where Triton interprets: there a plain function does the same a hundred times faster."""
    return function if interpreted() else triton.jit(function)
