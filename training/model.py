"""The Mixtral architecture in plain torch, made to train fast on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLICE = 128


@dataclass(frozen=True)
class Config:
    """Sizes of the model; the names are those of the published config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 7
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 128
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 1024


class Norm(nn.Module):
    """Root mean square normalisation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rotary(config: Config) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position, each [position, head_dim]."""
    steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.outer(torch.arange(config.max_position_embeddings).float(), config.rope_theta**-steps)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of every head by the angle of its position."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain causal attention in slices that skip most of the masked part; faster here than torch's own.

    The query heads that share a key head are handled as one longer sequence.
    """
    batch, heads, length, size = query.shape
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    mixed = []
    for start in range(0, length, SLICE):
        stop = min(start + SLICE, length)
        part = query[:, :, start:stop].reshape(len(key), -1, size)
        mask = torch.full((stop - start, stop), float("-inf"), dtype=query.dtype).triu(start + 1)
        mask = mask.repeat(part.shape[1] // (stop - start), 1)
        scores = torch.baddbmm(mask.expand(len(key), -1, -1), part, key[:, :stop].mT, alpha=size**-0.5)
        mixed.append((torch._softmax(scores, -1, False) @ value[:, :stop]).view(batch, heads, -1, size))
    return torch.cat(mixed, 2)


class Attention(nn.Module):
    """Causal attention with fewer key and value heads than query heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        joined = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(x, joined).view(batch, length, -1, self.head_dim).transpose(1, 2)
        query, key, value = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = attend(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class Permute(torch.autograd.Function):
    """Reorder rows; the gradient is a gather too, which is much faster than scatter-add on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class Experts(nn.Module):
    """Router and experts: each token goes to the best two of eight."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        count, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(hidden, count, bias=False)
        self.w1 = nn.Parameter(torch.empty(count, inner, hidden))
        self.w2 = nn.Parameter(torch.empty(count, hidden, inner))
        self.w3 = nn.Parameter(torch.empty(count, inner, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, router logits [token, expert] and chosen experts [token, 2]."""
        tokens = x.reshape(-1, x.shape[-1])
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(tokens.float(), self.gate.weight)
            weights, chosen = logits.softmax(-1).topk(self.top_k, -1)
            weights = weights / weights.sum(-1, keepdim=True)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        ends = (flat[:, None] == torch.arange(len(self.w1))).sum(0).cumsum(0).int()
        spread = Permute.apply(tokens.repeat_interleave(self.top_k, 0), order, inverse)  # type: ignore[no-untyped-call]
        both = torch.cat((self.w1, self.w3), 1).to(x.dtype).mT
        gate, up = F.grouped_mm(spread, both, offs=ends).chunk(2, -1)
        rows = F.grouped_mm(F.silu(gate) * up, self.w2.to(x.dtype).mT, offs=ends)
        back = Permute.apply(rows, inverse, order).view(-1, self.top_k, x.shape[-1])  # type: ignore[no-untyped-call]
        mixed = (back * weights.unsqueeze(-1).to(back.dtype)).sum(1)
        return mixed.view_as(x), logits, chosen


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = Norm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config)
        self.block_sparse_moe = Experts(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        mixed, logits, chosen = self.block_sparse_moe(self.post_attention_layernorm(x))
        return x + mixed, logits, chosen


class Model(nn.Module):
    """The whole language model; the output matrix is the embedding matrix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config)
        cos, sin = rotary(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                small = name.endswith(("o_proj.weight", "w2"))
                nn.init.normal_(
                    weight,
                    std=0.02
                    if weight.ndim == 2 and "proj" not in name
                    else weight.shape[-1] ** -0.5 * (0.1 if small else 0.6),
                )

    def hidden(self, ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Last hidden states, router logits and chosen experts of every layer."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        if torch.is_autocast_enabled("cpu"):
            x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
        all_logits, all_chosen = [], []
        for layer in self.layers:
            x, logits, chosen = layer(x, cos, sin)
            all_logits.append(logits)
            all_chosen.append(chosen)
        return self.norm(x), all_logits, all_chosen

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        return F.linear(self.hidden(ids)[0], self.embed_tokens.weight)
