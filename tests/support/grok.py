"""Grok-1 from its published description: one sequence at a time, no cache, every expert by its raw name.

Written to be read beside the description, not to be fast; it shares no code with moecli.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

# The two ways the ports name the same matrices.
HPCAI = {"attention": "attn", "moe": "moe_block", "gate": "linear", "up": "linear_v", "down": "linear_1"}
SGLANG = {"attention": "self_attn", "moe": "block_sparse_moe", "gate": "w1", "up": "w3", "down": "w2"}


class Grok:
    """All weights in float32, by their names in the file."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        hpcai = "model.norm.scale" in self.weights
        self.names, self.norm_suffix = (HPCAI, "scale") if hpcai else (SGLANG, "weight")

    def logits(self, ids: list[int]) -> Tensor:
        """[T, V], after each of the ids."""
        c = self.config
        x = self.weights["model.embed_tokens.weight"][torch.tensor(ids)] * c["embedding_multiplier_scale"]
        for layer in range(c["num_hidden_layers"]):
            block = f"model.layers.{layer}."
            branch = self.attention(block + self.names["attention"], self.norm(x, block + "pre_attn_norm"))
            x = x + self.norm(branch, block + "post_attn_norm")
            branch = self.mixture(block + self.names["moe"], self.norm(x, block + "pre_moe_norm"))
            x = x + self.norm(branch, block + "post_moe_norm")
        x = self.norm(x, "model.norm")
        table = "model.embed_tokens.weight" if c.get("tie_word_embeddings", True) else "lm_head.weight"
        return x @ self.weights[table].T * c["output_multiplier_scale"]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The most likely continuation, each step over the whole text."""
        text = list(ids)
        for _ in range(count):
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(ids) :]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Divided by the root of the mean square, times a weight."""
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return (
            x
            / (mean_square + self.config.get("rms_norm_eps", 1e-5)).sqrt()
            * self.weights[f"{name}.{self.norm_suffix}"]
        )

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Head by head. Scores are capped smoothly before the mask."""
        c, tokens = self.config, len(x)
        heads, groups = c["num_attention_heads"], c["num_key_value_heads"]
        width = c.get("head_dim") or c["hidden_size"] // heads
        q, k, v = (x @ self.weights[f"{name}.{part}_proj.weight"].T for part in "qkv")
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        cap = c.get("max_attn_value", 30.0)
        mixed = []
        for head in range(heads):
            shared = head // (heads // groups)
            mine = slice(head * width, (head + 1) * width)
            theirs = slice(shared * width, (shared + 1) * width)
            scores = rotate(q[:, mine]) @ rotate(k[:, theirs]).T * c.get("attn_output_multiplier", 1 / math.sqrt(128))
            scores = cap * torch.tanh(scores / cap)
            mixed.append(scores.masked_fill(future, -1e30).softmax(-1) @ v[:, theirs])
        return torch.cat(mixed, -1) @ self.weights[f"{name}.o_proj.weight"].T

    def mixture(self, name: str, x: Tensor) -> Tensor:
        """Each token's best experts, weighted by their plain share among all experts."""
        probabilities = (x @ self.weights[f"{name}.gate.weight"].T).softmax(-1)
        out = torch.zeros_like(x)
        for token, shares in enumerate(probabilities):
            ranked = sorted(range(len(shares)), key=lambda e: -float(shares[e]))
            for expert in ranked[: self.config["num_experts_per_tok"]]:
                out[token] += shares[expert] * self.expert(f"{name}.experts.{expert}", x[token])
        return out

    def expert(self, name: str, x: Tensor) -> Tensor:
        gate, up, down = (self.weights[f"{name}.{self.names[part]}.weight"] for part in ("gate", "up", "down"))
        exact = self.config.get("hidden_act") == "gelu"
        return down @ (F.gelu(gate @ x, approximate="none" if exact else "tanh") * (up @ x))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions from 0, base 10000; dimension i turns with dimension i + d/2. x [T, d]."""
    tokens, width = x.shape
    half = width // 2
    rates = torch.tensor([10000.0 ** (-2 * i / width) for i in range(half)])
    angles = torch.arange(tokens)[:, None] * rates
    first, second = x[:, :half], x[:, half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
