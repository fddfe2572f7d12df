"""One random Grok-1 as each public repository lays it out: the release's int8 files and the names of every port.

All hold the same numbers: those of the release, its codes times their scales.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.support.torch_files import write as write_torch

# Eleven layers, so that 10 comes before 2; widths that eight devices can share.
CONFIG: dict[str, Any] = {
    "architectures": ["Grok1ModelForCausalLM"],
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 11,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts": 4,
    "num_experts_per_tok": 2, "attn_output_multiplier": 8**-0.5, "max_attn_value": 30.0,
    "embedding_multiplier_scale": 8.0, "output_multiplier_scale": 0.577, "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}  # fmt: skip
_SHARES = 8  # devices that the release was cut for


class Grok:
    """The tree of parameters, by path: float32 arrays, or int8 codes [.., in, out] with bf16 scales."""

    def __init__(self, seed: int = 0, config: dict[str, Any] = CONFIG, scales: torch.dtype = torch.bfloat16) -> None:
        self.config, self.scales = config, scales
        self.random = torch.Generator().manual_seed(seed)
        width, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_experts"]
        kv = width * config["num_key_value_heads"] // config["num_attention_heads"]
        self.leaves: dict[str, Any] = {
            "language_model/in_out_embed/embeddings": self.normal(config["vocab_size"], width).numpy(),
            "language_model/rms_norm/scale": self.norm(),
        }
        for layer in range(config["num_hidden_layers"]):
            at = f"transformer/decoder_layer_{layer}/"
            self.leaves[f"{at}moe/linear/w"] = self.codes(experts, width, inner)
            self.leaves[f"{at}moe/linear_v/w"] = self.codes(experts, width, inner)
            self.leaves[f"{at}moe/linear_1/w"] = self.codes(experts, inner, width, rows=_SHARES)
            for name, outputs in {"query": width, "key": kv, "value": kv}.items():
                self.leaves[f"{at}multi_head_attention/{name}/w"] = self.codes(width, outputs)
            self.leaves[f"{at}multi_head_attention/linear/w"] = self.codes(width, width, rows=_SHARES)
            for suffix in ("", "_1", "_2", "_3"):
                self.leaves[f"{at}rms_norm{suffix}/scale"] = self.norm()
            self.leaves[f"{at}router/w"] = self.normal(width, experts).numpy()

    def normal(self, *shape: int) -> torch.Tensor:
        """Random numbers that bf16 holds exactly, as every port stores them."""
        return (torch.randn(shape, generator=self.random) * 0.5).bfloat16().float()

    def norm(self) -> np.ndarray:
        return (1 + self.normal(self.config["hidden_size"])).bfloat16().float().numpy()

    def codes(self, *shape: int, rows: int = 1) -> tuple[np.ndarray, torch.Tensor]:
        found = torch.randint(-127, 128, shape, generator=self.random, dtype=torch.int8)
        scales = torch.rand((*shape[:-2], rows, shape[-1]), generator=self.random) * 0.004 + 0.002
        return found.numpy(), scales.to(self.scales)

    def plain(self, path: str) -> torch.Tensor:
        """The numbers of a leaf [.., in, out] in bf16: codes times scales, rounded once, as in xAI's code."""
        leaf = self.leaves[path]
        if not isinstance(leaf, tuple):
            return torch.from_numpy(leaf).bfloat16()
        codes, scales = torch.from_numpy(leaf[0]), leaf[1]
        repeated = scales.float().repeat_interleave(codes.shape[-2] // scales.shape[-2], -2)
        return (codes.float() * repeated).bfloat16()


def write_release(grok: Grok, folder: Path, config: bool = True) -> Path:
    """ckpt-0/tensor00000_000 and on, in the order of the sorted tree."""
    (folder / "ckpt-0").mkdir(parents=True)
    for number, path in enumerate(sorted(grok.leaves)):
        (folder / "ckpt-0" / f"tensor{number:05}_000").write_bytes(pickled(grok.leaves[path]))
    if config:
        (folder / "config.json").write_text(json.dumps(grok.config))
    return folder


def pickled(leaf: Any) -> bytes:
    """As Python 3.10 with numpy 1.26 and ml_dtypes pickled it, which need not be here."""
    if isinstance(leaf, tuple):
        codes, scales = leaf
        leaf = _Quantised(codes, scales.numpy() if scales.dtype is torch.float32 else _BFloat16Array(scales))
    out = io.BytesIO()
    _Pickler(out, 4).dump(leaf)
    return out.getvalue()


class _Quantised:
    def __init__(self, weight: Any, scales: Any) -> None:
        self.weight, self.scales = weight, scales


class _BFloat16:
    """The scalar type of ml_dtypes."""


class _BFloat16Type:
    def __reduce__(self) -> Any:
        return np.dtype, (_BFloat16, False, True), (3, "<", None, None, None, 2, 2, 64)


class _BFloat16Array:
    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __reduce__(self) -> Any:
        content = self.values.view(torch.int16).numpy().tobytes()
        state = (1, tuple(self.values.shape), _BFloat16Type(), False, content)
        return _RECONSTRUCT, (np.ndarray, (0,), b"b"), state


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_NAMES = {
    _Quantised: ("__main__", "QuantizedWeight8bit"),
    _BFloat16: ("ml_dtypes", "bfloat16"),
    _RECONSTRUCT: ("numpy.core.multiarray", "_reconstruct"),
}


class _Pickler(pickle._Pickler):
    """Writes the names that things had where the release was made."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in _NAMES:
            super().save_global(obj, name)
            return
        for part in _NAMES[obj]:
            self.save(part)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {type: save_global, type(_RECONSTRUCT): save_global}


class _Hole:
    """Zeros that nobody writes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


_Pickler.dispatch[_Hole] = pickle._Pickler.save_bytes


class _Sink(io.BytesIO):
    """Where the one hole begins, and its size."""

    hole: tuple[int, int] | None = None

    def write(self, data: Any) -> int:
        if not isinstance(data, _Hole):
            return super().write(data)
        self.hole = self.tell(), len(data)
        return len(data)


class _Zeros:
    """A numpy array of any size."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype

    def __reduce__(self) -> Any:
        size = math.prod(self.shape) * (2 if isinstance(self.dtype, _BFloat16Type) else self.dtype.itemsize)
        state = (1, self.shape, self.dtype, False, bytes(size) if size < 2**20 else _Hole(size))
        return _RECONSTRUCT, (np.ndarray, (0 * size,), b"b"), state  # a tuple of its own, as numpy makes each


def zeros(shape: tuple[int, ...], scales: tuple[int, ...] | None = None) -> tuple[bytes, int, bytes]:
    """A leaf in float32, or in int8 with scales in bf16, as (its first bytes, the size of its file, its last bytes)."""
    leaf: Any = _Zeros(shape, np.dtype(np.float32))
    if scales is not None:
        leaf = _Quantised(_Zeros(shape, np.dtype(np.int8)), _Zeros(scales, _BFloat16Type()))
    out = _Sink()
    _Pickler(out, 4).dump(leaf)
    content = out.getvalue()
    place, size = out.hole or (len(content), 0)
    return content[:place], len(content) + size, content[place:]


def real_release() -> Iterator[tuple[str, tuple[bytes, int, bytes]]]:
    """The 770 files of the real release, by name, their numbers zeros."""
    table, norm, router = zeros((131072, 6144)), zeros((6144,)), zeros((6144, 8))
    up, down = zeros((8, 6144, 32768), (8, 1, 32768)), zeros((8, 32768, 6144), (8, 8, 6144))
    narrow, wide, out = (zeros((6144, each), (rows, each)) for each, rows in ((1024, 1), (6144, 1), (6144, 8)))
    layer = [up, down, up, narrow, out, wide, narrow, norm, norm, norm, norm, router]
    for number, file in enumerate([table, norm, *layer * 64]):
        yield f"ckpt-0/tensor{number:05}_000", file


# What the ports call the parts of a layer, the experts' matrices and the norms, and how those are stored.
_HPCAI = {
    "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.o_proj", "router": "moe_block.gate",
    "norms": "pre_attn_norm post_attn_norm pre_moe_norm post_moe_norm", "experts": "moe_block.experts",
    "gate": "linear", "up": "linear_v", "down": "linear_1", "layer": "model.layers", "embed": "model.embed_tokens",
    "final": "model.norm",
}  # fmt: skip
_SGLANG = _HPCAI | {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "router": "block_sparse_moe.gate", "experts": "block_sparse_moe.experts", "gate": "w1", "up": "w3", "down": "w2",
}  # fmt: skip
_KEYFAN = {
    "q": "multi_head_attention.query", "k": "multi_head_attention.key", "v": "multi_head_attention.value",
    "o": "multi_head_attention.linear", "router": "router", "norms": "rms_norm rms_norm_1 rms_norm_2 rms_norm_3",
    "experts": "moe", "gate": "linear", "up": "linear_v", "down": "linear_1", "layer": "transformer.decoder_layer",
    "embed": "transformer.in_out_embed", "final": "transformer.rms_norm",
}  # fmt: skip
PORTS = {"hpcai": (_HPCAI, "scale"), "sglang": (_SGLANG, "weight"), "keyfan": (_KEYFAN, "weight")}


def port(grok: Grok, names: dict[str, str], norm: str) -> dict[str, torch.Tensor]:
    """All tensors in bf16 under a port's names, matrices [out, in]."""
    found = {
        f"{names['embed']}.weight": grok.plain("language_model/in_out_embed/embeddings"),
        f"{names['final']}.{norm}": grok.plain("language_model/rms_norm/scale"),
    }
    for layer in range(grok.config["num_hidden_layers"]):
        tree, at = f"transformer/decoder_layer_{layer}/", f"{names['layer']}.{layer}."
        for part, leaf in {"q": "query", "k": "key", "v": "value", "o": "linear"}.items():
            found[f"{at}{names[part]}.weight"] = grok.plain(f"{tree}multi_head_attention/{leaf}/w").T.contiguous()
        found[f"{at}{names['router']}.weight"] = grok.plain(f"{tree}router/w").T.contiguous()
        for name, suffix in zip(names["norms"].split(), ("", "_1", "_2", "_3"), strict=True):
            found[f"{at}{name}.{norm}"] = grok.plain(f"{tree}rms_norm{suffix}/scale")
        for part, leaf in {"gate": "linear", "up": "linear_v", "down": "linear_1"}.items():
            stack = grok.plain(f"{tree}moe/{leaf}/w")
            for expert, matrix in enumerate(stack):
                found[f"{at}{names['experts']}.{expert}.{names[part]}.weight"] = matrix.T.contiguous()
    return found


def write_hpcai(grok: Grok, folder: Path) -> Path:
    """hpcai-tech/grok-1: torch's files, no model_type, no hidden_act."""
    return _write(grok, folder, PORTS["hpcai"], {}, shards=5)


def write_keyfan(grok: Grok, folder: Path) -> Path:
    """keyfan/grok-1-hf: torch's files, its own names, the table stored twice."""
    config = {"architectures": ["GrokForCausalLM"], "model_type": "grok", "sliding_window": None}
    return _write(grok, folder, PORTS["keyfan"], config, shards=3, head=True)


def write_v2ray(grok: Grok, folder: Path) -> Path:
    """v2ray/grok-1: keyfan's names in safetensors."""
    folder = write_keyfan(grok, folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.bin*"):
        if path.suffix == ".bin":
            tensors |= torch.load(path, weights_only=True)
        path.unlink()
    save_file({name: each.clone() for name, each in tensors.items()}, folder / "model.safetensors")
    return folder


def write_sglang(grok: Grok, folder: Path) -> Path:
    """lmzheng/grok-1's names, whole."""
    return _write(grok, folder, PORTS["sglang"], {"model_type": "mixtral"}, shards=1)


def _write(
    grok: Grok, folder: Path, port_: tuple[dict[str, str], str], config: dict[str, Any], shards: int, head: bool = False
) -> Path:
    tensors = port(grok, *port_)
    if head:
        tensors["lm_head.weight"] = tensors[f"{port_[0]['embed']}.weight"].clone()
    folder.mkdir(parents=True)
    write_torch(folder, tensors, shards)
    (folder / "config.json").write_text(json.dumps(grok.config | config))
    return folder


LAYOUTS: dict[str, Callable[[Grok, Path], Path]] = {
    "xai-org": write_release, "hpcai-tech": write_hpcai, "keyfan": write_keyfan, "v2ray": write_v2ray,
    "sglang": write_sglang,
}  # fmt: skip


def logits(grok: Grok, ids: list[int]) -> torch.Tensor:
    """[T, V] in float32, from the tree: to be read beside xAI's model.py; it shares no code with moecli."""
    c, plain = grok.config, lambda path: grok.plain(path).float()
    table = plain("language_model/in_out_embed/embeddings")
    x = table[torch.tensor(ids)] * c["embedding_multiplier_scale"]
    for layer in range(c["num_hidden_layers"]):
        at = f"transformer/decoder_layer_{layer}/"
        norms = [plain(f"{at}rms_norm{suffix}/scale") for suffix in ("", "_1", "_2", "_3")]
        x = x + _norm(_attention(c, plain, f"{at}multi_head_attention/", _norm(x, norms[0])), norms[1])
        x = x + _norm(_mixture(c, plain, at, _norm(x, norms[2])), norms[3])
    return _norm(x, plain("language_model/rms_norm/scale")) @ table.T * c["output_multiplier_scale"]


def _norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * scale


def _attention(c: dict[str, Any], plain: Callable[[str], torch.Tensor], at: str, x: torch.Tensor) -> torch.Tensor:
    tokens, heads, shared = len(x), c["num_attention_heads"], c["num_key_value_heads"]
    width = c["hidden_size"] // heads
    q, k, v = ((x @ plain(f"{at}{name}/w")).view(tokens, -1, width) for name in ("query", "key", "value"))
    q, k = _rotate(q), _rotate(k)
    k, v = (each.repeat_interleave(heads // shared, 1) for each in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * c["attn_output_multiplier"]
    scores = 30 * torch.tanh(scores / 30)
    scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -1e30)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(tokens, -1) @ plain(f"{at}linear/w")


def _rotate(x: torch.Tensor) -> torch.Tensor:
    """[T, heads, d]: dimension i turns with i + d/2."""
    tokens, _, width = x.shape
    angles = torch.arange(tokens)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    cos, sin = (each.repeat(1, 2)[:, None] for each in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _mixture(c: dict[str, Any], plain: Callable[[str], torch.Tensor], at: str, x: torch.Tensor) -> torch.Tensor:
    shares, chosen = (x @ plain(f"{at}router/w")).softmax(-1).topk(c["num_experts_per_tok"])
    gate, up, down = (plain(f"{at}moe/{name}/w") for name in ("linear", "linear_v", "linear_1"))
    out = torch.zeros_like(x)
    for token, expert, share in _pairs(chosen, shares):
        inner = torch.nn.functional.gelu(x[token] @ gate[expert], approximate="tanh") * (x[token] @ up[expert])
        out[token] += share * (inner @ down[expert])
    return out


def _pairs(chosen: torch.Tensor, shares: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    for token, experts in enumerate(chosen.tolist()):
        for rank, expert in enumerate(experts):
            yield token, expert, shares[token, rank]
