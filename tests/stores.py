"""Packed stores of tiny checkpoints, and decoders on them under any budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import moecli
from moecli import families
from moecli.checkpoint import Checkpoint
from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.plan import Plan, fit, needs, place
from moecli.policies import DEFAULT
from moecli.records import dense_dtype
from moecli.spec import ModelSpec
from moecli.store.layout import StoreLayout
from moecli.store.manifest import FILE, FileSums, Manifest, Origin
from moecli.store.packed import PackedStore, describe_records
from moecli.store.source import fingerprint
from moecli.store.sums import file_sums
from moecli.store.write import pack
from moecli.tensors import dense_tensors
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


def hollow(folder: Path, config: dict[str, object], dtype: str = "q8") -> Path:
    """A store of any size that takes no room: its files are holes, its sums are of nothing."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    spec = families.read_spec(config)
    roles = {tensor.role: dense_dtype(tensor, dtype) for tensor in dense_tensors(spec)} | {"experts": dtype}
    layout = StoreLayout(spec, dtype, "bf16", roles)
    files = {"config.json": file_sums(folder / "config.json", [], lambda size: None)}
    for name, size in layout.sizes.items():
        with (folder / name).open("wb") as file:
            file.write(layout.header(name))
            file.truncate(size)
        files[name] = FileSums(size, "", tuple("" for _ in layout.parts(name)))
    shutil.copy(Path(moecli.__file__).parent / "tiny" / "tokenizer.json", folder)
    origin = Origin("hollow", None, None, None, "")
    Manifest(dtype, "bf16", origin, roles, files, describe_records(layout)).write(folder / FILE)
    return folder
