"""A GGUF file of random Q4_0 weights in a known shape, for llama.cpp: python -m benchmarks.gguf_file olmoe FILE

Matrices are Q4_0, the output head and the input table too; routers and norms are F32. Speed does not depend on the
values, so blocks are random nibbles under one scale; router rows are random too, so that tokens go to all experts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from benchmarks.checkpoint import read_spec
from moecli.model.spec import MLA, FeedForward, GroupedQuery, Mixture, ModelSpec, Part
from moecli.model.tensors import Tensor, dense_tensors, expert_shapes

_ARCHITECTURES = {
    "olmoe": "olmoe", "mixtral": "llama", "deepseek_v2": "deepseek2", "qwen3_moe": "qwen3moe", "dbrx": "dbrx",
    "grok-1": "grok", "qwen3_5_moe": "qwen35moe",
}  # fmt: skip
_NAMES = {
    "embedding": "token_embd", "final_norm": "output_norm", "lm_head": "output",
    "attn_norm": "attn_norm", "o": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "q": "attn_q", "kv_a": "attn_kv_a_mqa", "kv_a_norm": "attn_kv_a_norm",
    "post_attn_norm": "attn_output_norm", "post_ffn_norm": "layer_output_norm",
    "ffn_norm": "ffn_norm", "router": "ffn_gate_inp", "down": "ffn_down", "shared_down": "ffn_down_shexp",
}  # fmt: skip
_OTHER_NAMES = {
    "dbrx": {"qkv": "attn_qkv", "ffn_norm": "attn_output_norm"},
    "qwen3_5_moe": {
        "ffn_norm": "post_attention_norm", "mixer_norm": "ssm_norm", "mixer_out": "ssm_out", "mixer_decay": "ssm_a.",
        "mixer_step_bias": "ssm_dt.bias",
    },
}  # fmt: skip
_BLOCK, _BLOCK_BYTES = 32, 18  # Q4_0: an fp16 scale and 32 nibbles, each a multiple of it from -8 to 7
_SPREAD = 4.32  # the standard deviation of nibbles from -7 to 7


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the file, the last axis contiguous."""

    name: str
    shape: tuple[int, ...]
    quantised: bool
    read: float  # the share of it that one decode step reads

    @property
    def size(self) -> int:
        count = math.prod(self.shape)
        return count // _BLOCK * _BLOCK_BYTES if self.quantised else 4 * count


def write(shape: str, path: Path, seed: int = 0) -> None:
    """Tensor by tensor: no more than the largest is in memory."""
    spec = read_spec(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_suffix(".growing")
    writer = GGUFWriter(growing, _ARCHITECTURES[spec.family])
    _describe(writer, spec)
    found = list(tensors(spec))
    for tensor in found:
        if tensor.quantised:
            kind, bytes_shape = GGMLQuantizationType.Q4_0, (*tensor.shape[:-1], _row_bytes(tensor))
            writer.add_tensor_info(tensor.name, bytes_shape, np.dtype(np.uint8), tensor.size, kind)
        else:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for tensor in found:
        writer.write_tensor_data(_random(tensor, random))
    writer.close()
    growing.replace(path)


def read_bytes_per_token(spec: ModelSpec) -> int:
    """Weights that one decode step reads."""
    return round(sum(tensor.size * tensor.read for tensor in tensors(spec)))


def tensors(spec: ModelSpec) -> Iterator[Stored]:
    """All of them, named as llama.cpp knows them."""
    for tensor in dense_tensors(spec):
        prefix = "" if tensor.layer is None else f"blk.{tensor.layer}."
        for name, shape in _parts(spec, tensor):
            quantised = len(shape) > 1 and tensor.part is not Part.ROUTER and not shape[-1] % _BLOCK
            whole = name.rstrip(".") if "." in name else f"{name}.weight"
            yield Stored(f"{prefix}{whole}", shape, quantised, 0.0 if tensor.role == "embedding" else 1.0)
    for layer, mixture in spec.mixtures:
        router = mixture.router
        for matrix, shape in expert_shapes(spec.hidden_size, mixture.expert).items():
            name = f"blk.{layer}.ffn_{matrix}_exps.weight"
            yield Stored(name, (router.experts, *shape), True, router.top_k / router.experts)


def _parts(spec: ModelSpec, tensor: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What one tensor of a spec is there: fused projections are several, kv_b is cut for its absorption."""
    rows, *rest = tensor.shape
    attention = spec.layers[tensor.layer or 0].attention
    if other := _OTHER_NAMES.get(spec.family, {}).get(tensor.role):
        yield other, tensor.shape
    elif tensor.role in ("mixer_in", "mixer_gates"):  # of a gated delta net
        mixer = spec.layers[tensor.layer or 0].recurrent
        assert mixer is not None
        second = mixer.heads * (mixer.head_dim if tensor.role == "mixer_in" else 1)
        names = ("attn_qkv", "attn_gate") if tensor.role == "mixer_in" else ("ssm_beta", "ssm_alpha")
        yield from ((name, (height, *rest)) for name, height in zip(names, (rows - second, second), strict=True))
    elif tensor.role == "mixer_conv":
        yield "ssm_conv1d", (rows, rest[-1])
    elif tensor.role == "shared_gate":
        yield "ffn_gate_inp_shexp", tuple(rest)
    elif tensor.role == "attn_gate":
        return  # beside each head's query
    elif tensor.role == "qkv" and isinstance(attention, GroupedQuery):
        widths = (attention.query_width + attention.gate_width, attention.kv_width, attention.value_width)
        yield from ((f"attn_{name}", (width, *rest)) for name, width in zip("qkv", widths, strict=True))
    elif tensor.role == "kv_b" and isinstance(attention, MLA):
        yield "attn_k_b", (attention.heads, attention.kv_rank, attention.nope_dim)
        yield "attn_v_b", (attention.heads, attention.value_dim, attention.kv_rank)
    elif tensor.role in ("gate_up", "shared_gate_up"):
        suffix = "_shexp" if tensor.role.startswith("shared") else ""
        yield from ((f"ffn_{name}{suffix}", (rows // 2, *rest)) for name in ("gate", "up"))
    else:
        yield _NAMES[tensor.role], tensor.shape


def _describe(writer: GGUFWriter, spec: ModelSpec) -> None:
    """The model's numbers, and a vocabulary that is nothing but its size. Rotary scaling is left out: it costs none."""
    attention = next(layer.attention for layer in spec.layers if layer.attention.heads)
    writer.add_block_count(len(spec.layers))
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_head_count(attention.heads)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_layer_norm_eps(spec.norm_eps)
    if isinstance(attention, GroupedQuery) and attention.clip is not None:
        writer.add_clamp_kqv(attention.clip)
    writer.add_rope_freq_base(attention.rope.theta)
    writer.add_rope_dimension_count(attention.rope.dims)
    if isinstance(attention, MLA):
        writer.add_head_count_kv(1)
        writer.add_kv_lora_rank(attention.kv_rank)
        writer.add_key_length(attention.cache_width)
        writer.add_value_length(attention.kv_rank)
        writer.add_key_length_mla(attention.head_dim)
        writer.add_value_length_mla(attention.value_dim)
    else:
        writer.add_head_count_kv(attention.kv_heads)
        writer.add_key_length(attention.head_dim)
        writer.add_value_length(attention.head_dim)
    if mixer := next((layer.recurrent for layer in spec.layers if layer.recurrent), None):
        writer.add_ssm_conv_kernel(mixer.kernel)
        writer.add_ssm_inner_size(mixer.heads * mixer.head_dim)
        writer.add_ssm_state_size(mixer.state_dim)
        writer.add_ssm_time_step_rank(mixer.heads)
        writer.add_ssm_group_count(mixer.groups)
        writer.add_rope_dimension_sections([attention.rope.dims // 2, 0, 0, 0])
    _describe_experts(writer, spec)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(int(LlamaFileType.MOSTLY_Q4_0))


def _describe_experts(writer: GGUFWriter, spec: ModelSpec) -> None:
    dense = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, FeedForward)]
    mixture: Mixture = spec.mixtures[0][1]
    router, width = mixture.router, mixture.expert.intermediate_size
    writer.add_feed_forward_length(dense[0].intermediate_size if dense else width)
    writer.add_leading_dense_block_count(len(dense))
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_count(router.experts)
    writer.add_expert_used_count(router.top_k)
    writer.add_expert_shared_count(mixture.shared.intermediate_size // width if mixture.shared else 0)
    if mixture.shared:
        writer.add_expert_shared_feed_forward_length(mixture.shared.intermediate_size)
    writer.add_expert_weights_norm(router.norm_power is not None)


def _random(tensor: Stored, random: np.random.Generator) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Weights as wide as a trained model's, the router's twice that; the norms are 1."""
    if len(tensor.shape) == 1:
        return np.full(tensor.shape, -1 if tensor.name.endswith("ssm_a") else 1, np.float32)
    spread = 1.0 if tensor.name.startswith("token_embd") else tensor.shape[-1] ** -0.5
    if not tensor.quantised:
        return (2 * spread * random.standard_normal(tensor.shape)).astype(np.float32)
    # Never -8: a mean other than 0 would add up from layer to layer until all tokens take the same experts.
    low, high = random.integers(1, 16, (2, tensor.size // _BLOCK_BYTES, _BLOCK_BYTES), np.uint8)
    blocks = low | high << 4
    blocks[:, :2] = np.frombuffer(np.float16(spread / _SPREAD).tobytes(), np.uint8)
    packed: NDArray[np.uint8] = blocks.reshape(*tensor.shape[:-1], _row_bytes(tensor))
    return packed


def _row_bytes(tensor: Stored) -> int:
    return tensor.shape[-1] // _BLOCK * _BLOCK_BYTES


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
