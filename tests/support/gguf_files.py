"""GGUF files of tiny checkpoints, written by the `gguf` package, as llama.cpp's converter names and arranges them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from moecli.text import sentencepiece
from tests.support import checkpoints
from tests.support.grok_replicas import CONFIG, Grok, write_v2ray

Array = np.ndarray
_BY_CODE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "F16", "BF16", "F32")  # the package can quantise to them
_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # others: (0,)


@dataclass(frozen=True)
class Family:
    """How a family is converted: llama.cpp's name of it, a configuration with room for blocks of 256, its settings."""

    architecture: str
    changes: Mapping[str, Any]
    describe: Callable[[gguf.GGUFWriter, dict[str, Any]], object]
    fixed: Mapping[str, Any]  # what llama.cpp takes for granted


_WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
_MLA = {
    "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 256, "q_lora_rank": 256,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 256,
    "moe_intermediate_size": 256, "n_routed_experts": 8, "n_shared_experts": 1,
}  # fmt: skip


def _moe(writer: gguf.GGUFWriter, config: dict[str, Any], experts: str, used: str = "num_experts_per_tok") -> None:
    writer.add_expert_count(config[experts])
    writer.add_expert_used_count(config[used])
    writer.add_feed_forward_length(config.get("intermediate_size", 256))


def _mixtral(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _moe(writer, config, "num_local_experts")


def _olmoe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _moe(writer, config, "num_experts")


def _qwen3_moe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _moe(writer, config, "num_experts" if "num_experts" in config else "num_local_experts")
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _deepseek(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _moe(writer, config, "n_routed_experts")
    rope, nope, value, rank = (
        config[key] for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    writer.add_rope_dimension_count(rope)
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(value)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(bool(config["norm_topk_prob"]))
    if "DeepseekV3" in config["architectures"][0]:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])


def _dbrx(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    ffn = config["ffn_config"]
    writer.add_expert_count(ffn["moe_num_experts"])
    writer.add_expert_used_count(ffn["moe_top_k"])
    writer.add_feed_forward_length(ffn["ffn_hidden_size"])
    writer.add_clamp_kqv(config["attn_config"]["clip_qkv"])


def _grok(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    _moe(writer, config, "num_experts")
    for key, value in {
        "embedding_scale": config["embedding_multiplier_scale"], "logit_scale": config["output_multiplier_scale"],
        "attention.output_scale": config["attn_output_multiplier"],
    }.items():  # fmt: skip
        writer.add_float32(f"grok.{key}", value)


FAMILIES: dict[str, Family] = {
    "grok-1": Family(
        "grok",
        {
            "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 256, "output_multiplier_scale": 0.5,
            "attn_output_multiplier": 0.125,
        },
        _grok, {},
    ),
    "mixtral": Family("llama", _WIDE | {"intermediate_size": 256, "num_local_experts": 4}, _mixtral, {}),
    "llama": Family(
        "llama", _WIDE | {"intermediate_size": 256},
        lambda writer, config: writer.add_feed_forward_length(config["intermediate_size"]), {},
    ),
    "olmoe": Family("olmoe", _WIDE | {"intermediate_size": 256, "num_experts": 4}, _olmoe, {"norm_topk_prob": False}),
    "qwen3_moe": Family(
        "qwen3moe", _WIDE | {"moe_intermediate_size": 256, "num_experts": 4, "head_dim": 32, "intermediate_size": 256},
        _qwen3_moe, {"norm_topk_prob": True, "tie_word_embeddings": True},
    ),
    "deepseek_v2": Family("deepseek2", _MLA, _deepseek, {"routed_scaling_factor": 2.0}),
    "deepseek_v3": Family("deepseek2", _MLA | {"n_group": 4, "topk_group": 2}, _deepseek, {}),
    "dbrx": Family(
        "dbrx", {"d_model": 256, "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2}}, _dbrx,
        {},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A GGUF file, and the folder of a checkpoint whose weights are those that its blocks stand for."""

    file: Path
    plain: Path


def make(
    family: str, folder: Path, kind: str = "F32", single: bool = False, joined: bool = False, most: int = 0,
    tokenizer: Callable[[gguf.GGUFWriter], object] | None = None, **changes: Any,
) -> Made:  # fmt: skip
    """`single`: a tensor for each expert, `joined`: kv_b in one, both as in older files; `most`: tensors in a part."""
    how = FAMILIES[family]
    settings = dict(how.changes) | dict(how.fixed) | changes
    if family == "grok-1":  # which transformers lacks
        source = write_v2ray(Grok(config=CONFIG | settings), folder / "hf")
    else:
        source = checkpoints.write(checkpoints.make(family, **settings), folder / "hf")
    config = json.loads((source / "config.json").read_text())
    tensors = {name: each.float().numpy() for name, each in load_file(source / "model.safetensors").items()}
    file = folder / "tiny.gguf"
    split = {"split_max_tensors": most} if most else {}
    writer = gguf.GGUFWriter(file, how.architecture, **split)
    _describe(writer, how, config)
    if tokenizer is not None:
        tokenizer(writer)
    plain = _write(writer, how.architecture, tensors, config, kind, single, joined)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "plain").mkdir()
    save_file({name: torch.from_numpy(each.copy()) for name, each in plain.items()}, folder / "plain/model.safetensors")
    (folder / "plain" / "config.json").write_text(json.dumps(config | {"dtype": "float32", "torch_dtype": "float32"}))
    first = next(iter(sorted(folder.glob("tiny*.gguf"))))
    return Made(first, folder / "plain")


def _describe(writer: gguf.GGUFWriter, how: Family, config: dict[str, Any]) -> None:
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    heads = config.get("num_attention_heads", config.get("n_heads"))
    rope = config.get("rope_parameters") or config.get("attn_config") or {}
    writer.add_block_count(layers)
    writer.add_context_length(config.get("max_position_embeddings", config.get("max_seq_len")))
    writer.add_embedding_length(config.get("hidden_size", config.get("d_model")))
    writer.add_head_count(heads)
    kv_heads = config.get("attn_config", {}).get("kv_n_heads") or config["num_key_value_heads"]
    writer.add_head_count_kv(1 if how.architecture == "deepseek2" else kv_heads)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta", 10000.0))
    how.describe(writer, config)


def _write(
    writer: gguf.GGUFWriter, architecture: str, tensors: dict[str, Array], config: dict[str, Any], kind: str,
    single: bool, joined: bool,
) -> dict[str, Array]:  # fmt: skip
    """All tensors into the file; what they stand for, by the names of the checkpoint."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, 8)
    plain: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}

    def add(name: str, numbers: Array, kind: str, heads: int = 0) -> Array:
        """Rows into blocks, or F16 where these do not fit; returns what they stand for, in the order that was given."""
        if numbers.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]:
            kind = "F16"
        codes, found = encode(numbers, kind)
        if heads:  # to pairs side by side
            rows = len(codes) // heads
            codes = codes.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(len(codes), -1)
        data = codes.view(np.float32).reshape(numbers.shape) if kind == "F32" else codes
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        return found

    for name, each in sorted(tensors.items()):
        expert = re.fullmatch(r"(.*\.layers\.\d+\..*experts|.*\.moe)\.(\d+)\.(\w+)\.weight", name)
        if expert is not None:
            stacks.setdefault(f"{expert[1]}.{expert[3]}", {})[int(expert[2])] = each
            continue
        dbrx = re.fullmatch(r"transformer\.(blocks\.\d+)\.ffn\.experts\.mlp\.([wv][12])", name)
        if dbrx is not None:
            experts = config["ffn_config"]["moe_num_experts"]
            stacked = each.reshape(experts, -1, each.shape[-1])
            turned = stacked.swapaxes(1, 2) if dbrx[2] == "w2" else stacked
            target = names.get_name(f"transformer.{dbrx[1]}.ffn.experts.mlp.{dbrx[2]}")
            found = add(f"{target}.weight", np.ascontiguousarray(turned), kind)
            plain[name] = (found.swapaxes(1, 2) if dbrx[2] == "w2" else found).reshape(each.shape)
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name.endswith("e_score_correction_bias"):
            target = names.get_name(name.replace("_bias", ".bias"), try_suffixes=(".bias",)) or target
        assert target is not None, name
        if ".kv_b_proj." in name and not joined:
            heads = config["num_attention_heads"]
            both = each.reshape(heads, -1, each.shape[-1])
            keys, values = np.split(both, [config["qk_nope_head_dim"]], 1)
            block = target.removesuffix("attn_kv_b.weight")
            found_keys = add(f"{block}attn_k_b.weight", np.ascontiguousarray(keys.swapaxes(1, 2)), kind)
            found_values = add(f"{block}attn_v_b.weight", np.ascontiguousarray(values), kind)
            plain[name] = np.concatenate([found_keys.swapaxes(1, 2), found_values], 1).reshape(each.shape)
            continue
        own = kind if each.ndim == 2 and "gate_inp" not in target else "F32"
        heads = 0
        if architecture == "llama" and (match := re.search(r"self_attn\.([qk])_proj", name)):
            heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        plain[name] = add(target, each, own, heads)
    for name, experts in stacks.items():
        target = names.get_name(name) or names.get_name(re.sub(r"^model\.", "", name))
        assert target is not None, name
        prefix, _, matrix = name.rpartition(".")
        if single:
            old = target.removesuffix("_exps")
            for number, each in experts.items():
                plain[f"{prefix}.{number}.{matrix}.weight"] = add(f"{old}.{number}.weight", each, kind)
        else:
            found = add(f"{target}.weight", np.stack([experts[number] for number in sorted(experts)]), kind)
            plain |= {f"{prefix}.{number}.{matrix}.weight": found[number] for number in experts}
    return plain


def encode(numbers: Array, kind: str) -> tuple[Array, Array]:
    """Blocks of some type [.., bytes of a row] and what they stand for: nearest, or random where none can be found."""
    code = gguf.GGMLQuantizationType[kind]
    if kind in _BY_CODE:
        codes = gguf.quants.quantize(numbers.astype(np.float32), code)
    else:
        block, size = gguf.GGML_QUANT_SIZES[code]
        chance = np.random.default_rng(numbers.size)
        codes = chance.integers(0, 256, (numbers.size // block, size), np.uint8)
        for at in _HALVES.get(kind, (0,)):
            codes[:, at : at + 2] = np.frombuffer(np.float16(2**-13).tobytes(), np.uint8)
        codes = codes.reshape(*numbers.shape[:-1], -1)
    return codes, gguf.quants.dequantize(codes, code).reshape(numbers.shape)


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
