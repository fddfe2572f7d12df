"""What mlx and compressed-tensors themselves make of quantised matrices, stored: no test needs either.

`python -m tests.support.library_goldens` writes `tests/data/encodings.safetensors` anew, where both can be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.support import encodings

FILE = Path(__file__).parents[1] / "data" / "encodings.safetensors"
_GROUPS = {2: 32, 3: 64, 4: 128, 5: 32, 6: 64, 8: 128}

# By case: how the tests encode a matrix, and the quantization_config of such a checkpoint.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"mlx {bits}": (encodings.mlx(bits, group), {"group_size": group}) for bits, group in _GROUPS.items()},
    "mlx mxfp4": (encodings.mlx_float4, {"group_size": 32, "mode": "mxfp4"}),
    "compressed-tensors nvfp4": (
        encodings.float4(16, ".weight_global_scale"),
        encodings.compressed(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True),
    ),
    "compressed-tensors mxfp4": (
        encodings.float4(32),
        encodings.compressed(num_bits=4, type="float", strategy="group", group_size=32, symmetric=True),
    ),
    **{
        f"compressed-tensors int{bits}": (
            encodings.pack_quantized(group, True, bits=bits),
            encodings.compressed(
                num_bits=bits, type="int", strategy="group" if group else "channel", group_size=group or None,
                symmetric=False,
            ),
        )
        for bits, group in ((2, 16), (4, 0), (8, 64))
    },
}  # fmt: skip


def write() -> None:
    """Each case's tensors under "case/ending", and the library's numbers under "case"."""
    found: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    for name, (encode, scheme) in CASES.items():
        parts, _ = encode(torch.randn(16, 128) / 4)
        library = _by_mlx if name.startswith("mlx") else _by_compressed_tensors
        found[name] = library(parts, scheme)
        found |= {f"{name}/{ending}": part.contiguous() for ending, part in parts.items()}
    save_file(found, FILE)


def _by_mlx(parts: dict[str, torch.Tensor], scheme: dict[str, Any]) -> torch.Tensor:
    mx = importlib.import_module("mlx.core")
    mx.set_default_device(mx.cpu)

    def array(part: torch.Tensor) -> Any:
        whole = not part.dtype.is_floating_point
        return mx.array(part.numpy()) if whole else mx.array(part.float().numpy()).astype(mx.bfloat16)

    arrays = [array(parts[ending]) for ending in (".weight", ".scales", ".biases") if ending in parts]
    numbers = 32 * parts[".weight"].shape[1] // 128
    more = {"mode": scheme["mode"]} if "mode" in scheme else {"bits": numbers}
    made = mx.dequantize(*arrays, group_size=scheme["group_size"], **more)
    return torch.from_numpy(np.array(made.astype(mx.float32))).bfloat16()


def _by_compressed_tensors(parts: dict[str, torch.Tensor], scheme: dict[str, Any]) -> torch.Tensor:
    compressors = "compressed_tensors.compressors"
    weights = scheme["config_groups"]["group_0"]["weights"]
    kind = "int" if weights["type"] == "int" else f"float {weights['group_size']}"
    names = {
        "int": ("pack_quantized.base", "PackedQuantizationCompressor"),
        "float 16": ("nvfp4.base", "NVFP4PackedCompressor"), "float 32": ("mxfp4.base", "MXFP4PackedCompressor"),
    }  # fmt: skip
    module, name = names[kind]
    decompress: Callable[..., dict[str, torch.Tensor]]
    decompress = getattr(importlib.import_module(f"{compressors}.{module}"), name).decompress
    quantization = importlib.import_module("compressed_tensors.quantization")
    said = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))
    return decompress({ending[1:]: part for ending, part in parts.items()}, said)["weight"]


if __name__ == "__main__":
    write()
