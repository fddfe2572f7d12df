"""Text models behind a vision tower, against transformers: found under the wrapper's names, towers left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli.engine.load import open_model
from moecli.errors import CheckpointError
from moecli.store.source import open_source, origin_of
from moecli.store.write import pack
from tests.support.checkpoints import make, prompt, write
from tests.support.oracle import transformers
from tests.support.running import greedy, load

pytestmark = pytest.mark.slow

_TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3,
    "max_position_embeddings": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6,
    "mrope_section": [4, 2, 2], "mrope_interleaved": True},
}  # fmt: skip
_VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "spatial_merge_size": 2,
}  # fmt: skip


def qwen3_vl(**changes: Any) -> Any:
    package = transformers()
    config = package.Qwen3VLMoeConfig(
        text_config=_TEXT | changes, vision_config=_VISION, architectures=["Qwen3VLMoeForConditionalGeneration"]
    )
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    torch.manual_seed(5)
    model = package.Qwen3VLMoeForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * 0.3 + (value.dim() == 1))
    return model


def continuation(model: Any, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize(
    "changes", [{}, {"mlp_only_layers": [0]}, {"moe_intermediate_size": 16}, {"attention_bias": True}]
)
def test_qwen3_vl_says_the_same_as_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    """Experts are stored [in, out], gate beside up; where that is square, as they are in memory."""
    model = qwen3_vl(**changes)
    model.save_pretrained(tmp_path / "published")
    decoder = load(tmp_path / "published")
    ids = prompt(40)
    assert greedy(decoder, ids, 12) == continuation(model, ids, 12)


def test_a_wrapped_model_is_packed_like_a_plain_one(tmp_path: Path) -> None:
    model = qwen3_vl()
    model.save_pretrained(tmp_path / "published")
    weights = open_source(tmp_path / "published")
    assert any("towers are left out" in note for note in weights.notes)
    origin = origin_of("m", None, None, tmp_path / "published", weights)
    pack(weights, tmp_path / "published", tmp_path / "store", "fp32", origin)
    ids = prompt(20)
    assert greedy(load(tmp_path / "store"), ids, 8) == continuation(model, ids, 8)


WRAPPERS = [
    ("text_config", "language_model.model.", "language_model.lm_head.", "vision_tower.a.weight"),
    ("text_config", "model.language_model.", "lm_head.", "model.visual.blocks.0.weight"),
    ("llm_config", "language_model.model.", "language_model.lm_head.", "mlp1.0.weight"),
    ("language_config", "language.model.", "language.lm_head.", "projector.layers.0.weight"),
]


@pytest.mark.parametrize(("key", "body", "head", "tower"), WRAPPERS, ids=[f"{k}-{b}" for k, b, _, _ in WRAPPERS])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "mistral"])
def test_the_text_part_of_any_wrapper_runs(
    family: str, key: str, body: str, head: str, tower: str, tmp_path: Path
) -> None:
    folder = write(make(family), tmp_path / "plain")
    expected = greedy(load(folder), prompt(9), 6)
    tensors = {
        name.replace("model.", body, 1) if name.startswith("model.") else name.replace("lm_head.", head, 1): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    config = {
        "architectures": ["SeeingModel"], "model_type": "seeing", "image_token_id": 3,
        key: json.loads((folder / "config.json").read_text()), "vision_config": {"depth": 2},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file({**tensors, tower: torch.ones(3)}, folder / "model.safetensors")
    assert greedy(load(folder), prompt(9), 6) == expected
    save_file({**tensors, f"{body}layers.0.stranger": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="stranger"):
        open_model(folder)
