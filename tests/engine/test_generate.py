"""Generation: limits, timing, errors, and checkpoints in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moecli.engine.decoder import Decoder
from moecli.engine.generate import Timing
from moecli.engine.load import open_model
from moecli.engine.router import Routing
from moecli.engine.sampling import Sampler, Sampling
from moecli.errors import MoecliError
from tests.support.checkpoints import make, prompt, write
from tests.support.running import answer, greedy, load, score, session


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(write(make("mixtral"), tmp_path_factory.mktemp("mixtral")))


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (1, 1), (5, 5), (100, 11)])
def test_as_many_tokens_as_asked_for_or_as_fit(limit: int, expected: int, decoder: Decoder) -> None:
    assert len(answer(session(decoder, capacity=30), prompt(20), limit)) == expected


def test_a_prompt_may_fill_the_context_and_not_more(decoder: Decoder) -> None:
    running = session(decoder, capacity=20)
    assert answer(running, prompt(20), 5) == greedy(decoder, prompt(20), 1)
    with pytest.raises(MoecliError, match="prompt is 21 tokens and the context 20"):
        answer(running, prompt(21), 5)


def test_an_empty_prompt_is_refused(decoder: Decoder) -> None:
    with pytest.raises(MoecliError, match="prompt is empty"):
        answer(session(decoder), [], 5)


def test_timing_counts_what_was_done(decoder: Decoder) -> None:
    timing = Timing()
    assert timing.prefill_rate is None and timing.decode_rate is None
    list(session(decoder).generate(prompt(20), Sampler(Sampling(), 0), 5, timing))
    assert (timing.prompt_tokens, timing.cached_tokens, timing.steps) == (20, 0, 4)
    assert timing.prefill_rate == pytest.approx(20 / timing.prefill_s)
    assert timing.decode_rate == pytest.approx(4 / timing.decode_s)


def test_the_penalty_sees_prompt_and_answer(decoder: Decoder) -> None:
    """With an overwhelming penalty no token comes twice, nor any of the prompt."""
    ids = prompt(20)
    sampler = Sampler(Sampling(repeat_penalty=100.0), 0)
    reply = list(session(decoder).generate(ids, sampler, 30, Timing()))
    assert len({*reply, *ids}) == len(reply) + len(set(ids))


class Recording:
    generated = False

    def __init__(self) -> None:
        self.seen: list[tuple[int, torch.Size, torch.Size]] = []
        self.read: list[int] = []

    def tokens(self, ids: torch.Tensor) -> None:
        self.read += ids.tolist()

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        self.seen.append((layer, routing.topk_ids.shape, routing.topk_weights.shape))


@pytest.mark.parametrize("window", [None, 8])
def test_an_answer_is_read_again_for_an_observer(window: int | None, tmp_path: Path) -> None:
    """Where a window has moved on, too: what it no longer holds of the prompt is read before."""
    decoder = load(write(make("mixtral", sliding_window=window), tmp_path))
    running, seen, again = session(decoder, capacity=80, chunk=8), Recording(), Recording()
    list(running.generate(prompt(30), Sampler(Sampling(), 0), 20, Timing(), seen))
    held, states = list(running.held), [[each.clone() for each in layer.held] for layer in running.cache.layers]
    running.read_answer_again(again)
    assert again.read == seen.read[30:] == held[30:] and len(again.read) == 19
    assert running.held == held and running.cache.length == len(held)
    for layer, before in zip(running.cache.layers, states, strict=True):
        for now, then in zip(layer.held, before, strict=True):
            rows = min(now.shape[1], then.shape[1])  # a window holds some more than it shows
            torch.testing.assert_close(now[:, -rows:], then[:, -rows:], rtol=0, atol=1e-4)
    more = [*held, 5, 6]
    assert answer(running, more, 5) == greedy(decoder, more, 5, chunk=8)
    session(decoder).read_answer_again(again)
    assert len(again.read) == 19, "nothing was said"


def test_a_trace_sees_every_mixture_of_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecli.engine.decoder.BLOCK", 6)
    decoder = load(write(make("deepseek_v3", num_hidden_layers=3), tmp_path))
    trace = Recording()
    decoder.forward(torch.tensor(prompt(10)), decoder.new_cache(10, 4), trace)
    assert trace.seen == [(layer, (tokens, 3), (tokens, 3)) for tokens in (6, 4) for layer in (1, 2)]
    assert trace.read == prompt(10)


@pytest.mark.parametrize("chunk", [1, 3, 5, 20, 64])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_the_last_layer_asks_for_the_experts_of_the_last_token(family: str, chunk: int, tmp_path: Path) -> None:
    decoder = load(write(make(family, num_hidden_layers=2), tmp_path))
    ids = torch.tensor(prompt(20))

    def states(last_only: bool, trace: Recording | None = None) -> tuple[torch.Tensor, int]:
        before = decoder.experts.statistics.hits
        result = decoder.forward(ids, decoder.new_cache(64, chunk), trace, last_only)
        return result, decoder.experts.statistics.hits - before

    (every, asked), (last, fewer) = states(last_only=False), states(last_only=True)
    assert len(every) == len(ids) and last.shape == (1, every.shape[1])
    assert torch.equal(last[0], every[-1])
    assert fewer < asked
    trace = Recording()
    watched, as_many = states(last_only=True, trace=trace)
    assert torch.equal(watched[0], every[-1]) and as_many == asked
    assert sum(shape[0] for layer, shape, _ in trace.seen if layer == 1) == len(ids)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["mixtral", "dbrx", "deepseek_v2", "deepseek_v3", "qwen2_moe"])
def test_half_precision_runs_close_to_full(family: str, name: str, tmp_path: Path) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    model, ids = make(family), prompt(60)
    with torch.inference_mode():
        for value in (*model.parameters(), *(b for n, b in model.named_buffers() if "inv_freq" not in n)):
            value.copy_(value.to(dtype))
        rounded = model(torch.tensor([ids])).logits[0]  # transformers, in float32 with the rounded weights
    assert open_model(write(model.to(dtype), tmp_path)).dtypes[0] == name
    exact = score(load(tmp_path, "fp32", 64), ids)
    assert (exact - rounded).abs().max() <= 1e-4
    half = score(load(tmp_path, name, 64), ids)
    assert half.dtype is torch.float32
    # A token whose router is torn may take another expert, so a few may differ much.
    error = (half - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.median() <= (0.03 if name == "bf16" else 0.004)
    assert not torch.equal(half, exact)
    assert len(greedy(load(tmp_path, name, 64), ids[:20], 10)) == 10
