"""Perplexity and comparisons of texts, against plain computations: transformers, and whole tables in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as examples
from hypothesis import strategies as some

from moecli.engine.compare import TextComparison, check_comparable, compare_text
from moecli.engine.estimates import RUN, Estimate, exponential, mean, runs
from moecli.engine.likelihood import Likelihood, plan_to_score, read_text
from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.engine.recorder import Recorder, new_builders
from moecli.engine.windows import Cut, Window, given, how_to_cut, pieces, windows
from moecli.errors import MoecliError, NotEnoughMemory, UsageError
from moecli.library.resolve import Kind, ModelRef, built_in
from moecli.routing.agreement import agreement
from moecli.routing.trace import RoutingTrace
from moecli.store.packed import PackedStore
from moecli.store.progress import silent
from tests.support import checkpoints, stores

IDS = checkpoints.prompt(400, 3)
LENGTHS = (100, 2, 77, 200)


def opened(folder: Path, dtype: str = "auto", ram: int = 2**34) -> OpenedModel:
    ref = ModelRef(str(folder), folder.name, Kind.FOLDER, folder)
    return open_for_run(ref, LoadOptions(dtype=dtype, threads=1, ram=ram))


def some_windows() -> list[Window]:
    """Some of them score all but their first token, others fewer."""
    ends = np.cumsum(LENGTHS)
    return [Window(tuple(IDS[end - size : end]), 1 + size // 50) for end, size in zip(ends, LENGTHS, strict=True)]


def read(one: OpenedModel, texts: Sequence[Window]) -> Likelihood:
    (plan,) = plan_to_score([one], texts)
    return read_text(one.decoder(plan, silent), texts, plan.memory.block, silent)


def test_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    model = checkpoints.make("mixtral")
    folder = checkpoints.write(model, tmp_path / "mixtral")
    stores.tokenizer(folder)
    texts, losses = some_windows(), []
    for text in texts:
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            logits = model(ids).logits[0]
        losses.append(F.cross_entropy(logits[text.first - 1 : -1], ids[0, text.first :], reduction="none"))
    found, plain = read(opened(folder), texts), torch.cat(losses)
    assert (found.windows, found.tokens, found.scored) == (4, sum(LENGTHS), len(plain))
    assert found.loss.value == pytest.approx(float(plain.mean()), abs=2e-5)
    assert found.perplexity.value == pytest.approx(math.exp(float(plain.mean())), rel=2e-5)


# Comparisons -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedStore, PackedStore]:
    """Two formats of one model."""
    folder = tmp_path_factory.mktemp("compared")
    source = stores.random_mixtral(folder / "mixtral")
    return stores.packed(source, folder / "q8", "q8"), stores.packed(source, folder / "q3", "q3")


def compared(both: Sequence[PackedStore], ram: int = 2**34) -> tuple[TextComparison, list[int], int]:
    """The figures, how many bytes were read of each, and how many tokens passed together."""
    texts = some_windows()
    models = [opened(each.folder, ram=ram) for each in both]
    plans = plan_to_score(models, texts)
    together = plans[0].memory.block
    decoders = [each.decoder(plan, silent) for each, plan in zip(models, plans, strict=True)]
    found = compare_text(decoders, texts, together, silent)
    return found, [each.experts.statistics.bytes_read for each in decoders], together


def plain(store: PackedStore) -> tuple[torch.Tensor, RoutingTrace]:
    """Log-probabilities [N, V] in place of every scored token, and the routing: window by window, all in memory."""
    decoder, builder = stores.decoder(store, None), new_builders("it", store.spec)[""]
    recorder, tables = Recorder(store.spec, builder), []
    for number, text in enumerate(some_windows()):
        recorder.begin(number)
        states = decoder.forward(torch.tensor(text.ids), decoder.new_cache(256, 256), recorder)
        tables.append(decoder.logits(states).log_softmax(-1)[text.first - 1 : -1])
    recorder.flush()
    return torch.cat(tables), builder.build(name="it")


def test_figures_are_those_of_whole_tables_in_memory(packed: tuple[PackedStore, PackedStore]) -> None:
    found, _, _ = compared(packed)
    (one, ours), (other, theirs) = map(plain, packed)
    targets = torch.tensor([each for text in some_windows() for each in text.ids[text.first :]])
    first, second = (-each.gather(1, targets[:, None])[:, 0] for each in (one, other))
    apart = F.kl_div(other, one, log_target=True, reduction="none").sum(1)
    assert found.first.loss.value == pytest.approx(float(first.mean()), abs=1e-4)
    assert found.second.loss.value == pytest.approx(float(second.mean()), abs=1e-4)
    assert found.difference.value == pytest.approx(float((second - first).mean()), abs=1e-4)
    assert found.divergence.mean.value == pytest.approx(float(apart.mean()), rel=1e-3) and apart.mean() > 0.01
    assert found.divergence.median == pytest.approx(float(np.median(apart.numpy())), rel=1e-2)
    assert found.divergence.largest == pytest.approx(float(apart.max()), rel=1e-2)
    same = (one.argmax(1) == other.argmax(1)).float().mean()
    assert found.same_top.value == pytest.approx(float(same), abs=0.005) and same < 1
    expected = agreement(ours, theirs)
    assert found.routing is not None and found.routing.tokens == expected.tokens == sum(LENGTHS)
    assert found.routing.equal_sets == pytest.approx(expected.equal_sets, abs=0.005) and expected.equal_sets < 1
    for mine, layer in zip(found.routing.layers, expected.layers, strict=True):
        assert mine.layer == layer.layer and mine.load_distance == pytest.approx(layer.load_distance, abs=1e-3)
        assert mine.overlap == pytest.approx(layer.overlap, abs=0.005)


def test_a_model_compared_with_itself_is_no_other(packed: tuple[PackedStore, PackedStore]) -> None:
    found, _, _ = compared((packed[0], packed[0]))
    assert (found.divergence.largest, found.same_top.value, found.difference.value) == (0, 1, 0)
    assert found.routing is not None and found.routing.equal_sets == found.routing.overlap == 1


def test_memory_changes_no_figure_and_each_expert_is_read_once(packed: tuple[PackedStore, PackedStore]) -> None:
    """In the least that works, all tokens together or in groups, with each store's experts on disk."""
    whole, read_then, _ = compared(packed)
    with pytest.raises(NotEnoughMemory, match="side by side need") as refused:
        compared(packed, 2**20)
    assert refused.value.hint is not None and read_then == [0, 0]
    least = int(float(refused.value.hint.split()[1].removesuffix("MiB")) * 2**20)
    found, bytes_read, together = compared(packed, least)
    assert found == whole
    assert together < sum(LENGTHS) and all(bytes_read)
    for ram in range(least, least + 2**26, 2**21):
        again, bytes_read, together = compared(packed, ram)
        assert again == whole
        if together >= sum(LENGTHS):
            break
    experts = [len(store.spec.mixtures) * store.spec.mixtures[0][1].router.experts for store in packed]
    assert bytes_read == [count * store.record(0).stride for count, store in zip(experts, packed, strict=True)]


def test_models_of_other_tokens_are_not_compared(packed: tuple[PackedStore, PackedStore]) -> None:
    one = opened(packed[0].folder)
    check_comparable(one, opened(packed[1].folder))
    with pytest.raises(MoecliError, match="500 tokens and tiny 4"):
        check_comparable(one, open_for_run(built_in(), LoadOptions(threads=1)))


# Windows -----------------------------------------------------------------------------------------------------------


@examples(some.integers(1, 300), some.integers(3, 80), some.integers(1, 80), some.booleans())
def test_every_token_is_scored_once_unless_nothing_stands_before_it(
    count: int, size: int, step: int, bos: bool
) -> None:
    before = (7,) if bos else ()
    stride = min(step, size - len(before))
    found = windows(range(100, 100 + count), Cut(size, stride, before))
    scored = [each for window in found for each in window.ids[window.first :]]
    first = [] if bos else [100 + start for start in range(0, count, stride)][: 1 if stride < size else None]
    assert scored == [each for each in range(100, 100 + count) if each not in first]
    for window in found:
        assert len(window.ids) <= size and window.ids[: len(before)] == before and window.first >= 1
        text = window.ids[len(before) :]
        assert text == tuple(range(text[0], text[0] + len(text)))
        assert window is found[0] or window.first - len(before) in (size - len(before) - stride, 1)


def test_what_makes_no_windows_is_refused() -> None:
    assert how_to_cut(300, None, None, (1,)) == Cut(300, 299, (1,))
    assert how_to_cut(9000, None, 512, ()) == Cut(2048, 512)
    with pytest.raises(UsageError, match="--ctx 2 has no room"):
        how_to_cut(300, 2, None, (1,))
    with pytest.raises(UsageError, match="--stride 100 would leave out text"):
        how_to_cut(300, 100, 100, (1,))
    assert pieces([1, 2, 3, 4, 5], 2) == [Window((1, 2)), Window((3, 4))]


def test_windows_of_ids_are_read_as_they_are() -> None:
    assert given('[1, 2, 3]\n\n{"token_ids": [4, 5], "more": 1}\n[6]\n', "w", 10) == [Window((1, 2, 3)), Window((4, 5))]
    for text in ("", "a text", "[note] a text", '{"a": 1}', "[]", "[1.5]", "[true]", "[" * 9999):
        assert given(text, "w", 10) is None
    with pytest.raises(MoecliError, match="line 2 of w is no list"):
        given("[1, 2]\nthe sea", "w", 10)
    with pytest.raises(MoecliError, match="line 1 of w has id 10, and the model knows 0 to 9"):
        given("[1, 10]", "w", 10)


# Errors ------------------------------------------------------------------------------------------------------------


def test_an_error_is_that_of_runs_of_neighbours() -> None:
    of_run = runs([2 * RUN, 3, 1])
    assert np.bincount(of_run).tolist() == [RUN, RUN, 3, 1]
    assert mean(np.ones(5, np.float32), runs([5])) == Estimate(1.0, None)
    sizes, generator = [RUN] * 400, np.random.default_rng(0)
    of_run = runs(sizes)
    levels = generator.normal(2, 1, len(sizes))  # all tokens of a run alike: as if there were 400
    found = mean(levels[of_run], of_run)
    assert found.value == pytest.approx(levels.mean()) and found.error == pytest.approx(1 / 20, rel=0.1)
    alone = mean(generator.normal(2, 1, sum(sizes)), of_run)
    assert alone.error == pytest.approx(1 / math.sqrt(sum(sizes)), rel=0.1)
    assert exponential(Estimate(2.0, 0.1)) == Estimate(math.exp(2), math.exp(2) * 0.1)
    assert exponential(Estimate(1e6, None)).value == math.inf
