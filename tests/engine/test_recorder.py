"""Recorded routing: what transformers chooses, whatever the path through the engine, each expert read once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import moecli
from moecli.engine import analysis
from moecli.engine.chat import Conversation, GenerationConfig
from moecli.engine.decoder import Decoder
from moecli.engine.generate import Timing
from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.engine.recorder import LayerwiseRecorder, Recorder, Text, new_builders
from moecli.engine.router import Routing
from moecli.engine.sampling import Sampler, Sampling, SamplingOptions
from moecli.errors import MoecliError, NotEnoughMemory
from moecli.experts.offloaded import OffloadedExperts
from moecli.library.resolve import Kind, ModelRef
from moecli.model.spec import Scoring
from moecli.routing.prompts import Prompt, bundled
from moecli.routing.trace import RoutingTrace
from tests.support.checkpoints import MIXTURES, make, prompt, write
from tests.support.running import load, session
from tests.support.stores import decoder as placed
from tests.support.stores import packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.slow

TINY = Path(moecli.__file__).parent / "tiny"
TEXTS = [
    Text(0, "a", prompt(40, 1)),
    Text(1, "b", prompt(23, 2)),
    Text(2, "a", prompt(1, 3)),
    Text(3, "b", prompt(64, 4)),
]

DYNAMIC = {
    "head_dim": 8, "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
}  # fmt: skip


def one_by_one(decoder: Decoder, texts: Sequence[Text], chunk: int = 256, count: int = 0) -> RoutingTrace:
    """Each text by itself, with up to `count` tokens generated after it."""
    builder = new_builders("model", decoder.spec, keep_probabilities=True)[""]
    recorder = Recorder(decoder.spec, builder)
    for text in texts:
        recorder.begin(text.prompt, text.domain)
        if count:
            list(session(decoder, 128, chunk).generate(text.ids, Sampler(Sampling(), 0), count, Timing(), recorder))
        else:
            decoder.forward(torch.tensor(text.ids), decoder.new_cache(128, chunk), recorder)
    recorder.flush()
    return builder.build()


def together(decoder: Decoder, texts: Sequence[Text], chunk: int = 256) -> RoutingTrace:
    builder = new_builders("model", decoder.spec, keep_probabilities=True)[""]
    decoder.layerwise_prefill(
        [torch.tensor(text.ids) for text in texts], chunk, LayerwiseRecorder(decoder.spec, builder, texts)
    )
    return builder.build()


def same(one: RoutingTrace, other: RoutingTrace) -> None:
    """Equal but for rounding in what is no choice."""
    for name in ("ids", "prompt", "domain", "generated"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for a, b in zip(one.layers, other.layers, strict=True):
        assert np.array_equal(a.chosen, b.chosen)
        for name in ("weights", "entropy", "mean_probabilities", "probabilities", "log_sum_squared"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-5, err_msg=name)
        assert a.foreseen == pytest.approx(b.foreseen, abs=0.01)  # of few tokens, which are a decode step, nothing is


def theirs(model: PreTrainedModel, ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each mixture of the transformers model: what its experts are given, and its router's logits."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    logits: list[torch.Tensor] = []

    def route(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        bias = getattr(module, "bias", None)
        logits.append(torch.nn.functional.linear(inputs[0].flatten(0, -2), module.weight, bias))

    def choose(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs) > 1:
            seen.append((inputs[1], inputs[2]))
        else:  # Llama 4 gives every expert all tokens, most of them times 0
            best = logits[-1].topk(model.config.num_experts_per_tok)
            seen.append((best.indices, best.values.sigmoid()))

    hooks = []
    for name, module in model.named_modules():
        *_, parent, last = ("", *name.split("."))
        if last == "experts":
            hooks.append(module.register_forward_pre_hook(choose))
        elif last in ("gate", "router") and parent != "router":
            inner = next((getattr(module, name) for name in _INNER if hasattr(module, name)), module)
            hooks.append(inner.register_forward_pre_hook(route))
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return [(*given, each) for given, each in zip(seen, logits, strict=True)]


_INNER = ("layer", "wg", "proj", "gate")  # of a router that holds its matrix in a module


@pytest.mark.parametrize("family", MIXTURES)
def test_choices_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = make(family)
    decoder = load(write(model, tmp_path))
    ids = prompt(60)
    trace = one_by_one(decoder, [Text(0, "", ids)], chunk=25, count=13)
    assert trace.generated.tolist() == [False] * 60 + [True] * 12
    scoring = decoder.spec.mixtures[0][1].router.scoring
    expected = theirs(model, trace.ids.tolist())
    assert len(expected) == len(trace.layers) > 0
    for layer, (chosen, weights, logits) in zip(trace.layers, expected, strict=True):
        assert layer.weights is not None and layer.probabilities is not None and layer.entropy is not None
        order = np.argsort(layer.chosen, axis=1)  # theirs need not be best first
        theirs_order = np.argsort(chosen.numpy(), axis=1)
        assert np.array_equal(
            np.take_along_axis(layer.chosen, order, 1), np.take_along_axis(chosen.numpy(), theirs_order, 1)
        )
        ours = np.take_along_axis(layer.weights, order, 1)
        np.testing.assert_allclose(ours, np.take_along_axis(weights.float().numpy(), theirs_order, 1), rtol=1e-4)
        scores = logits.sigmoid() if scoring in (Scoring.SIGMOID, Scoring.SIGMOID_INPUT) else logits.softmax(-1)
        gates = (scores / scores.sum(-1, keepdim=True)).numpy()
        np.testing.assert_allclose(layer.probabilities, gates, rtol=1e-3, atol=1e-6)
        entropy = -(gates * np.log(gates)).sum(-1) / np.log(layer.experts)
        np.testing.assert_allclose(layer.entropy, entropy, atol=1e-4)
        assert layer.log_sum_squared == pytest.approx(float((logits.logsumexp(-1) ** 2).mean()), rel=1e-4)


def test_what_is_foreseen_is_the_router_on_the_state_before_the_layer(tmp_path: Path) -> None:
    model = make("mixtral")
    ids = torch.tensor([prompt(60)])
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
        expected = []
        for layer, before, (chosen, *_) in zip(model.model.layers, states, theirs(model, prompt(60)), strict=False):
            early = layer.mlp.gate(layer.post_attention_layernorm(before))[-1]
            expected.append(float((chosen[:, :, None] == early[:, None, :]).any(-1).float().mean()))
    trace = one_by_one(load(write(model, tmp_path)), [Text(0, "", prompt(60))], chunk=25, count=13)
    assert [layer.foreseen for layer in trace.layers] == pytest.approx(expected)  # the answer's tokens left out
    assert min(expected) > 0 and max(expected) < 1


@pytest.mark.parametrize("family", MIXTURES)
def test_all_texts_layer_by_layer_choose_as_each_by_itself(family: str, tmp_path: Path) -> None:
    decoder = load(write(make(family), tmp_path))
    same(together(decoder, TEXTS, chunk=16), one_by_one(decoder, TEXTS))


@pytest.mark.parametrize("changes", ({"sliding_window": 16}, DYNAMIC), ids=("window", "dynamic"))
def test_windows_and_ropes_begin_anew_with_each_text(changes: dict[str, object], tmp_path: Path) -> None:
    decoder = load(write(make("mixtral", **changes), tmp_path))
    same(together(decoder, TEXTS, chunk=8), one_by_one(decoder, TEXTS))


@pytest.mark.parametrize("family", ("mixtral", "deepseek_v2"))
def test_each_expert_is_read_once_per_layer_and_memory_changes_no_choice(family: str, tmp_path: Path) -> None:
    store = packed(write(make(family), tmp_path / "model"), tmp_path / "store")
    everything = together(placed(store, None), TEXTS)
    decoder = placed(store, 2)
    assert isinstance(decoder.experts, OffloadedExperts)
    trace = together(decoder, TEXTS)
    same(trace, everything)
    used = sum(int((layer.counts() > 0).sum()) for layer in trace.layers)
    statistics = decoder.experts.statistics
    assert (statistics.misses, statistics.hits) == (used, 0)
    strides = [store.record(layer.layer).stride for layer in trace.layers]
    assert statistics.bytes_read <= used * max(strides)


class Interrupted(Recorder):
    """Ctrl-C in the middle of the second pass."""

    passes = 0

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        super().record(layer, routing)
        self.passes += layer == 0
        if self.passes == 2 and layer == 0:
            self.passes += 1
            raise KeyboardInterrupt


def test_an_interrupted_pass_is_left_out(tmp_path: Path) -> None:
    decoder = load(write(make("mixtral"), tmp_path))
    builder = new_builders("model", decoder.spec, keep_probabilities=True)[""]
    recorder = Interrupted(decoder.spec, builder)
    for text in TEXTS:
        recorder.begin(text.prompt, text.domain)
        try:
            decoder.forward(torch.tensor(text.ids), decoder.new_cache(128, 128), recorder)
        except KeyboardInterrupt:
            assert text is TEXTS[1]
    recorder.flush()
    whole = [text for text in TEXTS if text is not TEXTS[1]]
    assert recorder.recorded == sum(len(text.ids) for text in whole)
    reference = one_by_one(decoder, [TEXTS[0], *TEXTS[2:]])
    trace = builder.build()
    assert np.array_equal(trace.ids, reference.ids) and np.array_equal(trace.prompt, reference.prompt)
    for a, b in zip(trace.layers, reference.layers, strict=True):
        assert np.array_equal(a.chosen, b.chosen)


def opened(context: int | None = None, dtype: str = "auto", ram: int = 2**33) -> OpenedModel:
    ref = ModelRef("tiny", "tiny", Kind.FOLDER, TINY)
    return open_for_run(ref, LoadOptions(dtype, context, ram, threads=1))


def config(max_tokens: int = 0) -> GenerationConfig:
    return GenerationConfig(SamplingOptions().resolve(opened().defaults), 0, max_tokens, raw=True)


def ids(text: str) -> list[int]:
    return Conversation(opened(), config()).prompt(text)


def record(of: OpenedModel, prompts: Sequence[Prompt], limit: int | None = None, max_tokens: int = 0) -> RoutingTrace:
    def silent(done: int, total: int) -> None:
        """Nobody watches."""

    return analysis.record(of, config(max_tokens), prompts, limit, silent, silent)[""].trace


def test_limit_counts_prompt_tokens_and_max_tokens_generated_ones() -> None:
    prompts = [Prompt("The sea was calm", "sea"), Prompt("import os\nimport sys\n", "code")]
    trace = record(opened(), prompts, max_tokens=5)
    read = [ids(prompt.text) for prompt in prompts]
    assert [trace.ids[(trace.prompt == n) & ~trace.generated].tolist() for n in (0, 1)] == read
    assert trace.generated.sum() == 10
    assert trace.domains == ("sea", "code")
    assert record(opened(), prompts, limit=3).ids.tolist() == [*read[0][:2], read[1][0]]
    assert (
        len(record(opened(), prompts, limit=len(read[0]) + len(read[1]) - 1, max_tokens=2).ids)
        == sum(map(len, read)) - 1 + 4
    )


def test_limit_is_shared_out_among_domains() -> None:
    trace = record(opened(), bundled(), limit=71)
    assert sorted(np.bincount(trace.domain)) == [10, 10, 10, 10, 10, 10, 11]
    short = [Prompt("sea", "short"), Prompt("The sea was calm and the wind came from the north.", "long")]
    lengths = [len(ids(prompt.text)) for prompt in short]
    assert record(opened(), short, limit=sum(lengths) - 1).tokens == sum(lengths) - 1


def test_generation_reads_the_prompts_as_the_survey_does() -> None:
    prompts = bundled()[:5]
    spoken, read = record(opened(), prompts, max_tokens=1), record(opened(), prompts)
    prompt = ~spoken.generated
    assert np.array_equal(spoken.ids[prompt], read.ids)
    alike = [
        (np.sort(one.chosen[prompt], 1) == np.sort(other.chosen, 1)).all(1).mean()
        for one, other in zip(spoken.layers, read.layers, strict=True)
    ]
    assert alike[0] == 1
    assert min(alike) > 0.98  # the products of bfloat16 round by their shape


def test_a_text_longer_than_the_context_is_read_in_pieces() -> None:
    text = Prompt("One two three four five six seven eight nine ten. " * 8)
    trace = record(opened(context=32), [text])
    assert trace.ids.tolist() == ids(text.text)
    assert not trace.prompt.any(), "the pieces of one prompt are no independent sample"
    first = record(opened(), [Prompt(text.text)], 32)
    assert np.array_equal(trace.layers[0].chosen[:32], first.layers[0].chosen)


def test_pieces_put_together_are_the_text() -> None:
    trace = record(opened(), [Prompt("Ein Fluß, drei Brücken: été 1999")])
    assert "".join(trace.pieces[number] for number in trace.ids.tolist()).endswith("Fluß, drei Brücken: été 1999")


def test_too_little_memory_is_explained() -> None:
    with pytest.raises(NotEnoughMemory, match="and the budget is 1 MiB"):
        record(opened(dtype="bf16", ram=2**20), [Prompt("The sea")])


def test_a_long_answer_must_leave_room_for_the_prompt() -> None:
    with pytest.raises(MoecliError, match="max-tokens 5000"):
        record(opened(), [Prompt("The sea")], max_tokens=5000)


def test_the_bundled_set_has_eight_passages_of_seven_domains() -> None:
    prompts = bundled()
    domains = [prompt.domain for prompt in prompts]
    assert {name: domains.count(name) for name in domains} == dict.fromkeys(
        ("code", "english", "french", "german", "italian", "mathematics", "spanish"), 8
    )
    assert len(set(domains[:7])) == 7  # a cut leaves all domains
    assert all(200 < len(prompt.text) < 600 for prompt in prompts)
