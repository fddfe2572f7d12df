"""Packed stores of tiny checkpoints, and decoders on them under any budget."""

from __future__ import annotations

from pathlib import Path

from moecli import families
from moecli.checkpoint import Checkpoint
from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.plan import Plan, fit, needs, place
from moecli.policies import DEFAULT
from moecli.spec import ModelSpec
from moecli.store.manifest import Origin
from moecli.store.packed import PackedStore
from moecli.store.source import fingerprint
from moecli.store.write import pack
from moecli.weights import Weights


def packed(folder: Path, target: Path, dtype: str = "q4") -> PackedStore:
    """The checkpoint in `folder`, packed."""
    config = families.load_config(folder / "config.json")
    family = families.find(config)
    weights = Weights(family.read(config), family, Checkpoint.open(folder))
    origin = Origin(folder.name, None, None, str(folder), fingerprint(folder, weights))
    return pack(weights, folder, target, dtype, origin)


def plan_for(store: PackedStore, slots: int | None, positions: int = 256) -> Plan:
    """A plan with RAM for so many experts; None is for all of them, mapped."""
    need = needs(store.spec, store.dtype, positions)
    if slots is None:
        return fit(store.spec, store.dtype, positions, 2**60)
    least = place(need, 0).least_ram
    budget = least + slots * need.slot_bytes
    return place(need, min(budget, place(need, 0).full_ram - 1))


def decoder(store: PackedStore, slots: int | None, policy: str = DEFAULT) -> Decoder:
    return open_model(store.folder).decoder(plan_for(store, slots), policy)


def split_plan(spec: ModelSpec, dtype: str, on_device: int, in_ram: int | None = None, positions: int = 256) -> Plan:
    """A plan with room for so many experts on a device and in RAM; None is for all the others."""
    need = needs(spec, dtype, positions)
    everything = place(need, 2**60, 2**60).device
    device = everything.total - everything.expert_bytes + on_device * need.slot_bytes
    least = place(need, 0, device)
    ram = 2**60 if in_ram is None else min(least.least_ram + in_ram * need.slot_bytes, least.full_ram - 1)
    return place(need, ram, device)
