"""Families that transformers lacks, from their published descriptions: one text at a time, no cache, in float64.

Written to be read beside the descriptions, not to be fast; it shares no code with moecli.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class PlainDecoder:
    """DeepSeekMoE-16B (arXiv 2401.06066): Llama's attention, small experts beside shared ones, dense layers first."""

    embedding = "model.embed_tokens.weight"
    parts = "gate_proj", "up_proj", "down_proj"
    normalised = False  # weights, where the file does not say

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}

    def logits(self, ids: list[int]) -> Tensor:
        """[T, V], after each of the ids."""
        x = self.weights[self.embedding][torch.tensor(ids)]
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(layer, x)
        x = self.norm(x, "model.norm")
        tied = self.config.get("tie_word_embeddings", False)
        return x @ self.weights[self.embedding if tied else "lm_head.weight"].T

    def layer(self, layer: int, x: Tensor) -> Tensor:
        """Attention, then a feed-forward, each of a normed copy and added."""
        block = f"model.layers.{layer}."
        x = x + self.attention(block, self.norm(x, block + "input_layernorm"))
        normed = self.norm(x, block + "post_attention_layernorm")
        dense = layer < self.config["first_k_dense_replace"]
        return x + (self.mlp if dense else self.mixture)(block + "mlp.", normed)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Divided by the root of the mean square, times a weight."""
        return (
            x / (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt() * self.weights[name + ".weight"]
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        """With a bias where the file has one."""
        product = x @ self.weights[name + ".weight"].T
        return product + self.weights[name + ".bias"] if name + ".bias" in self.weights else product

    def heads(self, block: str, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Queries, keys and values of each head, [T, d], as they meet."""
        width = self.width
        q, k, v = (self.linear(x, f"{block}self_attn.{part}_proj").split(width, -1) for part in "qkv")
        return [self.rotate(each) for each in q], [self.rotate(each) for each in k], list(v)

    @property
    def width(self) -> int:
        """Of a head."""
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def attention(self, block: str, x: Tensor, output: str = "self_attn.o_proj") -> Tensor:
        """Head by head; several queries may share a key and a value."""
        q, k, v = self.heads(block, x)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = []
        for head, query in enumerate(q):
            shared = head // (len(q) // len(k))
            scores = query @ k[shared].T / self.width**0.5
            mixed.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[shared])
        return self.linear(torch.cat(mixed, -1), block + output)

    def rotate(self, x: Tensor) -> Tensor:
        """Positions from 0; of the numbers that turn, i turns with i + half. x [T, d]."""
        turning = int(x.shape[-1] * self.config.get("partial_rotary_factor", 1.0))
        half = turning // 2
        rates = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * rates
        first, second, rest = x[:, :half], x[:, half:turning], x[:, turning:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """SwiGLU."""
        gate, up, down = self.parts
        return self.linear(F.silu(self.linear(x, name + gate)) * self.linear(x, name + up), name + down)

    def mixture(self, name: str, x: Tensor) -> Tensor:
        """Each token's best experts, weighted, and the shared ones as one wide block."""
        out = torch.zeros_like(x)
        for token, logits in enumerate(self.linear(x, name + "gate")):
            for expert, weight in self.choose(name, logits).items():
                out[token] += weight * self.mlp(f"{name}experts.{expert}.", x[token])
        return (
            out + self.mlp(name + "shared_experts.", x)
            if name + "shared_experts.up_proj.weight" in self.weights
            else out
        )

    def choose(self, name: str, logits: Tensor) -> dict[int, float]:
        """The experts of one token and their weights: shares of a softmax over all, perhaps divided by their sum."""
        shares = logits.softmax(-1).tolist()
        best = sorted(range(len(shares)), key=lambda e: -shares[e])[: self.config["num_experts_per_tok"]]
        normalised = self.config.get("norm_topk_prob", self.normalised)
        total = sum(shares[e] for e in best) if normalised and len(best) > 1 else 1.0  # a single one is left as it is
        return {expert: shares[expert] / total for expert in best}


class PlainArctic(PlainDecoder):
    """Snowflake Arctic: a dense transformer, and a mixture that reads each block's input and adds to its output."""

    parts = "w1", "w3", "w2"
    normalised = True

    def layer(self, layer: int, x: Tensor) -> Tensor:
        """The norm before the mixture is called after attention's place in other models, and is not there."""
        block = f"model.layers.{layer}."
        beside = self.mixture(block + "block_sparse_moe.", self.norm(x, block + "post_attention_layernorm"))
        x = x + self.attention(block, self.norm(x, block + "input_layernorm"))
        return x + self.mlp(block + "residual_mlp.", self.norm(x, block + "residual_layernorm")) + beside


class PlainLing(PlainDecoder):
    """Ling 2.0 (inclusionAI/Ling-V2): normed heads of which a part turns, sigmoid scores, a bias and groups to pick."""

    embedding = "model.word_embeddings.weight"

    def heads(self, block: str, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """One matrix makes all of them; queries and keys are normed before they turn."""
        queries, keys = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        every = self.linear(x, block + "attention.query_key_value").split(self.width, -1)
        q, k, v = every[:queries], every[queries : queries + keys], every[queries + keys :]
        if self.config.get("use_qk_norm", True):
            q = [self.norm(each, block + "attention.query_layernorm") for each in q]
            k = [self.norm(each, block + "attention.key_layernorm") for each in k]
        return [self.rotate(each) for each in q], [self.rotate(each) for each in k], list(v)

    def attention(self, block: str, x: Tensor, output: str = "attention.dense") -> Tensor:
        return super().attention(block, x, output)

    def choose(self, name: str, logits: Tensor) -> dict[int, float]:
        """Groups by the sum of their two best, then the best within them; the bias picks and does not weigh."""
        c, scores = self.config, logits.sigmoid().tolist()
        ranking = [a + b for a, b in zip(scores, self.weights[name + "gate.expert_bias"].tolist(), strict=True)]
        size = len(scores) // c["n_group"]
        groups = [range(first, first + size) for first in range(0, len(scores), size)]
        groups.sort(key=lambda group: -sum(sorted(ranking[e] for e in group)[-2:]))
        allowed = [expert for group in groups[: c["topk_group"]] for expert in group]
        best = sorted(allowed, key=lambda e: -ranking[e])[: c["num_experts_per_tok"]]
        total = sum(scores[e] for e in best)
        return {expert: scores[expert] / total * c["routed_scaling_factor"] for expert in best}
