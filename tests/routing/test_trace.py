"""Traces: recording, files, and exchange with other tools."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.errors import MoecliError
from moecli.routing import trace_file
from moecli.routing.builder import TraceBuilder
from moecli.routing.exchange import from_csv, from_jsonl, to_csv, to_jsonl
from moecli.routing.trace import RoutingTrace
from tests.support.traces import uniform


def gates(tokens: int, experts: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(experts), tokens)


def recorded(keep: bool = True) -> RoutingTrace:
    """Two prompts of two domains, three generated tokens, layers 1 (8/2) and 4 (300/3)."""
    builder = TraceBuilder({1: 8, 4: 300}, keep_probabilities=keep)
    seed = 0
    for prompt, domain in enumerate(("code", "français")):
        builder.begin(prompt, domain)
        for size, generated in ((5, False), (1, True), (1, True), (1, True)):
            builder.tokens(range(10 * seed, 10 * seed + size), generated)
            for layer, experts, active in ((1, 8, 2), (4, 300, 3)):
                shares = gates(size, experts, seed)
                order = np.argsort(-shares, 1)[:, :active]
                builder.record(layer, order, np.take_along_axis(shares, order, 1), 5 * shares, np.full(size, 2.0))
                if not generated:
                    builder.foreseen(layer, prompt + 1, 10)
            seed += 1
    return builder.build({0: "a", 7: "\n…"}, name="tiny", revision="abc", dtype="bf16", family="mixtral")


def assert_equal(one: RoutingTrace, other: RoutingTrace, exact: bool = True) -> None:
    for item in fields(RoutingTrace):
        if item.name != "layers":
            assert np.array_equal(getattr(one, item.name), getattr(other, item.name)), item.name
    for left, right in zip(one.layers, other.layers, strict=True):
        for item in fields(type(left)):
            a, b = getattr(left, item.name), getattr(right, item.name)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-3)
            else:
                assert a == b


def test_what_was_recorded_is_in_the_trace() -> None:
    trace = recorded()
    assert trace.tokens == 16
    assert trace.prompt.tolist() == [0] * 8 + [1] * 8
    assert trace.generated.tolist() == ([False] * 5 + [True] * 3) * 2
    assert trace.domains == ("code", "français")
    layer = trace.layers[0]
    assert layer.probabilities is not None
    assert layer.entropy is not None
    assert layer.mean_probabilities is not None
    p = layer.probabilities.astype(float)
    assert p.sum(1) == pytest.approx(1)
    assert layer.entropy == pytest.approx(-(p * np.log(p)).sum(1) / np.log(8), abs=1e-5)
    assert layer.mean_probabilities[1] == pytest.approx(p[8:].mean(0), abs=1e-5)
    assert layer.log_sum_squared == 4 and layer.foreseen == 3 / 20
    assert np.argsort(-p, 1)[:, :2].tolist() == layer.chosen.tolist()


def test_layer_after_layer_gives_the_same_trace_as_token_after_token() -> None:
    chosen = {0: uniform(8, 2, 7, 1), 1: uniform(8, 2, 7, 2)}
    by_layer, by_prompt = TraceBuilder({0: 8, 1: 8}), TraceBuilder({0: 8, 1: 8})
    parts = [(0, "a", slice(0, 3)), (1, "b", slice(3, 7))]
    for prompt, domain, part in parts:
        by_prompt.begin(prompt, domain)
        by_prompt.tokens(range(7)[part], False)
        for layer in (0, 1):
            by_prompt.record(layer, chosen[layer][part], None, gates(7, 8)[part])
    for layer in (0, 1):
        for prompt, domain, part in parts:
            by_layer.begin(prompt, domain)
            if layer == 0:
                by_layer.tokens(range(7)[part], False)
            by_layer.record(layer, chosen[layer][part], None, gates(7, 8)[part])
    assert_equal(by_layer.build(), by_prompt.build())


def test_an_interrupted_pass_is_left_out() -> None:
    builder = TraceBuilder({0: 8, 1: 8})
    builder.tokens([1, 2, 3], False)
    builder.record(0, uniform(8, 2, 3))
    builder.record(1, uniform(8, 2, 3))
    builder.tokens([4], True)
    builder.record(0, uniform(8, 2, 1))
    trace = builder.build()
    assert trace.ids.tolist() == [1, 2, 3]
    assert [len(layer.chosen) for layer in trace.layers] == [3, 3]
    with pytest.raises(MoecliError, match="no routing"):
        TraceBuilder({0: 8}).build()


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_holds_the_trace(tmp_path: Path, keep: bool) -> None:
    trace, path = recorded(keep), tmp_path / "a.trace"
    trace_file.save(trace, path)
    once = trace_file.load(path)
    assert_equal(trace, once, exact=False)
    trace_file.save(once, path)
    assert_equal(once, trace_file.load(path))
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_describes_itself(tmp_path: Path) -> None:
    """A reader of twenty lines, from the description alone."""
    trace, path = recorded(), tmp_path / "a.trace"
    trace_file.save(trace, path)
    first, header_line, data = path.read_bytes().split(b"\n", 2)
    assert first.split()[:2] == [b"moecli-trace", b"1"]
    header, start, arrays = json.loads(header_line), 0, {}
    for name, kind, shape in header["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, "<" + kind, count, start).reshape(shape)
        start += count * int(kind[1])
    assert start == len(data)
    assert header["layers"][1]["experts"] == 300
    assert arrays["4/chosen"].tolist() == trace.layers[1].chosen.tolist()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "saved.trace"
    trace_file.save(recorded(), path)
    return path


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(saved: Path, place: int, bit: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place % len(content)] ^= 1 << bit
    broken = saved.with_name("flipped.trace")
    broken.write_bytes(content)
    with pytest.raises(MoecliError) as caught:
        trace_file.load(broken)
    assert caught.value.hint


@given(length=st.integers(0, 10**9))
def test_a_truncated_file_is_found(saved: Path, length: int) -> None:
    content = saved.read_bytes()
    broken = saved.with_name("short.trace")
    broken.write_bytes(content[: length % len(content)])
    with pytest.raises(MoecliError, match=r"damaged|not a trace"):
        trace_file.load(broken)


def forge(saved: Path, change: Any) -> Path:
    """A file with a right checksum and a wrong header."""
    _, line, data = saved.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    data = change(header, data) or data
    body = json.dumps(header).encode() + b"\n" + data
    path = saved.with_name("forged.trace")
    path.write_bytes(b"moecli-trace 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    return path


def set_at(*keys: Any) -> Any:
    *way, last, value = keys

    def change(header: Any, data: bytes) -> None:
        for key in way:
            header = header[key]
        header[last] = value

    return change


FORGERIES = {
    "more tokens": set_at("tokens", 10**12),
    "no tokens": set_at("tokens", 0),
    "tokens of text": set_at("tokens", "5"),
    "fewer experts": set_at("layers", 0, "experts", 3),
    "too many experts": set_at("layers", 0, "experts", 10**9),
    "more active than experts": set_at("layers", 0, "active", 9),
    "negative layer": set_at("layers", 0, "layer", -1),
    "twice the same layer": lambda header, data: header["layers"].append(header["layers"][0]),
    "no layers": set_at("layers", []),
    "a layer that is a number": set_at("layers", 0, 3),
    "no domains": set_at("domains", []),
    "a thousand domains": set_at("domains", ["x"] * 1000),
    "one domain less": set_at("domains", ["code"]),
    "a huge shape": set_at("arrays", 0, 2, [2**62, 2**62]),
    "a negative shape": set_at("arrays", 0, 2, [-1]),
    "an object array": set_at("arrays", 0, 1, "O8"),
    "a float choice": set_at("arrays", 4, 1, "f1"),
    "pieces that are no table": set_at("pieces", []),
    "a piece that is a number": set_at("pieces", {"1": 2}),
    "a model that is a list": set_at("model", [1]),
    "nan": set_at("layers", 0, "log_sum_squared", float("nan")),
    "more foreseen than chosen": set_at("layers", 0, "foreseen", 1.5),
    "bytes left over": lambda header, data: data + b"\0",
    "an expert out of range": lambda header, data: data[: 16 * 11] + b"\x08" + data[16 * 11 + 1 :],
    "an expert twice": lambda header, data: data[: 16 * 11] + b"\1\1" + data[16 * 11 + 2 :],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_refused(saved: Path, name: str) -> None:
    with pytest.raises(MoecliError, match="is damaged"):
        trace_file.load(forge(saved, FORGERIES[name]))


def test_files_that_are_no_traces_say_so(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(MoecliError, match="cannot read"):
        trace_file.load(tmp_path / "missing")
    (tmp_path / "text").write_text("hello world out there\n")
    with pytest.raises(MoecliError, match="is not a trace"):
        trace_file.load(tmp_path / "text")
    (tmp_path / "new").write_bytes(saved.read_bytes().replace(b"moecli-trace 1", b"moecli-trace 2", 1))
    with pytest.raises(MoecliError, match="version 2"):
        trace_file.load(tmp_path / "new")


def test_csv_and_back() -> None:
    trace = recorded()
    same = replace(trace, layers=trace.layers[:1])
    back = from_csv(to_csv(same), active=2, experts=8)
    assert back.layers[0].chosen.tolist() == trace.layers[0].chosen.tolist()
    assert from_csv(["3,0", "3,5", "", " 3 , 1", "3,2"], 2).layers[0].experts == 6
    whole = from_csv(to_csv(same), active=None)
    assert whole.prompt.tolist() == trace.prompt.tolist() and whole.ids.tolist() == trace.ids.tolist()
    for ours, theirs in zip(same.layers, whole.layers, strict=True):
        assert (ours.layer, ours.chosen.tolist()) == (theirs.layer, theirs.chosen.tolist())
        assert ours.weights is not None and theirs.weights == pytest.approx(ours.weights, rel=1e-4)
    lines = list(to_csv(same))
    assert lines[0] == "prompt,position,token,layer,expert,weight" and lines[1].split(",")[:2] == ["0", "0"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0,1", "0"], "line 2"),
        (["layer,expert,weight", "0,1,0.5", "0,1,x"], "line 3"),
        (["layer,weight", "0,1"], "line 1"),
        (["0,-1"], "line 1"),
        (["0,1", "0,2", "1,1"], "have 1, 2 choices, not the same multiple of 2"),
        (["0,1", "0,2", "0,3"], "have 3 choices"),
        (["0,1", "0,1"], "twice"),
        (["0,1", "0,9"], "expert 9 of 8"),
        ([], "no choice in"),
    ],
)
def test_csv_that_cannot_be_meant(lines: list[str], message: str) -> None:
    with pytest.raises(MoecliError, match=message):
        from_csv(lines, active=2, experts=8)


def test_jsonl_and_back() -> None:
    trace = recorded()
    stripped = tuple(
        replace(layer, entropy=None, mean_probabilities=None, log_sum_squared=None, foreseen=None)
        for layer in trace.layers
    )
    back = from_jsonl(to_jsonl(trace))
    used = {number: text for number, text in trace.pieces.items() if number in trace.ids}
    assert_equal(replace(trace, layers=stripped, pieces=used), back, exact=False)


TOKEN = '{"layers": {"0": {"experts": [0, 1]}}}'


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["{}"],
        ["nonsense"],
        [TOKEN, "7"],
        [TOKEN, '{"layers": {"0": {"experts": [0]}}}'],
        [TOKEN, '{"layers": {"1": {"experts": [0, 1]}}}'],
        [TOKEN, '{"layers": {"0": {"experts": [0, 0]}}}'],
        [TOKEN, '{"layers": {"0": {"experts": [0, 1.5]}}}'],
        [TOKEN, '{"layers": {"0": {"experts": [0, -1]}}}'],
        [TOKEN, '{"layers": {"0": {"experts": [0, 99999]}}}'],
        [TOKEN, '{"layers": 3}'],
        [TOKEN, '{"token": -1, "layers": {"0": {"experts": [0, 1]}}}'],
        ['{"experts": {"0": "many"}}', TOKEN],
        ['{"experts": [8]}', TOKEN],
        ['{"layers": {}}'],
        ['{"layers": [1]}'],
        ['{"layers": {"0": {"experts": [0, 1], "weights": ["a", "b"]}}}'],
        ['{"layers": {"0": {"experts": [0, 1], "weights": ["nan", "inf"]}}}'],
        ['{"layers": {"0": {"experts": [0, 1], "weights": [1e400, 0.5]}}}'],
        ['{"token": 1e99, "layers": {"0": {"experts": [0, 1]}}}'],
        ['{"token": ' + "7" * 5000 + ', "layers": {"0": {"experts": [0, 1]}}}'],
        ['{"experts": {"0": 1e400}}', TOKEN],
        ['{"layers": ' + "[" * 5000 + "]" * 5000 + "}"],
    ],
)
def test_jsonl_that_cannot_be_meant(lines: list[str]) -> None:
    with pytest.raises(MoecliError) as caught:
        from_jsonl(lines)
    assert caught.value.hint
