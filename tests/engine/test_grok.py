"""Grok-1, which transformers lacks, against the plain reference: both ports' names, tied and untied tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.checkpoints import VOCABULARY, prompt
from tests.support.grok import HPCAI, SGLANG, Grok
from tests.support.running import greedy, load, score

CONFIG = {
    "architectures": ["Grok1ModelForCausalLM"],
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts": 4,
    "num_experts_per_tok": 2, "attn_output_multiplier": 8**-0.5, "max_attn_value": 3.0,
    "embedding_multiplier_scale": math.sqrt(32), "output_multiplier_scale": 0.577, "rms_norm_eps": 1e-5,
}  # fmt: skip
CASES = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "wide heads": {"head_dim": 16, "attn_output_multiplier": 0.25},
    "multi-head": {"num_key_value_heads": 4, "max_attn_value": 1.0},
    "one kv head, three experts": {"num_key_value_heads": 1, "num_experts_per_tok": 3},
    "exact gelu": {"hidden_act": "gelu", "num_hidden_layers": 3},
}


def write(folder: Path, config: dict[str, Any], names: dict[str, str]) -> Path:
    """A random checkpoint under one port's names."""
    width, experts = config["hidden_size"], config["num_experts"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    q, k = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    generator = torch.Generator().manual_seed(len(json.dumps(config)))

    def matrix(rows: int, columns: int, scale: float = 0.25) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    def norm() -> torch.Tensor:
        return 1 + torch.randn(width, generator=generator) * 0.3

    suffix = "scale" if names is HPCAI else "weight"
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, width, 0.3), f"model.norm.{suffix}": norm()}
    if not config.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = matrix(VOCABULARY, width)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for part, rows in zip("qkv", (q, k, k), strict=True):
            tensors[f"{block}{names['attention']}.{part}_proj.weight"] = matrix(rows, width)
        tensors[f"{block}{names['attention']}.o_proj.weight"] = matrix(width, q)
        for place in ("pre_attn", "post_attn", "pre_moe", "post_moe"):
            tensors[f"{block}{place}_norm.{suffix}"] = norm()
        tensors[f"{block}{names['moe']}.gate.weight"] = matrix(experts, width, 0.4)
        for expert in range(experts):
            mine = f"{block}{names['moe']}.experts.{expert}."
            wide = config["intermediate_size"]
            for part, shape in {"gate": (wide, width), "up": (wide, width), "down": (width, wide)}.items():
                tensors[f"{mine}{names[part]}.weight"] = matrix(*shape)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("port", ["hpcai", "sglang"])
@pytest.mark.parametrize("case", CASES)
def test_parity(case: str, port: str, tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG | CASES[case], HPCAI if port == "hpcai" else SGLANG)
    decoder, reference = load(folder), Grok(folder)
    for ids in (prompt(5), prompt(200)):
        ours = greedy(decoder, ids, 24)
        text = ids + ours[:-1]
        expected = reference.logits(text)
        assert (score(decoder, text) - expected).abs().max() <= 1e-4
        assert ours == expected[len(ids) - 1 :].argmax(-1).tolist()


def test_the_reference_continues_as_it_scores(tmp_path: Path) -> None:
    """The one-pass comparison above is a greedy continuation: proven once by the long way."""
    folder = write(tmp_path, CONFIG, HPCAI)
    assert greedy(load(folder), prompt(5), 24) == Grok(folder).greedy(prompt(5), 24)


def test_the_sglang_file_says_mixtral_and_is_grok(tmp_path: Path) -> None:
    """Its model_type is another family's; it counts experts by another key and leaves constants to the code."""
    config = {key: value for key, value in CONFIG.items() if key not in ("max_attn_value", "attn_output_multiplier")}
    config |= {"head_dim": 8, "rope_theta": 10000.0, "torch_dtype": "float32"}
    folder = write(tmp_path, config, SGLANG)
    config["num_local_experts"] = config.pop("num_experts")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    assert (score(load(folder), prompt(30)) - Grok(folder).logits(prompt(30))).abs().max() <= 1e-4
