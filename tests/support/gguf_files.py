"""GGUF files of tiny checkpoints, as llama.cpp's converter makes them: what it wrote is in `tests/data/llama_cpp.json`.

That file was made by `python -m tests.support.llama_cpp`, which runs the converter and llama.cpp itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from moecli.checkpoint.encodings.ggml import TYPES
from moecli.text import sentencepiece
from tests.support import checkpoints, gguf_changes, plain_checkpoints
from tests.support.grok_replicas import CONFIG, Grok, write_v2ray

Array = np.ndarray
_MAPPINGS = dict(gguf.TensorNameMap.block_mappings_cfg)
GOLDENS = Path(__file__).parents[1] / "data" / "llama_cpp.json"
_BY_CODE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "F16", "BF16", "F32")  # the package can quantise to them
_HALVES = {  # where the scales of a block are, which random bytes would make no numbers; of others: (0,)
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
    "Q4_1": (0, 2), "Q5_1": (0, 2), **dict.fromkeys(("NVFP4", "IQ1_M", "MXFP4", "F32", "F16", "BF16"), ()),
}  # fmt: skip
# Whose queries and keys the converter brings to another order.
_TURNED = ("llama", "deepseek", "granitemoe", "granitehybrid", "nemotron_h_moe", "arctic")


@dataclass(frozen=True)
class Family:
    """How a family is made: its configuration, and what published files of it say that transformers leaves out."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)


_WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}  # blocks of 256 fit
_MLA = {
    "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 256, "q_lora_rank": 256,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 256,
    "moe_intermediate_size": 256, "n_routed_experts": 8, "n_shared_experts": 1,
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    "grok-1": Family(
        {
            "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 256, "output_multiplier_scale": 0.5,
            "attn_output_multiplier": 0.125,
        },
        {"architectures": ["Grok1ForCausalLM"], "num_local_experts": 4},
    ),
    "mixtral": Family(_WIDE | {"intermediate_size": 256, "num_local_experts": 4}),
    "llama": Family(_WIDE | {"intermediate_size": 256}),
    "olmoe": Family(_WIDE | {"intermediate_size": 256, "num_experts": 4, "num_key_value_heads": 4}),
    "qwen2_moe": Family(),
    "qwen3_moe": Family(
        _WIDE
        | {
            "moe_intermediate_size": 256, "num_experts": 4, "head_dim": 32, "intermediate_size": 256,
            "norm_topk_prob": True, "tie_word_embeddings": True,
        }
    ),
    "deepseek": Family(),
    "deepseek_v2": Family(_MLA | {"routed_scaling_factor": 2.0}),
    "deepseek_v3": Family(
        _MLA | {"n_group": 4, "topk_group": 2}, {"scoring_func": "sigmoid", "num_nextn_predict_layers": 0}
    ),
    "dbrx": Family({"d_model": 256, "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2}}),
    "glm4_moe": Family({}, {"num_nextn_predict_layers": 0}),
    "glm4_moe_lite": Family({}, {"scoring_func": "sigmoid"}),
    "granitemoe": Family(),
    "arctic": Family({"rms_norm_eps": 1e-5}),
    "minimax_m2": Family({}, {"scoring_func": "sigmoid"}),
    "ernie4_5_moe": Family({"intermediate_size": 64}),  # as llama.cpp reckons the shared width from
    "hunyuan_v1_moe": Family({}, {"moe_intermediate_size": [24, 24], "num_shared_expert": [1, 1], "moe_topk": [3, 3]}),
    "bailing_moe": Family({"head_dim": 8}, {"norm_topk_prob": True, "score_function": "sigmoid"}),
    "dots1": Family({"num_key_value_heads": 4}, {"scoring_func": "sigmoid"}),
    "gpt_oss": Family({"hidden_size": 64, "intermediate_size": 64, "sliding_window": 8}),
    "afmoe": Family(
        {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8},
        {"score_func": "sigmoid", "route_norm": True},
    ),
    "exaone_moe": Family({"sliding_window": 8}, {"scoring_func": "sigmoid"}),
    "cohere2_moe": Family({"sliding_window": 8}),
    "llama4": Family({"no_rope_layer_interval": 4, "floor_scale": 8192, "attention_chunk_size": 8192}),
    "laguna": Family({"sliding_window": 8}),
    "lfm2_moe": Family(),
    "jamba": Family(),
    "granitemoehybrid": Family(
        {"mamba_d_head": 16, "max_position_embeddings": 2**20}, {"layer_types": ["mamba", "attention", "mamba"]}
    ),
    "nemotron_h": Family(
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "moe"],
            "n_group": 1, "mamba_head_dim": 16, "max_position_embeddings": 2**20,
        }
    ),
    "qwen3_next": Family({"norm_topk_prob": True, "linear_value_head_dim": 12}),
    "qwen3_5_moe": Family(
        {
            "linear_value_head_dim": 12,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        }
    ),
}  # fmt: skip


@cache
def goldens() -> dict[str, Any]:
    """What llama.cpp made: `families` (metadata, tensors, greedy tokens), `types` and `tokenizers`."""
    found: dict[str, Any] = json.loads(GOLDENS.read_text())
    return found


@dataclass(frozen=True)
class Made:
    """A GGUF file, and the folder of a checkpoint whose weights are those that its blocks stand for."""

    file: Path
    plain: Path


def source(family: str, folder: Path, **changes: Any) -> Path:
    """The checkpoint that is converted, as it would be published."""
    how = FAMILIES[family]
    settings = dict(how.changes) | changes
    if family == "grok-1":
        write_v2ray(Grok(config=CONFIG | settings), folder)
    elif family in plain_checkpoints.FAMILIES:
        plain_checkpoints.write(folder, *plain_checkpoints.make(family, settings))
    else:
        checkpoints.write(checkpoints.make(family, **settings), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(how.said)))
    return folder


def make(
    family: str, folder: Path, kind: str = "F32", single: bool = False, joined: bool = False, fused: bool = False,
    most: int = 0, tokenizer: Callable[[gguf.GGUFWriter], object] | None = None,
    said: Mapping[str, Any] | None = None, **changes: Any,
) -> Made:  # fmt: skip
    """As the converter would make it, of `kind`; `changes` are of the configuration and of nothing that metadata says.

    `single`: a tensor for each expert, `joined`: kv_b in one, both as in older files; `fused`: gate and up of all
    experts in one, as newer ones may; `most`: tensors in a part; `said`: metadata that differs.
    """
    checkpoint = source(family, folder / "hf", **changes)
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = {name: each.float().numpy() for name, each in load_file(checkpoint / "model.safetensors").items()}
    metadata = goldens()["families"][family]["metadata"] | dict(said or {})
    architecture = metadata.pop("general.architecture")
    writer = gguf.GGUFWriter(folder / "tiny.gguf", architecture, **({"split_max_tensors": most} if most else {}))
    for key, value in metadata.items():
        if not key.startswith("tokenizer.") or tokenizer is None:
            _add(writer, key, changes.get("vocab_size", value) if key.endswith("vocab_size") else value)
    if tokenizer is not None:
        tokenizer(writer)
    plain = _Writer(writer, architecture, config, kind).write(tensors, single, joined, fused)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if family == "grok-1":  # the converter wants another name
        config["architectures"] = CONFIG["architectures"]
    (folder / "plain").mkdir()
    save_file({name: torch.from_numpy(each.copy()) for name, each in plain.items()}, folder / "plain/model.safetensors")
    (folder / "plain" / "config.json").write_text(json.dumps(config | {"dtype": "float32", "torch_dtype": "float32"}))
    return Made(min(folder.glob("tiny*.gguf")), folder / "plain")


def config_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is of the language model."""
    found: dict[str, Any] = config.get("text_config", config)
    return found


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


class _Writer:
    """Tensors of a checkpoint into one file, by the names and in the arrangement of llama.cpp."""

    def __init__(self, writer: gguf.GGUFWriter, architecture: str, config: dict[str, Any], kind: str) -> None:
        known = gguf_changes.LIKE.get(architecture, architecture)
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == known)
        gguf.TensorNameMap.block_mappings_cfg = dict(_MAPPINGS)  # which Arctic's map would change for all others
        self._names = gguf.get_tensor_name_map(arch, 16)
        self._writer, self._architecture, self._config, self._kind = writer, architecture, config, kind
        self.plain: dict[str, Array] = {}

    def write(self, tensors: dict[str, Array], single: bool, joined: bool, fused: bool) -> dict[str, Array]:
        """All of them; returns what their blocks stand for, by the names of the checkpoint."""
        stacks: dict[str, dict[int, Array]] = {}
        for name, each in sorted(tensors.items()):
            if match := re.fullmatch(r"(.*\.layers\.\d+\..*experts|.*\.moe)\.(\d+)\.(\w+)\.weight", name):
                stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = each
            elif match := re.fullmatch(r"transformer\.(blocks\.\d+)\.ffn\.experts\.mlp\.([wv][12])", name):
                self._of_dbrx(name, each, match[2])
            elif match := re.fullmatch(r"model\.layers\.(\d+)\.block_sparse_moe\.(in|out)put_linear\.weight", name):
                self._of_granite(name, each, int(match[1]))
            elif ".kv_b_proj." in name and not joined:
                self._keys_and_values(name, each)
            elif dealt := gguf_changes.pieces(name, each.shape, self._architecture, config_of(self._config)):
                self._dealt(name, each, dealt)
            else:
                self._plainly(name, each)
        if fused:
            self._gate_with_up(stacks)
        for name, experts in stacks.items():
            prefix, _, matrix = name.rpartition(".")
            if single:
                old = self._name(name).removesuffix("_exps")
                for number, each in experts.items():
                    self.plain[f"{prefix}.{number}.{matrix}.weight"] = self.add(f"{old}.{number}.weight", each)
            else:
                found = self.add(f"{self._name(name)}.weight", np.stack([experts[each] for each in sorted(experts)]))
                self.plain |= {f"{prefix}.{number}.{matrix}.weight": found[number] for number in experts}
        return self.plain

    def add(self, name: str, numbers: Array, kind: str | None = None, heads: int = 0) -> Array:
        """Rows into blocks, or F16 where these do not fit; returns what they stand for, in the order that was given."""
        kind = self._kind if kind is None else kind
        if numbers.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]:
            kind = "F16"
        codes, found = encode(numbers, kind)
        if heads:  # to pairs side by side
            rows = len(codes) // heads
            codes = codes.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(codes.shape)
        data = codes.view(np.float32).reshape(numbers.shape) if kind == "F32" else codes
        self._writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=gguf.GGMLQuantizationType[kind])
        return found

    def _dealt(self, name: str, numbers: Array, dealt: list[gguf_changes.Piece]) -> None:
        block = re.sub(r".*\.layers\.(\d+)\..*", r"blk.\1.", name)
        self.plain[name] = numbers.copy()
        for each in dealt:
            plain = self.plain[name].swapaxes(1, 2) if each.turned else self.plain[name]
            some = np.take(numbers.swapaxes(1, 2) if each.turned else numbers, each.places, each.axis)
            some = gguf_changes.written(name, some, self._architecture, config_of(self._config))
            found = self.add(block + each.suffix, np.ascontiguousarray(some), each.kind)
            back = gguf_changes.read_back(name, found, self._architecture)
            there = (slice(None),) * each.axis + (each.places,)
            plain[there] = back.reshape(plain[there].shape)

    def _name(self, name: str) -> str:
        if match := re.fullmatch(r"\w+\.layers\.(\d+)\..*(correction_bias|expert_bias)", name):
            return f"blk.{match[1]}.exp_probs_b.bias"
        if name.startswith("backbone."):
            name = name.replace(".dt_bias", ".dt.bias").replace("mixer.experts", "mlp.experts")
            name = name.replace("backbone", "model") if ".mlp.experts" in name else name
        name = name.replace(".dt_bias", ".dt_proj.bias")
        for own, called in gguf_changes.NAMES.get(self._architecture, {}).items():
            if match := re.fullmatch(rf".*\.layers\.(\d+)\.{re.escape(own)}(\.weight)", name):
                return f"blk.{match[1]}.{called}{match[2]}"
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        found = found or self._names.get_name(name.removeprefix("model."))
        assert found is not None, name
        return found

    def _plainly(self, name: str, numbers: Array) -> None:
        target = self._name(f"{name}.weight" if name.endswith(".sinks") else name)
        numbers_there = gguf_changes.written(name, numbers, self._architecture, config_of(self._config))
        kind = self._kind if numbers.ndim == 2 and not re.search("gate_inp|exp_probs|ssm_a$", target) else "F32"
        heads = 0
        if self._architecture in _TURNED and (match := re.search(r"(?:self_attn|mixer)\.([qk])_proj", name)):
            heads = self._config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        found = self.add(target, np.ascontiguousarray(numbers_there), kind, heads)
        self.plain[name] = gguf_changes.read_back(name, found, self._architecture).reshape(numbers.shape)

    def _of_dbrx(self, name: str, numbers: Array, matrix: str) -> None:
        stacked = numbers.reshape(self._config["ffn_config"]["moe_num_experts"], -1, numbers.shape[-1])
        turned = stacked.swapaxes(1, 2) if matrix == "w2" else stacked
        found = self.add(f"{self._name(name)}.weight", np.ascontiguousarray(turned))
        self.plain[name] = (found.swapaxes(1, 2) if matrix == "w2" else found).reshape(numbers.shape)

    def _of_granite(self, name: str, numbers: Array, layer: int) -> None:
        if ".output_" in name:
            self.plain[name] = self.add(f"blk.{layer}.ffn_down_exps.weight", numbers)
            return
        parts = [np.ascontiguousarray(each) for each in np.split(numbers, 2, 1)]
        found = [
            self.add(f"blk.{layer}.ffn_{at}_exps.weight", each) for at, each in zip(("gate", "up"), parts, strict=True)
        ]
        self.plain[name] = np.concatenate(found, 1)

    def _keys_and_values(self, name: str, numbers: Array) -> None:
        both = numbers.reshape(self._config["num_attention_heads"], -1, numbers.shape[-1])
        keys, values = np.split(both, [self._config["qk_nope_head_dim"]], 1)
        block = self._name(name).removesuffix("attn_kv_b.weight")
        found_keys = self.add(f"{block}attn_k_b.weight", np.ascontiguousarray(keys.swapaxes(1, 2)))
        found_values = self.add(f"{block}attn_v_b.weight", np.ascontiguousarray(values))
        self.plain[name] = np.concatenate([found_keys.swapaxes(1, 2), found_values], 1).reshape(numbers.shape)

    def _gate_with_up(self, stacks: dict[str, dict[int, Array]]) -> None:
        for name in [each for each in stacks if each.endswith(".gate_proj")]:
            prefix = name.removesuffix(".gate_proj")
            gates, ups = stacks.pop(name), stacks.pop(f"{prefix}.up_proj")
            both = np.stack([np.concatenate([gates[each], ups[each]]) for each in sorted(gates)])
            target = self._name(name).replace("ffn_gate_exps", "ffn_gate_up_exps")
            for number, found in enumerate(self.add(f"{target}.weight", both)):
                halves = np.split(found, 2)
                self.plain |= {
                    f"{prefix}.{number}.{at}_proj.weight": each for at, each in zip(("gate", "up"), halves, strict=True)
                }


def encode(numbers: Array, kind: str) -> tuple[Array, Array]:
    """Blocks of some type [.., bytes of a row] and what they stand for: nearest, or random where none can be found."""
    code = gguf.GGMLQuantizationType[kind]
    if kind in _BY_CODE:
        codes = gguf.quants.quantize(numbers.astype(np.float32), code)
    else:
        codes = random_blocks(kind, numbers.size // gguf.GGML_QUANT_SIZES[code][0], numbers.size)
        codes = codes.reshape(*numbers.shape[:-1], -1)
    return codes, gguf.quants.dequantize(codes, code).reshape(numbers.shape)


def random_blocks(kind: str, count: int = 64, seed: int = 0) -> Array:
    """Blocks of some type [count, bytes of one], of random codes and a small scale."""
    codes = np.random.default_rng(seed).integers(0, 256, (count, TYPES[kind].size), np.uint8)
    if kind == "IQ1_M":  # whose scale lies in the highest bits of four numbers
        codes[:, 49::2] = codes[:, 49::2] & 15 | np.array([0, 0, 0, 16], np.uint8)
    for at in _HALVES.get(kind, (0,)):
        codes[:, at : at + 2] = np.frombuffer(np.float16(2**-13).tobytes(), np.uint8)
    if kind in ("MXFP4", "NVFP4"):
        codes[:, : 1 if kind == "MXFP4" else 4] %= 120
    if kind in ("F32", "BF16", "F16"):
        codes[:, -1] &= 59
    return codes


def with_pieces(content: bytes) -> Callable[[gguf.GGUFWriter], None]:
    """A SentencePiece model as the converter writes it."""
    model = sentencepiece.read(content)

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([piece.text for piece in model.pieces])
        writer.add_token_scores([piece.score for piece in model.pieces])
        writer.add_token_types([int(piece.kind) for piece in model.pieces])
        writer.add_add_space_prefix(model.normalizer.dummy_prefix)
        for text, add in ((model.bos, writer.add_bos_token_id), (model.eos, writer.add_eos_token_id)):
            if text is not None and (number := model.id_of(text)) is not None:
                add(number)

    return write


def with_merges(tokenizer: Mapping[str, Any], pre: str, template: str | None = None) -> Callable[..., None]:
    """A tokenizer.json of bytes as the converter writes it."""
    vocabulary = dict(tokenizer["model"]["vocab"])
    added = {each["content"]: each for each in tokenizer["added_tokens"]}
    vocabulary |= {text: each["id"] for text, each in added.items()}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [gguf.TokenType.CONTROL if text in added else gguf.TokenType.NORMAL for text in tokens]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(vocabulary["<|bos|>"])
        writer.add_eos_token_id(vocabulary["<|eos|>"])
        writer.add_add_bos_token(True)
        if template is not None:
            writer.add_chat_template(template)

    return write
