"""Switch Transformers against transformers: logits, generated tokens, and the tokens that full experts drop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from moecli.engine.decoder import Decoder
from tests.support.checkpoints import LAYOUTS, make, prompt, write
from tests.support.running import greedy, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.slow

FAMILY = "switch_transformers"
TOKENS = 24
PROMPTS = (prompt(5), prompt(200))
CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "few places": {"expert_capacity": 3},
    "all sparse, biased router, own head": {
        "num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 4, "router_bias": True,
        "tie_word_embeddings": False, "expert_capacity": 8,
    },
    "wide heads, uneven stacks, far positions": {
        "d_kv": 12, "num_layers": 6, "num_sparse_encoder_layers": 2, "num_decoder_layers": 3,
        "num_sparse_decoder_layers": 1, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "dense_act_fn": "gelu", "decoder_start_token_id": 7,
    },
}  # fmt: skip


def score(decoder: Decoder, read: list[int], ids: list[int]) -> torch.Tensor:
    """Logits after each of `ids` in one pass, once the encoder has read `read`. [T, V]"""
    cache = decoder.new_cache(256, 256)
    decoder.read(torch.tensor(read), cache)
    return decoder.logits(decoder.forward(torch.tensor(ids), cache))


def oracle(model: PreTrainedModel, read: list[int], ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([read]), decoder_input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def oracle_greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    found = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return found[0, 1:].tolist()


def dropped(model: PreTrainedModel, ids: list[int]) -> int:
    """Tokens that the reference's encoder drops, over all layers: those with no expert left in its mask."""
    found: list[int] = []
    name = "SwitchTransformersTop1Router"
    hooks = [
        module.register_forward_hook(lambda _, __, out: found.append(int((out[0].sum(-1) == 0).sum())))
        for module in model.encoder.modules()
        if type(module).__name__ == name
    ]
    with torch.inference_mode():
        model.encoder(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("special", CASES)
def test_parity(special: str, layout: str, tmp_path: Path) -> None:
    model = make(FAMILY, seed=len(special), **CASES[special])
    decoder = load(write(model, tmp_path, layout))
    for ids in PROMPTS:
        ours = greedy(decoder, ids, TOKENS)
        assert ours == oracle_greedy(model, ids)
        text = [decoder.spec.start_id, *ours]  # read in one pass, where the decoder, too, drops
        expected = oracle(model, ids, text)
        assert (score(decoder, ids, text) - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_gated_blocks_are_those_of_t5(tmp_path: Path) -> None:
    """As in xxl-128. transformers has them in T5 only: with these in the place of Switch's it is the oracle."""
    from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

    model = make(FAMILY, dense_act_fn="gelu_new")
    generator = torch.Generator().manual_seed(1)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "SwitchTransformersDenseActDense":
                gated = T5DenseGatedActDense(model.config).eval()
                for weight in gated.parameters():
                    weight.data = torch.randn(weight.shape, generator=generator) * 0.25
                parent._modules[name] = gated
    model.config.is_gated_act = True
    decoder = load(write(model, tmp_path, "fused"))
    ids = PROMPTS[1]
    text = [0, *greedy(decoder, ids, TOKENS)]
    expected = oracle(model, ids, text)
    assert (score(decoder, ids, text) - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_the_cases_drop_tokens() -> None:
    few = make(FAMILY, seed=len("few places"), **CASES["few places"])
    assert dropped(few, PROMPTS[1]) > 100 > dropped(few, PROMPTS[0])
