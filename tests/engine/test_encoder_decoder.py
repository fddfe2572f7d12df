"""Switch Transformers against transformers: logits, generated tokens, and the tokens that full experts drop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.engine.recorder import new_builders, new_recorder
from moecli.errors import CheckpointError, UsageError
from moecli.planning.placement import fit
from moecli.routing.recorded import dropped
from tests.support.checkpoints import LAYOUTS, make, prompt, write
from tests.support.running import ALL, greedy, load

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


def routers(model: PreTrainedModel, read: list[int], ids: list[int]) -> dict[str, list[tuple[torch.Tensor, ...]]]:
    """Of each router of the reference in one pass: mask [T, E], probability [T, 1] and logits [T, E]."""
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {"encoder": [], "decoder": []}
    for name, module in model.named_modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            here = found[name.split(".")[0]]
            module.register_forward_hook(lambda _, __, out, here=here: here.append(tuple(part[0] for part in out)))
    oracle(model, read, ids)
    return found


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


def test_a_trace_of_each_stack_holds_what_its_routers_chose(tmp_path: Path) -> None:
    """The expert of each token, its probability, and 0 in its place where the expert was full."""
    model = make(FAMILY, **CASES["few places"])
    decoder, ids = load(write(model, tmp_path)), PROMPTS[1]
    text = [0, *prompt(30, seed=2)]
    builders = new_builders("it", decoder.spec)
    recorder, cache = new_recorder(decoder.spec, builders), decoder.new_cache(256, 256)
    share = decoder.read(torch.tensor(ids), cache, recorder)
    decoder.forward(torch.tensor(text), cache, recorder)
    recorder.flush()
    traces = {stack: builder.build() for stack, builder in builders.items()}
    expected = routers(model, ids, text)
    for stack, read in (("encoder", ids), ("decoder", text)):
        trace = traces[stack]
        assert trace.ids.tolist() == read
        assert len(trace.layers) == len(expected[stack]) == 2
        for layer, (mask, probabilities, logits) in zip(trace.layers, expected[stack], strict=True):
            assert layer.chosen[:, 0].tolist() == logits.argmax(-1).tolist()
            kept = probabilities[:, 0] * mask.sum(-1)
            assert layer.weights is not None
            assert torch.allclose(torch.tensor(layer.weights[:, 0]), kept, atol=1e-5)
    assert [layer.layer for trace in traces.values() for layer in trace.layers] == [1, 3, 5, 7]
    assert share == pytest.approx(dropped(traces["encoder"])) and share > 0.5


def test_a_capacity_can_be_another_one_or_none(tmp_path: Path) -> None:
    model = make(FAMILY, **CASES["few places"])
    folder, ids = write(model, tmp_path), torch.tensor(PROMPTS[1])
    spec = open_model(folder).spec
    shares = []
    for capacity in (None, 3, 12, 0):
        opened = open_model(folder, capacity)
        decoder = opened.decoder(fit(opened.spec, "fp32", 256, ALL))
        shares.append(decoder.read(ids, decoder.new_cache(256, 256)))
    assert shares[0] == shares[1] and shares[1] > shares[2] > 0 and shares[3] is None
    assert spec.with_capacity(3) == spec
    with pytest.raises(UsageError, match="any number of tokens"):
        open_model(write(make("mixtral"), tmp_path / "mixtral"), 3)


def test_the_table_may_go_by_any_of_its_names_but_there_is_only_one(tmp_path: Path) -> None:
    model = make(FAMILY)
    folder = write(model, tmp_path, "fused")
    expected = greedy(load(folder), PROMPTS[0], 8)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    table = tensors.pop("shared.weight")
    save_file(tensors, path)
    assert greedy(load(folder), PROMPTS[0], 8) == expected
    save_file(tensors | {"shared.weight": table, "decoder.embed_tokens.weight": table + 1}, path)
    with pytest.raises(CheckpointError, match=r"decoder.embed_tokens.weight is not shared.weight"):
        open_model(folder)


def test_the_cases_drop_tokens() -> None:
    few = make(FAMILY, seed=len("few places"), **CASES["few places"])
    masks = [mask for mask, *_ in routers(few, PROMPTS[1], PROMPTS[1][:TOKENS])["encoder"]]
    assert sum(int((mask.sum(-1) == 0).sum()) for mask in masks) > 100
