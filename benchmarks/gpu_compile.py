"""Registers, spills and shared memory of every Triton kernel, compiled for cards that are not there.

python -m benchmarks.gpu_compile                  (--arch 75 90 --only attention: these alone)

The functions that launch kernels are called on tensors without numbers, of the shapes of real models; what they would
launch is noted instead, as Triton specialises it, and compiled. There is no second list of kernels to keep.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moecli.formats import bytes_for
from moecli.kernels import gpu
from moecli.kernels.blocking import MAX_TOKENS
from moecli.kernels.gpu import append, attention, launch, norms, products, prompts, quantise
from moecli.kernels.gpu.launch import Card
from moecli.kernels.gpu.router import route
from moecli.model.spec import Activation, NormKind, QkNorm, Router

# By compute capability: a card of it; the shared memory is the most that one program can have.
CARDS = {
    75: ("T4", Card((7, 5), 40, 64 * 1024)),
    80: ("A100", Card((8, 0), 108, 163 * 1024)),
    86: ("RTX 3060", Card((8, 6), 28, 99 * 1024)),
    89: ("RTX 4090", Card((8, 9), 128, 99 * 1024)),
    90: ("H100", Card((9, 0), 132, 227 * 1024)),
}
REGISTERS = 255  # that a thread can have
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_NOWHERE = torch.device("meta")
_HIDDEN, _WIDE = 4096, 14336  # Mixtral's
_ROUTERS = Router(8, 2, norm_power=1.0), Router(256, 8, n_group=8, topk_group=4)
_ROW = "{:<58}{:>7}{:>11}{:>9}{:>8}{:>14}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel as a call specialises it."""

    function: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: Any
    options: dict[str, Any]

    @property
    def kernel(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__.lstrip('_')}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the compiled kernel takes: registers and spilled bytes of a thread, bytes of shared memory of a program."""

    warps: int
    registers: int
    spilled: int
    shared: int
    instructions: int


class _NoDriver:
    """All that Triton asks of a driver before it compiles."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        return self._arch  # Triton keeps apart what it compiled for each

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)


@contextmanager
def noting(arch: int) -> Iterator[dict[str, Launch]]:
    """Within it kernels are not launched but noted, each specialisation once, for this compute capability."""
    found: dict[str, Launch] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found.setdefault(
            f"{fn.module}.{fn.name} {compile['key']}",
            Launch(
                fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0],
                {name: compile[name] for name in _OPTIONS},
            ),
        )  # fmt: skip
        return True  # and nothing is compiled

    before, card = triton.knobs.runtime.jit_cache_hook, launch._INTERPRETED
    triton.knobs.runtime.jit_cache_hook = note
    triton.runtime.driver.set_active(_NoDriver(arch))
    launch._INTERPRETED = CARDS[arch][1]
    launch.card.cache_clear()
    try:
        yield found
    finally:
        triton.knobs.runtime.jit_cache_hook = before
        triton.runtime.driver.set_active(None)
        launch._INTERPRETED = card
        launch.card.cache_clear()


def launches(arch: int) -> dict[str, Launch]:
    """What the functions of `moecli.kernels.gpu` launch on such a card, by a sentence on when."""
    found: dict[str, Launch] = {}
    for use, call in calls(CARDS[arch][1]):
        with noting(arch) as noted:
            call()
        for each in noted.values():
            if not any(each == other for other in found.values()):
                found[f"{each.kernel}: {use}"] = each
    return found


def calls(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every function of `moecli.kernels.gpu` that launches something, on shapes of real models, in words and as a call.

    Of few tokens the fewest and the most. Latents are torch's on cards without tensor cores.
    """
    dtype = torch.float16 if card.capability < (8, 0) else torch.bfloat16

    def numbers(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(*shape, dtype=of, device=_NOWHERE)

    whole = partial(numbers, of=torch.int64)
    full = partial(numbers, of=torch.float32)
    place = whole(2, of=torch.int32)
    matrix = _WIDE, _HIDDEN
    plain = "fp16" if dtype is torch.float16 else "bf16"
    for name in (*products.FORMATS, plain):
        size = bytes_for(name, matrix)
        packed = numbers(size, of=torch.uint8)
        for tokens in (1, MAX_TOKENS) if name != plain else ():
            yield f"{name}, {_count(tokens)}", partial(products.linear, numbers(tokens, _HIDDEN), name, packed, matrix)
        few = products.Experts(name, _HIDDEN, _WIDE, Activation.SILU, whole(8), 0, size, 2 * size)
        yield f"{name}, experts of 1 token", partial(few, norms.Normed.empty(1, _HIDDEN, numbers(1)), whole(2), 2)
        for tokens in (9, 512) if name == "q4" else (512,):
            x, ids, weights = numbers(tokens, _HIDDEN), whole(tokens, 2), full(tokens, 2)
            yield f"{name}, {_count(tokens)}", partial(prompts.linear, name, x, packed, matrix)
            many = partial(prompts.experts, name, x, ids, weights, whole(8, 3), _WIDE, Activation.SILU)
            yield f"{name}, experts of {_count(tokens)}", many
    tables = numbers(4096, 128), numbers(4096, 128)
    latent_tables = numbers(4096, 64), numbers(4096, 64)
    for tokens in (1, 512):
        states, keys, values = numbers(tokens, _HIDDEN), numbers(8, 4096, 128), numbers(8, 4096, 128)
        yield _count(tokens), partial(quantise.quantise, states)
        branch = norms.Branch(full(2 * tokens, _HIDDEN), full(tokens, 2))
        yield _count(tokens), partial(norms.add_and_norm, states, branch, numbers(_HIDDEN), kind=NormKind.RMS, eps=1e-5)
        for router in _ROUTERS:
            weight = full(router.experts, _HIDDEN)
            yield f"{_count(tokens)}, {router.experts} experts", partial(route, states, weight, router)
        yield _count(tokens), partial(append.append, numbers(tokens, 48 * 128), keys, values, place, tables=tables)
        yield f"{_count(tokens)}, norms of heads", partial(
            append.append, numbers(tokens, 48 * 128), keys, values, place, tables=tables,
            qk_norm=QkNorm.HEAD, q_norm=numbers(128), k_norm=numbers(128),
        )  # fmt: skip
        q, rope, latents = numbers(tokens, 16, 512), numbers(tokens, 16, 64), numbers(4096, 576)
        yield _count(tokens), partial(
            append.append_latents, numbers(tokens, 576), rope, latents, place, norm=numbers(512), eps=1e-5,
            tables=latent_tables,
        )  # fmt: skip
        queries = numbers(tokens, 32, 128)
        yield f"{_count(tokens)}, heads of 128", partial(attention.attend, queries, keys, values, place, scale=0.1)
        yield (
            f"{_count(tokens)}, window, cap and sinks",
            partial(
                attention.attend, queries, keys, values, place, scale=0.1, window=1024, softcap=50.0, sinks=full(32)
            ),
        )
        if card.has_tensor_cores(dtype.itemsize):
            yield f"{_count(tokens)}, latents", partial(attention.attend_latents, q, rope, latents, place, scale=0.1)
    wide, keys, values = numbers(512, 16, 192), numbers(16, 4096, 192), numbers(16, 4096, 128)
    yield f"{_count(512)}, heads of 192", partial(attention.attend, wide, keys, values, place, scale=0.1)


def launched() -> set[str]:
    """The names of all kernels: what some module of `moecli.kernels.gpu` launches, `name[grid](...)`."""
    found = set[str]()
    for module in pkgutil.iter_modules(gpu.__path__, gpu.__name__ + "."):
        text = inspect.getsource(importlib.import_module(module.name))
        names = re.findall(r"^@triton\.jit\ndef (\w+)", text, re.MULTILINE)
        launched = [name for name in names if re.search(rf"\b{name}\[", text)]
        found |= {f"{module.name.rpartition('.')[2]}.{name.lstrip('_')}" for name in launched}
    return found


def compiled(launch: Launch, arch: int) -> Resources:
    """What the kernel takes on such a card."""
    source = ASTSource(launch.function, launch.signature, launch.constants, launch.attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", file)
        code = _tool("nvdisasm", "-c", file)
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL"))
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(\w+)", code, re.MULTILINE)
    return Resources(launch.options["num_warps"], registers, stack + local, kernel.metadata.shared, len(instructions))


def _tool(name: str, *arguments: str | Path) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _count(tokens: int) -> str:
    return f"{tokens} token{'s' if tokens > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=CARDS, default=list(CARDS))
    parser.add_argument("--only", default="", help="kernels and uses in whose names this is")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set, and nothing would be compiled")
    for arch in options.arch:
        name, card = CARDS[arch]
        if not options.json:
            print(f"\nsm_{arch} ({name}), {card.shared // 1024} KiB of shared memory for a program\n")
            print(_ROW.format("kernel", "warps", "registers", "spilled", "shared", "instructions"))
        for use, each in launches(arch).items():
            if options.only not in use:
                continue
            found = compiled(each, arch)
            if options.json:
                print(json.dumps({"arch": arch, "use": use} | asdict(found)), flush=True)
            else:
                print(_ROW.format(use, *asdict(found).values()), flush=True)


if __name__ == "__main__":
    main()
