"""From a folder to a decoder that is ready to run: a checkpoint or a packed store, resident or streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from moecli import settings
from moecli.checkpoint.binding import Weights
from moecli.engine.decoder import Decoder
from moecli.engine.weights import DenseWeights, checkpoint_weights, store_weights
from moecli.errors import UsageError
from moecli.experts import disk
from moecli.experts.arena import CPU
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.experts.offloaded import OffloadedExperts
from moecli.experts.pieces import mapped_record
from moecli.experts.policies import DEFAULT
from moecli.experts.resident import checkpoint_experts, packed_experts, store_experts, write_record
from moecli.experts.store import ExpertStore
from moecli.experts.unpacked import UnpackedRecords, unpacked
from moecli.formats import FORMATS
from moecli.formats.words import formats_of
from moecli.kernels.choice import serves
from moecli.model.spec import ModelSpec
from moecli.planning.memory import Unpacked
from moecli.planning.placement import Plan
from moecli.planning.rates import Rates
from moecli.store import manifest
from moecli.store.expert_record import compute_dtype, layer_records
from moecli.store.packed import PackedStore
from moecli.store.progress import Progress, silent
from moecli.store.source import check_runs, open_source


class Model(Protocol):
    """A model's weights, opened and checked and not yet read: of a checkpoint or a packed store."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of its files or overruled, in plain words."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The formats it can run in, the most precise first; as it is stored before the others."""
        ...

    @property
    def streams(self) -> bool:
        """Whether experts can be read from disk as they are needed."""
        ...

    def runs_in(self, dtype: str) -> bool:
        """Whether it can run in a format that is named."""
        ...

    def unpacked(self, dtype: str) -> Unpacked | None:
        """How experts become records of a format as they are read; None where they are."""
        ...

    def measure_disk(self, dtype: str) -> float | None:
        """Bytes per second that experts are read at, measured now; None where they are not streamed."""
        ...

    def decoder(
        self,
        plan: Plan,
        policy: str = DEFAULT,
        progress: Progress = silent,
        device: torch.device = CPU,
        rates: Rates | None = None,
        native: bool = True,
    ) -> Decoder:
        """Read the weights as planned; `progress` is told bytes done, of how many.

        `device` is the plan's, and its `rates` are measured unless they are given.

        Unless `native`, decode steps are computed by torch as prompts are.
        """
        ...


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """A Hub checkpoint: as stored in place, or converted while it is loaded, or whenever an expert is needed."""

    weights: Weights
    spec: ModelSpec

    @property
    def notes(self) -> tuple[str, ...]:
        return self.weights.notes

    @property
    def dtypes(self) -> tuple[str, ...]:
        kept, stored = self.weights.kept_dtype, self.weights.dtype
        return tuple(dict.fromkeys((*([kept] if kept else ()), stored, *FORMATS)))

    @property
    def streams(self) -> bool:
        return bool(self.spec.mixtures)

    def runs_in(self, dtype: str) -> bool:
        return formats_of(dtype).experts in self.dtypes

    def unpacked(self, dtype: str) -> Unpacked | None:
        return unpacked(self.weights, dtype) if self.streams else None

    def measure_disk(self, dtype: str) -> float | None:
        return disk.measure(UnpackedRecords.of(self.weights, dtype)) if self.streams else None

    def decoder(
        self,
        plan: Plan,
        policy: str = DEFAULT,
        progress: Progress = silent,
        device: torch.device = CPU,
        rates: Rates | None = None,
        native: bool = True,
    ) -> Decoder:
        dtype, budget = plan.memory.dtype, plan.ram.expert_bytes
        told, progress = _parts(plan, progress)
        compute = compute_dtype(dtype, self.weights.dtype)
        dense = checkpoint_weights(self.weights, dtype, compute, device, told, plan.disk.dense > 0)
        records = None if plan.fits else UnpackedRecords.of(self.weights, dtype)
        routed = formats_of(dtype).experts
        settings.return_freed_memory()
        experts: ExpertStore
        if plan.device.dense and self.spec.mixtures:
            layers = layer_records(self.spec, dtype)
            offloaded = GpuOffloadedExperts(
                self.spec, layers, _capacity(plan, dense), policy, store=records, rates=rates
            )
            if plan.fits:
                offloaded.fill(lambda *place: write_record(self.weights, layers, *place), progress)
            experts = offloaded
        elif records is not None:
            experts = OffloadedExperts(records, plan.ram.experts, policy)
        elif self.weights.experts_are(routed) and (
            self.weights.experts_are_rows() or not serves("native", routed, CPU)  # which multiplies nothing but rows
        ):
            experts = checkpoint_experts(self.weights, budget, progress)
        else:
            experts = packed_experts(self.weights, routed, budget, progress)
            settings.return_freed_memory()
        return Decoder(self.spec, dense, experts, plan.memory.context, native)


@dataclass(frozen=True, slots=True)
class StoreModel:
    """A packed store: in place if all of it fits, else experts in slots and on disk."""

    store: PackedStore
    spec: ModelSpec

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def dtypes(self) -> tuple[str, ...]:
        return (self.store.dtype,)

    @property
    def streams(self) -> bool:
        return bool(self.spec.mixtures)

    def runs_in(self, dtype: str) -> bool:
        return dtype == self.store.dtype

    def unpacked(self, dtype: str) -> None:
        """None: they are packed."""

    def measure_disk(self, dtype: str) -> float | None:
        return disk.measure(self.store) if self.streams else None

    def decoder(
        self,
        plan: Plan,
        policy: str = DEFAULT,
        progress: Progress = silent,
        device: torch.device = CPU,
        rates: Rates | None = None,
        native: bool = True,
    ) -> Decoder:
        told, progress = _parts(plan, progress)
        dense = store_weights(self.store, device, plan.disk.dense > 0, told)
        experts: ExpertStore
        if plan.device.dense and self.spec.mixtures:
            records = self.store.layout.records
            offloaded = GpuOffloadedExperts(
                self.spec, records, _capacity(plan, dense), policy, store=self.store, rates=rates
            )
            if plan.fits:
                offloaded.fill(self._copy_record, progress)
            experts = offloaded
        elif plan.fits:
            experts = store_experts(self.store, plan.ram.expert_bytes, progress)
        else:
            experts = OffloadedExperts(self.store, plan.ram.experts, policy)
        return Decoder(self.spec, dense, experts, plan.memory.context, native)

    def _copy_record(self, layer: int, expert: int, target: torch.Tensor) -> None:
        target.copy_(mapped_record(self.store, layer, expert))


def _parts(plan: Plan, progress: Progress) -> tuple[Progress, Progress]:
    """Dense weights and then experts as parts of one sum of bytes; experts on disk are read when they are needed."""
    dense = plan.memory.dense.bytes - plan.disk.dense
    experts = plan.ram.expert_bytes + plan.device.expert_bytes if plan.fits else 0

    def told(begin: int, size: int) -> Progress:
        return lambda done, total: progress(begin + size * done // total, dense + experts)

    return told(0, dense), told(dense, experts)


def _capacity(plan: Plan, dense: DenseWeights) -> Capacity:
    return Capacity(dense.device, dense.dtype, plan.device.experts, plan.ram.experts)


def open_model(
    folder: Path, expert_capacity: int | None = None, copy: Path | None = None
) -> CheckpointModel | StoreModel:
    """Read the configuration and every header in `folder`. ConfigError or CheckpointError if they are unfit.

    `expert_capacity` and `copy`: see `LoadOptions`.
    """
    if not (folder / manifest.FILE).is_file():
        if copy is not None:
            raise UsageError(f"--also {copy} goes with a packed model", f"moecli pack {folder}")
        weights = open_source(folder)
        return CheckpointModel(weights, _limited(weights.spec, expert_capacity))
    store = PackedStore.open(folder)
    check_runs(store.spec, str(folder))
    store = store if copy is None else store.beside(copy)
    return StoreModel(store, _limited(store.spec, expert_capacity))


def _limited(spec: ModelSpec, expert_capacity: int | None) -> ModelSpec:
    """The same model, its experts taking so many tokens in one pass (0: any number). UsageError if all take any."""
    if expert_capacity is None:
        return spec
    if all(mixture.router.capacity is None for _, mixture in spec.mixtures):
        raise UsageError(
            f"the experts of {spec.family} models take any number of tokens", "leave --expert-capacity out"
        )
    return spec.with_capacity(expert_capacity or None)


def check_dtype(model: Model, dtype: str) -> None:
    """UsageError for a format that this model cannot run in."""
    if dtype != "auto" and not model.runs_in(dtype):
        raise UsageError(
            f"--dtype {dtype} does not suit a store packed to {model.dtypes[0]}",
            "leave --dtype out, or pack the original checkpoint again",
        )
