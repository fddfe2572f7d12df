"""The routing object of `inspect --routing --json`: the keys that are promised, and no number that JSON lacks."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from moecli.output.json.routing_report import document
from moecli.routing.report import report
from moecli.routing.trace import bare
from tests.support.traces import recorded_trace, uniform

LAYER_KEYS = "layer counts entropy max_violation cv2 gini dead repeat_top1 repeat_any baseline".split()
BASELINE_KEYS = "entropy max_violation cv2 gini dead repeat_top1 repeat_any".split()


@pytest.fixture(scope="module")
def written() -> Any:
    analysed = report(recorded_trace())
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


def test_counts_are_a_plain_recount(written: Any) -> None:
    trace = recorded_trace()
    for layer, found in zip(trace.layers, written["layers"], strict=True):
        recount = Counter(expert for row in layer.chosen.tolist() for expert in row)
        assert found["counts"] == [recount[expert] for expert in range(8)]
        by_domain = [sum(column) for column in zip(*found["counts_by_domain"].values(), strict=True)]
        assert by_domain == found["counts"]
        first = layer.chosen[:, 0].tolist()
        pairs = [(first[t], first[t - 1]) for t in range(1, trace.tokens) if trace.prompt[t] == trace.prompt[t - 1]]
        assert len(pairs) == trace.tokens - 6
        assert found["repeat_top1"] == sum(a == b for a, b in pairs) / len(pairs)


def test_the_smallest_trace_has_a_document_without_nan() -> None:
    lonely = report(bare({5: (4, np.array([[2]], np.uint16))}))
    text = json.dumps(document(lonely), allow_nan=False)
    layer = json.loads(text)["layers"][0]
    assert layer["repeat_top1"] is None
    assert layer["z_loss"] is None
    assert json.loads(text)["cache"]["budget_bytes"] is None
    assert json.loads(text)["few_tokens"] is True


@pytest.mark.parametrize(("experts", "active"), [(1, 1), (2, 2), (300, 10)])
def test_odd_shapes(experts: int, active: int) -> None:
    chosen = uniform(experts, active, 30)
    json.dumps(document(report(bare({0: (experts, chosen), 1: (experts, chosen)}))), allow_nan=False)
