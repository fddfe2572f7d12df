"""The report and its JSON, on a trace of the built-in model and on drawn ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecli.routing.document import document
from moecli.routing.report import RoutingReport, report
from moecli.routing.trace import LayerTrace, Trace, bare
from tests.support.traces import recorded, uniform

LAYER_KEYS = "layer counts entropy max_violation cv2 gini dead repeat_top1 repeat_any baseline".split()
BASELINE_KEYS = "entropy max_violation cv2 gini dead repeat_top1 repeat_any".split()


@pytest.fixture(scope="module")
def trace() -> Trace:
    layers, names, ids = recorded()
    domains = tuple(dict.fromkeys(names))
    domain = np.array([domains.index(name) for name in names])
    return Trace(
        tuple(LayerTrace(layer, 8, chosen) for layer, chosen in enumerate(layers)),
        np.array(ids, np.uint32),
        domain.astype(np.uint32),
        domain.astype(np.uint16),
        np.zeros(len(ids), bool),
        domains,
    )


@pytest.fixture(scope="module")
def analysed(trace: Trace) -> RoutingReport:
    return report(trace)


@pytest.fixture(scope="module")
def written(analysed: RoutingReport) -> Any:
    return json.loads(json.dumps(document(analysed, bytes_per_slot=1000, with_coactivation=True), allow_nan=False))


def test_the_promised_keys(written: Any) -> None:
    assert {"tokens", "prompt_tokens", "generated_tokens", "layers", "coactivation", "cache"} <= written.keys()
    for layer in written["layers"]:
        assert set(LAYER_KEYS) <= layer.keys()
        assert set(BASELINE_KEYS) <= layer["baseline"].keys()
        assert set(BASELINE_KEYS) <= layer["limit"].keys()
    assert set(BASELINE_KEYS) <= written["overall"].keys()
    assert set(BASELINE_KEYS) <= written["overall"]["baseline"].keys()
    mean = np.mean([layer["cv2"] for layer in written["layers"]])
    assert written["overall"]["cv2"] == pytest.approx(mean)
    for layer in written["layers"]:
        assert isinstance(layer["dead"], int)
        assert layer["baseline"]["repeat_top1"] == 0.125
        assert round(layer["baseline"]["repeat_any"], 3) == 0.464
    cache = written["cache"]
    assert cache["budget_bytes"] == [1000 * slots for slots in cache["slots"]]
    assert {len(cache[name]) for name in ("lru", "lfu", "belady", "budget_bytes")} == {len(cache["slots"])}


def test_counts_are_a_plain_recount(trace: Trace, written: Any) -> None:
    for layer, found in zip(trace.layers, written["layers"], strict=True):
        recount = Counter(expert for row in layer.chosen.tolist() for expert in row)
        assert found["counts"] == [recount[expert] for expert in range(8)]
        by_domain = [sum(column) for column in zip(*found["counts_by_domain"].values(), strict=True)]
        assert by_domain == found["counts"]
        first = layer.chosen[:, 0].tolist()
        pairs = [(first[t], first[t - 1]) for t in range(1, trace.tokens) if trace.prompt[t] == trace.prompt[t - 1]]
        assert len(pairs) == trace.tokens - 6
        assert found["repeat_top1"] == sum(a == b for a, b in pairs) / len(pairs)


def test_the_built_in_model_specialises_beyond_noise(analysed: RoutingReport) -> None:
    distances = [layer.domain_distance for layer in analysed.layers]
    assert all(distance is not None and distance.beyond_noise for distance in distances[1:])
    middle = analysed.layers[3]
    assert (middle.repetition.top1 or 0) > (middle.repetition_baseline.limit.top1 or 1)
    assert (middle.vocabulary.lift or 0) > (middle.vocabulary.shuffled_lift or 9) * 1.2
    assert analysed.verdict is not None
    assert analysed.verdict.pays


def test_the_smallest_trace_has_a_document_without_nan() -> None:
    lonely = report(bare({5: (4, np.array([[2]], np.uint16))}))
    text = json.dumps(document(lonely), allow_nan=False)
    layer = json.loads(text)["layers"][0]
    assert layer["repeat_top1"] is None
    assert layer["z_loss"] is None
    assert json.loads(text)["cache"]["budget_bytes"] is None
    assert lonely.few_tokens


@pytest.mark.parametrize(("experts", "active"), [(1, 1), (2, 2), (300, 10)])
def test_odd_shapes(experts: int, active: int) -> None:
    chosen = uniform(experts, active, 30)
    json.dumps(document(report(bare({0: (experts, chosen), 1: (experts, chosen)}))), allow_nan=False)


def test_the_losses_of_a_uniform_gate() -> None:
    """Auxiliary loss k, gate entropy 1."""
    plain = bare({0: (16, uniform(16, 4, 500))})
    layer = replace(
        plain.layers[0],
        entropy=np.ones(500, np.float32),
        mean_probabilities=np.full((1, 16), 1 / 16),
        log_sum_squared=7.5,
    )
    found = report(replace(plain, layers=(layer,)), with_replay=False).layers[0]
    assert found.auxiliary_loss == pytest.approx(4)
    assert found.gate_entropy == 1
    assert found.z_loss == 7.5


def test_few_tokens_are_said_to_be_few() -> None:
    assert report(bare({0: (64, uniform(64, 8, 20))}), with_replay=False).few_tokens
    assert not report(bare({0: (64, uniform(64, 8, 2000))}), with_replay=False).few_tokens


def test_no_torch_in_the_room() -> None:
    code = "import sys, moecli.routing.document, moecli.routing.trace_file, moecli.routing.builder, "
    code += "moecli.routing.agreement, moecli.routing.exchange; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
