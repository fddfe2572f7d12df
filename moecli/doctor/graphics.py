"""The GPUs that torch can use, and what memory they have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of them. `free_bytes` is None where it does not answer, and `failure` says why."""

    name: str
    total_bytes: int
    free_bytes: int | None
    compute_capability: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class Graphics:
    """`absence` is why there are none."""

    gpus: tuple[Gpu, ...]
    absence: str | None


def look(torch_failure: str | None) -> Graphics:
    if torch_failure:
        return Graphics((), "torch cannot be imported")
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return Graphics((), "torch finds none" if built else "torch is built for the CPU alone")
    return Graphics(tuple(map(_gpu, range(torch.cuda.device_count()))), None)


def _gpu(number: int) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(number)
    free, failure = None, None
    try:
        free, _ = torch.cuda.mem_get_info(number)
    except RuntimeError as error:  # what torch raises for anything that CUDA refuses
        failure = str(error).splitlines()[0]
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(properties.name, properties.total_memory, free, capability, failure)
