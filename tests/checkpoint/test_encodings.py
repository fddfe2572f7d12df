"""Quantised checkpoints run, are packed and inspected: their weights are those of the published rule, to the bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli.checkpoint.binding import Slice, Weights, format_of
from moecli.checkpoint.decoding import decoded
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.headers import read_header
from moecli.checkpoint.reading import read_rows, read_slice
from moecli.errors import CheckpointError
from moecli.formats.plain import torch_dtype
from moecli.model.families import load_config
from moecli.model.spec import DECODED
from moecli.store.incremental import packing_shards
from moecli.store.layout import choose_layout
from moecli.store.manifest import Origin
from moecli.store.source import announced, open_source
from tests.support import library_goldens
from tests.support.checkpoints import make, prompt, write
from tests.support.encodings import CASES, Encoded, float4, fp8
from tests.support.in_process import moecli
from tests.support.running import greedy, load, score
from tests.support.stores import contents, packed

pytestmark = pytest.mark.slow
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(case: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As published, and with plain weights."""
    return CASES[case].make().write(tmp_path_factory.mktemp("encoded"))


def experts(weights: Weights) -> dict[tuple[int, int, str], Slice]:
    return {
        (layer, expert, matrix): weights.expert(layer, expert, matrix)
        for layer, mixture in weights.spec.mixtures
        for expert in range(mixture.router.experts)
        for matrix in weights.expert_matrices(layer)
    }


def test_weights_are_those_of_the_rule(folders: tuple[Path, Path]) -> None:
    """Whole, and in strips of any rows; bit for bit."""
    stored, plain = map(open_source, folders)
    encoded = 0
    for place, part in experts(stored).items():
        dtype = torch_dtype(format_of(part.stored))
        expected = read_slice(plain.checkpoint, experts(plain)[place], dtype)
        assert torch.equal(read_slice(stored.checkpoint, part, dtype), expected)
        encoded += part.stored.encoding is not None
        for first, last in ((0, 1), (3, 20), (len(expected) - 5, len(expected))):
            strip = torch.empty(last - first, expected.shape[1], dtype=dtype)
            read_rows(strip, stored.checkpoint, part, first)
            assert torch.equal(strip, expected[first:last])
    assert encoded == len(experts(stored))


def test_it_says_what_the_plain_weights_say(folders: tuple[Path, Path]) -> None:
    stored, plain = (load(folder, open_source(folders[0]).dtype) for folder in folders)
    ids = prompt(40)
    assert torch.equal(score(stored, ids), score(plain, ids))
    assert greedy(stored, ids[:8], 24) == greedy(plain, ids[:8], 24)


def test_openai_s_own_layout_of_gpt_oss_is_read(tmp_path: Path) -> None:
    """Of `original/`: other names, q, k and v in one, and a configuration in other words."""
    stored, plain = CASES["mxfp4"].make().write(tmp_path)
    tensors = load_file(stored / "model.safetensors")
    released = {}
    for name in list(tensors):
        if re.search(r"\.[qkv]_proj\.", name):
            both = [name.replace("q_proj", f"{each}_proj") for each in "qkv"]
            if "q_proj" in name:
                released[_released(name)] = torch.cat([tensors[each] for each in both])
        else:
            released[_released(name)] = tensors[name]
    config = json.loads((stored / "config.json").read_text())
    kept = (
        "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_attention_heads",
        "num_key_value_heads", "sliding_window",
    )  # fmt: skip
    own = {key: config[key] for key in kept} | {
        "num_experts": config["num_local_experts"], "experts_per_token": config["num_experts_per_tok"],
        "swiglu_limit": 7.0, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
    }  # fmt: skip
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "config.json").write_text(json.dumps(own))
    save_file(released, tmp_path / "original" / "model.safetensors")
    ours, theirs = load(tmp_path / "original", "bf16"), load(plain, "bf16")
    assert torch.equal(score(ours, prompt(40)), score(theirs, prompt(40)))
    assert open_source(tmp_path / "original").kept_dtype == "mxfp4"


def _released(name: str) -> str:
    """What OpenAI calls a tensor."""
    words = (
        ("model.layers.", "block."), ("model.embed_tokens", "embedding"), ("lm_head", "unembedding"),
        ("model.norm.weight", "norm.scale"), ("input_layernorm.weight", "attn.norm.scale"),
        ("post_attention_layernorm.weight", "mlp.norm.scale"), ("self_attn.q_proj", "attn.qkv"),
        ("self_attn.o_proj", "attn.out"), ("self_attn.", "attn."), ("mlp.router", "mlp.gate"),
        ("experts.gate_up_proj_bias", "mlp1_bias"), ("experts.down_proj_bias", "mlp2_bias"),
        ("experts.gate_up_proj_", "mlp1_weight."), ("experts.down_proj_", "mlp2_weight."),
    )  # fmt: skip
    for theirs, own in words:
        name = name.replace(theirs, own)
    return name


def test_packed_it_is_what_is_packed_of_the_plain_weights(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (contents(packed(folder, tmp_path / folder.name, "q8").folder) for folder in folders)
    assert one.keys() == other.keys()
    assert all(one[name] == other[name] for name in one if name.endswith(".safetensors"))


def test_it_is_inspected_as_what_it_is(case: str, folders: tuple[Path, Path]) -> None:
    found = moecli("inspect", folders[0], "--json").json
    plain = moecli("inspect", folders[1], "--json").json
    assert found["runnable"] and not found["lacks"] and not found["differences"], found["differences"]
    assert found["parameters"] == plain["parameters"] and found["stored_format"] == CASES[case].name
    assert found["stored_bytes"] < plain["stored_bytes"] and found["stored_parameters"] == plain["stored_parameters"]
    memory = moecli("memory", folders[0], "--json").json
    assert memory["runnable"] and memory["stored_format"] == CASES[case].name


def test_readme_says_what_it_becomes(case: str, folders: tuple[Path, Path]) -> None:
    """In the row that has its name; GPTQ is in one for each width."""
    rows = [row.split(" | ") for row in README.read_text(encoding="utf-8").splitlines() if " | exactly, in " in row]
    named = [row for row in rows if f"`{CASES[case].name}`" in row[0]]
    if CASES[case].name == "gptq":
        named = [row for row in named if ("of 8 bits" in row[0]) == ("8 bits" in case)]
    (row,) = named
    assert f"`{open_source(folders[0]).packed_dtype}`" in row[2]
    decoded = format_of(next(iter(experts(open_source(folders[0])).values())).stored)
    assert decoded in row[1]


def test_readme_names_every_encoding_that_is_read() -> None:
    table = "".join(row for row in README.read_text(encoding="utf-8").splitlines() if " | exactly, in " in row)
    assert {name for name in DECODED if f"`{name}`" not in table} == set()


def test_blocks_are_decoded_as_by_transformers() -> None:
    """The encoder of these tests is held against the library that publishes and reads them."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    parts, numbers = fp8(16, 32)(torch.randn(48, 96))
    found = Fp8Dequantize(None)._dequantize_one(parts[".weight"], parts[".weight_scale_inv"], torch.bfloat16)
    assert torch.equal(found, numbers)


def test_blocks_of_gpt_oss_are_decoded_as_by_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    parts, numbers = float4(32)(torch.randn(3, 64, 40))
    assert torch.equal(convert_moe_packed_tensors(parts["_blocks"], parts["_scales"]), numbers)


def test_experts_are_read_as_mlx_lm_stacks_them(tmp_path: Path) -> None:
    """One tensor for each matrix of all experts; of gpt-oss gate and up apart, in the order of [out, in]."""
    encoded = CASES["MLX, 4 bits"].make()
    dealt: dict[str, list[torch.Tensor]] = {}
    for name in sorted(encoded.stored, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        dealt.setdefault(re.sub(r"experts\.\d+", "switch_mlp", name), []).append(encoded.stored[name])
    stacked = {name: torch.stack(each) if "switch_mlp" in name else each[0] for name, each in dealt.items()}
    folders = Encoded(stacked, encoded.plain, encoded.config).write(tmp_path / "qwen3")
    one, other = (load(folder, "bf16") for folder in folders)
    assert torch.equal(score(one, prompt(20)), score(other, prompt(20)))
    plain = write(make("gpt_oss"), tmp_path / "gpt_oss")
    apart: dict[str, torch.Tensor] = {}
    for name, each in load_file(plain / "model.safetensors").items():
        bias, ending = name.endswith("_bias"), "bias" if name.endswith("_bias") else "weight"
        turned = each if bias or each.dim() < 3 else each.transpose(1, 2)
        stem = name.removesuffix("_bias")
        if stem.endswith("gate_up_proj"):
            for half, part in enumerate(("gate_proj", "up_proj")):
                apart[f"{stem.removesuffix('gate_up_proj')}{part}.{ending}"] = turned[:, half::2].contiguous()
        elif stem.endswith("experts.down_proj"):
            apart[f"{stem}.{ending}"] = turned.contiguous()
        else:
            apart[name] = each
    (mine := tmp_path / "mlx").mkdir()
    (mine / "config.json").write_text((plain / "config.json").read_text())
    save_file(apart, mine / "model.safetensors")
    assert torch.allclose(score(load(mine), prompt(20)), score(load(plain), prompt(20)), atol=1e-5)


@pytest.mark.parametrize("name", library_goldens.CASES)
def test_numbers_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    """Of mlx and of compressed-tensors, as stored."""
    stored = load_file(library_goldens.FILE)
    parts = {key.partition("/")[2]: value for key, value in stored.items() if key.startswith(f"{name}/")}
    save_file({f"x{ending}": part for ending, part in parts.items()}, tmp_path / "x.safetensors")
    tensors = read_header(tmp_path / "x.safetensors")
    matrix = decoded(tensors, library_goldens.CASES[name][1], "bf16", dict)["x.weight"]
    assert matrix.encoding is not None and matrix.shape == (16, 128) and len(parts) > 1
    assert torch.equal(matrix.encoding.rows(Checkpoint(tensors), 0, 16), stored[name])


def broken(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object], name: str, folder: Path) -> str:
    """The sentence that a changed checkpoint ends with when it is packed."""
    encoded = CASES[name].make()
    config = dict(encoded.config)
    change(encoded.stored, config)
    stored, _ = Encoded(encoded.stored, encoded.plain, config).write(folder)
    inspected = moecli("inspect", stored, "--json")
    assert inspected.code in (0, 1) and "Traceback" not in inspected.err
    ended = moecli("pack", stored, "-o", folder / "packed", "--dtype", "q8", "--yes")
    assert ended.code == 1 and re.fullmatch(r"error: [^\n]+\nhint: [^\n]+\n", ended.failure), ended.err
    return ended.failure.splitlines()[0]


EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2"
QWEN = "model.layers.0.mlp.experts.1.down_proj"
FAULTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], object], str]] = {
    "scales of another shape": (
        "fp8, small blocks", lambda t, c: t.update({f"{QWEN}.weight_scale_inv": torch.ones(3, 5)}), "does not fit",
    ),
    "no scales": ("fp8, rows", lambda t, c: t.pop(f"{EXPERT}.weight_scale"), "F8_E4M3, and nothing beside it says"),
    "an infinite scale": (
        "fp8, one scale", lambda t, c: t.update({f"{EXPERT}.weight_scale": torch.tensor([torch.inf])}),
        "holds a scale that is infinite",
    ),
    "a code that is no number": (
        "fp8, one scale", lambda t, c: t[f"{EXPERT}.weight"].view(torch.uint8)[3:4].fill_(0x7F),
        "infinite or not a number",
    ),
    "absurd blocks": (
        "fp8, small blocks", lambda t, c: c["quantization_config"].update(weight_block_size=[0, "x"]),
        "weight_block_size must be",
    ),
    "other blocks": (
        "fp8, small blocks", lambda t, c: c["quantization_config"].update(weight_block_size=[8, 8]), "does not fit",
    ),
    "gptq: another group size": (
        "gptq, 4 bits", lambda t, c: c["quantization_config"].update(group_size=64), "says that group_size is 64",
    ),
    "gptq: other bits": (
        "gptq, 4 bits", lambda t, c: c["quantization_config"].update(bits=8), "says that bits is 8",
    ),
    "gptq: zero points of another shape": (
        "gptq, 4 bits", lambda t, c: t.update({f"{EXPERT}.qzeros": torch.zeros(3, 3, dtype=torch.int32)}), "",
    ),
    "gptq: a group without scales": (
        "gptq, 8 bits, in any order", lambda t, c: t[f"{QWEN}.g_idx"].fill_(1000), "names a group that has no scale",
    ),
    "gptq: an infinite scale": (
        "gptq, 4 bits", lambda t, c: t[f"{EXPERT}.scales"][1].fill_(torch.nan), "holds a scale that is infinite",
    ),
    "awq: another version": (
        "awq", lambda t, c: c["quantization_config"].update(version="gemv"), "of version 'gemv' are not read",
    ),
    "awq: scales of another shape": (
        "awq", lambda t, c: t.update({f"{EXPERT}.scales": torch.ones(5, 64, dtype=torch.float16)}), "",
    ),
    "compressed-tensors: other bits": (
        "compressed-tensors, rows",
        lambda t, c: c["quantization_config"].update(
            config_groups={"g": {"targets": ["re:((a+)+)+$"], "weights": {"num_bits": 3}}}
        ),
        r"quantised \(compressed-tensors 3-bit\)",
    ),
    "compressed-tensors: scales of another shape": (
        "compressed-tensors, groups",
        lambda t, c: t.update({f"{QWEN}.weight_scale": torch.ones(1, 1, dtype=torch.bfloat16)}), "does not",
    ),
    "nvfp4: a number for the whole that is none": (
        "ModelOpt, nvfp4", lambda t, c: t[f"{EXPERT}.weight_scale_2"].fill_(0), "is 0: no scale",
    ),
    "nvfp4: an infinite number for the whole": (
        "compressed-tensors, nvfp4", lambda t, c: t[f"{QWEN}.weight_global_scale"].fill_(torch.inf), "is infinite",
    ),
    "nvfp4: scales of another shape": (
        "ModelOpt, nvfp4", lambda t, c: t.update({f"{EXPERT}.weight_scale": torch.ones(64, 5).to(torch.float8_e4m3fn)}),
        "does not fit",
    ),
    "nvfp4: a scale that is no number": (
        "ModelOpt, nvfp4", lambda t, c: t[f"{EXPERT}.weight_scale"].view(torch.uint8)[3].fill_(0x7F), "or no number",
    ),
    "mxfp4: exponents that are none": (
        "mxfp4", lambda t, c: t["model.layers.0.mlp.experts.down_proj_scales"][1, 2].fill_(255), "or no number",
    ),
    "mxfp4: exponents of another shape": (
        "mxfp4",
        lambda t, c: t.update({"model.layers.0.mlp.experts.down_proj_scales": torch.ones(6, 3, dtype=torch.uint8)}),
        "does not fit exponents",
    ),
    "MLX: another group size": (
        "MLX, 4 bits", lambda t, c: c["quantization_config"].update(group_size=32), "by config.json",
    ),
    "MLX: an absurd group size": (
        "MLX, 4 bits", lambda t, c: c["quantization_config"].update(group_size=[64]), "which are not read",
    ),
    "MLX: biases of another shape": (
        "MLX, 3 bits", lambda t, c: t.update({f"{EXPERT}.biases": torch.ones(2, 2).half()}), "does not fit scales",
    ),
    "MLX: another mode": (
        "MLX, mxfp4", lambda t, c: c["quantization_config"].update(mode="nvfp4"), "which mode 'nvfp4' has not",
    ),
    "an encoding that is not read": (
        "fp8, rows",
        lambda t, c: t.update({f"{EXPERT}.weight": torch.zeros(64, 48, dtype=torch.uint8)}),
        r"quantised \(fp4\), which cannot be run yet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_ends_in_one_sentence(fault: str, tmp_path: Path) -> None:
    name, change, said = FAULTS[fault]
    assert re.search(said, broken(change, name, tmp_path))


@pytest.mark.parametrize("name", ["mxfp4", "compressed-tensors, mxfp4", "MLX, mxfp4"])
def test_packed_without_a_format_mxfp4_stays_as_it_is(name: str, tmp_path: Path) -> None:
    stored, _ = CASES[name].make().write(tmp_path)
    found = moecli("pack", stored, "--dtype", "auto", "-o", tmp_path / "packed", "--json", "--yes").json
    assert found["dtype"] == "mxfp4" and not found["conversion_error"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8, rows", "q8"), ("gptq, 4 bits", "q4"), ("awq", "q4"), ("ModelOpt, nvfp4", "q4"),
        ("compressed-tensors, 8 bits, groups", "q8"), ("MLX, 4 bits", "q4"), ("bitsandbytes, nf4 twice", "q4"),
    ],
)  # fmt: skip
def test_packed_without_a_format_it_keeps_its_width(name: str, dtype: str, tmp_path: Path) -> None:
    """And says what that cost: as much as the difference of the weights."""
    stored, _ = CASES[name].make().write(tmp_path)
    ended = moecli("pack", stored, "--dtype", "auto", "-o", tmp_path / "packed", "--yes")
    cost = float(re.search(r"changed weights by ([0-9.]+)% of their size", ended.err)[1])
    assert f"{dtype} " in ended.err and (0.2 < cost < 1 if dtype == "q8" else 2 < cost < 12)
    plain = moecli("pack", tmp_path / "plain", "--dtype", dtype, "-o", tmp_path / "same", "--json", "--yes").json
    assert plain["conversion_error"] is None
    assert moecli("verify", tmp_path / "packed").code == 0
    assert moecli("run", tmp_path / "packed", "--help").code == 0


@pytest.mark.parametrize("name", ["fp8, small blocks", "mxfp4", "bitsandbytes, nf4 twice", "MLX, 4 bits"])
def test_scales_in_another_shard_are_pulled_and_packed_as_one(name: str, tmp_path: Path) -> None:
    """Shard by shard, where codes and scales lie apart."""
    stored, _ = CASES[name].make().write(tmp_path / "made")
    tensors = load_file(stored / "model.safetensors")
    beside = re.compile(r"scale|biases|quant_|absmax")
    names = [sorted(name for name in tensors if bool(beside.search(name)) == late) for late in (False, True)]
    (stored / "model.safetensors").unlink()
    for number, part in enumerate(names, 1):
        save_file({name: tensors[name] for name in part}, stored / f"model-{number:05}-of-00002.safetensors")
    config = load_config(stored / "config.json")
    shards = sorted(stored.glob("*.safetensors"))
    headers = {each.name: each.at(Path(shard.name)) for shard in shards for each in read_header(shard).values()}
    weights = announced("parts", config, lambda: headers)
    origin = Origin("parts", "someone/parts", "c0ffee", None, "")
    with packing_shards(tmp_path / "store", weights, choose_layout(weights, "q8"), origin) as packer:
        assert packer.pending == [shard.name for shard in shards]
        for shard in packer.pending:
            packer.take(shard, stored / shard)
        pulled = packer.finish(stored)
    one, other = (contents(store.folder) for store in (pulled, packed(stored, tmp_path / "packed", "q8")))
    assert all(one[name] == other[name] for name in one if name.endswith(".safetensors"))


def test_what_is_decoded_counts_for_the_format_of_config_json(tmp_path: Path) -> None:
    """GPTQ's numbers are fp16 by their scales, in models meant for bf16."""
    encoded = CASES["gptq, 4 bits"].make()
    stored, _ = Encoded(encoded.stored, encoded.plain, encoded.config | {"dtype": "bfloat16"}).write(tmp_path)
    config = json.loads((stored / "config.json").read_text())
    config.pop("torch_dtype")
    (stored / "config.json").write_text(json.dumps(config))
    assert open_source(stored).dtype == "bf16"


def test_what_the_file_says_of_a_matrix_is_held_against_the_model(tmp_path: Path) -> None:
    """bitsandbytes says shapes in a tensor: before it is here those of the model are taken, then both compared."""
    stored, _ = CASES["bitsandbytes, nf4"].make().write(tmp_path)
    config = load_config(stored / "config.json")
    weights = announced("x", config, lambda: read_header(stored / "model.safetensors"))
    assert [part.stored.shape for part in experts(weights).values()] == [
        part.stored.shape for part in experts(open_source(stored)).values()
    ]
    lying = announced("x", config | {"dtype": "float16"}, lambda: read_header(stored / "model.safetensors"))
    part = next(iter(experts(lying).values()))
    with pytest.raises(CheckpointError, match=r"says 64 columns in bf16, not 64 as the model"):
        read_slice(lying.checkpoint, part, torch.float16)
    with pytest.raises(CheckpointError, match="is no matrix of the model"):
        announced("x", config | {"intermediate_size": 97}, lambda: read_header(stored / "model.safetensors"))
