"""The nonlinearities of feed-forward blocks."""

from __future__ import annotations

import triton.language as tl

from moecli.kernels.gpu.functions import device_function
from moecli.model.spec import Activation

NUMBERS = {
    Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.RELU: 3, Activation.RELU_SQUARED: 4,
}  # fmt: skip


@device_function
def activate(x, KIND: tl.constexpr):
    """The nonlinearity of float32 numbers, by its place in NUMBERS; what is no number stays none."""
    if KIND == 0:
        return x / (1 + tl.exp(-x))
    elif KIND == 1:
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == 2:
        return x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif KIND == 3:
        return tl.where(x < 0, 0.0, x)
    else:
        return tl.where(x < 0, 0.0, x * x)
