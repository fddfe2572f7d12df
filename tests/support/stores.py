"""Random checkpoints on disk, packed stores of tiny ones, and decoders on them under any budget."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

import moecli
from benchmarks import checkpoint as random_checkpoint
from moecli.checkpoint.files import SAFETENSORS
from moecli.experts.policies import DEFAULT
from moecli.model import families
from moecli.model.spec import ModelSpec
from moecli.model.tensors import dense_tensors
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import Plan, fit, place
from moecli.store.checksums import file_checksums
from moecli.store.expert_record import dense_dtype
from moecli.store.layout import StoreLayout
from moecli.store.manifest import FILE, FileChecksums, Origin, StoreManifest
from moecli.store.packed import PackedStore, describe_records
from moecli.store.progress import Progress, silent
from moecli.store.source import open_source, origin_of
from moecli.store.write import pack
from moecli.text.files import texts_in
from tests.support.headers import shard_names

if TYPE_CHECKING:
    from moecli.engine.decoder import Decoder

Stores = Callable[[str, str], PackedStore]  # by family and format
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 128, "intermediate_size": 192,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6, "num_experts_per_tok": 2,
    "num_hidden_layers": 5, "vocab_size": 500, "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip


def random_mixtral(folder: Path, **shape: int) -> Path:
    """A checkpoint as the Hub has them, of random numbers: a shard for each layer and one for the rest."""
    random_checkpoint.SHAPES[folder.name] = _MIXTRAL | shape
    random_checkpoint.write(folder.name, folder)
    return folder


def random_mistral(folder: Path) -> Path:
    """Its dense peer."""
    dense = {name: value for name, value in _MIXTRAL.items() if "experts" not in name}
    random_checkpoint.SHAPES[folder.name] = dense | {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 4096, "sliding_window": 64,
    }  # fmt: skip
    random_checkpoint.write(folder.name, folder)
    return folder


def tokenizer(folder: Path) -> None:
    """The built-in model's beside weights that have none."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(moecli.__file__).parent / "tiny" / name, folder)


def deal(source: Path, folder: Path, shards: int, seed: int = 0) -> Path:
    """The same, its tensors dealt by chance to shards of about equal size, with an index that lies about where."""
    tensors = {name: value for file in source.glob("*.safetensors") for name, value in load_file(file).items()}
    chance = random.Random(seed)
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in shard_names(shards)}
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel(), chance.random())):
        smallest = min(parts.values(), key=lambda part: sum(value.numel() for value in part.values()))
        smallest[name] = tensors[name]
    folder.mkdir()
    for file, part in parts.items():
        save_file(part, folder / file)
    for file in texts_in(source).values():
        shutil.copy(file, folder)
    lies = {name: chance.choice(list(parts)) for name in tensors}
    (folder / SAFETENSORS.index).write_text(json.dumps({"metadata": {}, "weight_map": lies}))
    return folder


def packed(source: Path, target: Path, dtype: str = "q4", progress: Progress = silent) -> PackedStore:
    """As `moecli pack` does it."""
    weights = open_source(source)
    return pack(weights, source, target, dtype, origin_of(source.name, None, None, source, weights), progress)


def contents(folder: Path, but: str = "") -> dict[str, bytes]:
    """Every file, `but` one."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != but}


def experts_in(store: PackedStore) -> int:
    return estimate_memory(store.spec, store.dtype, 256).expert_count


def plan_for(store: PackedStore, slots: int | None, positions: int = 256) -> Plan:
    """A plan with RAM for so many experts; None is for all of them, mapped."""
    need = estimate_memory(store.spec, store.dtype, positions)
    if slots is None:
        return fit(store.spec, store.dtype, positions, 2**60)
    least = place(need, 0).least_ram
    budget = least + slots * need.slot_bytes
    return place(need, min(budget, place(need, 0).full_ram - 1))


def decoder(store: PackedStore, slots: int | None, policy: str = DEFAULT) -> Decoder:
    from moecli.engine.load import open_model

    return open_model(store.folder).decoder(plan_for(store, slots), policy)


def split_plan(spec: ModelSpec, dtype: str, on_device: int, in_ram: int | None = None, positions: int = 256) -> Plan:
    """A plan with room for so many experts on a device and in RAM; None is for all the others."""
    need = estimate_memory(spec, dtype, positions)
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
    files = {"config.json": file_checksums(folder / "config.json", [], lambda size: None)}
    for name, size in layout.sizes.items():
        with (folder / name).open("wb") as file:
            file.write(layout.header(name))
            file.truncate(size)
        files[name] = FileChecksums(size, "", tuple("" for _ in layout.parts(name)))
    shutil.copy(Path(moecli.__file__).parent / "tiny" / "tokenizer.json", folder)
    origin = Origin("hollow", None, None, None, "")
    StoreManifest(dtype, "bf16", origin, roles, files, describe_records(layout)).write(folder / FILE)
    return folder
