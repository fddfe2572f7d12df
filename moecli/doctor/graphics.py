"""The GPUs that torch can use: what memory they have, whose kernels run there, and how fast the first one is."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of them. `free_bytes` is None where it does not answer, and `failure` says why.

    `kernels`: whether moecli's own run there. Speeds are bytes per second: of its own memory, read and written, and of
    pinned memory to it and back; None where they were not measured.
    """

    name: str
    total_bytes: int
    free_bytes: int | None
    compute_capability: str
    failure: str | None
    kernels: bool = False
    memory_bytes_per_s: float | None = None
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Graphics:
    """`absence` is why there are none."""

    gpus: tuple[Gpu, ...]
    absence: str | None


def look(torch_failure: str | None, measure: bool = False) -> Graphics:
    """To `measure` the one that runs use takes less than a second, and is remembered."""
    if torch_failure:
        return Graphics((), "torch cannot be imported")
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return Graphics((), _unused() or ("torch finds none" if built else "torch is built for the CPU alone"))
    return Graphics(tuple(_gpu(number, measure and number == 0) for number in range(torch.cuda.device_count())), None)


def _unused() -> str | None:
    """What torch could use and moecli does not."""
    import torch

    kinds = {"Apple's (MPS)": torch.backends.mps, "Intel's (XPU)": getattr(torch, "xpu", None)}
    found = next((name for name, kind in kinds.items() if kind is not None and kind.is_available()), None)
    return f"moecli uses CUDA and ROCm, and leaves {found} alone" if found else None


def _gpu(number: int, measure: bool) -> Gpu:
    import torch

    from moecli.engine.device import examine
    from moecli.kernels import gpu

    properties, device = torch.cuda.get_device_properties(number), torch.device("cuda", number)
    capability = f"{properties.major}.{properties.minor}"
    try:
        free, _ = torch.cuda.mem_get_info(number)
        speeds = examine(device, again=True).speeds if measure else None
    except RuntimeError as error:  # what torch raises for anything that CUDA refuses
        return Gpu(properties.name, properties.total_memory, None, capability, str(error).splitlines()[0])
    found = Gpu(properties.name, properties.total_memory, free, capability, None, gpu.serves(device))
    if speeds is None:
        return found
    return replace(found, memory_bytes_per_s=speeds.memory, up_bytes_per_s=speeds.up, down_bytes_per_s=speeds.down)
