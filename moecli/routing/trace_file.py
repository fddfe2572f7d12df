"""Trace files: a line of magic and checksum, a line of JSON, then the arrays as they lie in memory.

    moecli-trace 1 <sha256 of all that follows, 64 hexadecimal digits>
    {"model": ..., "tokens": T, "layers": [{"layer": 0, "experts": 8, "active": 2, ...}], "arrays": [...], ...}
    <arrays, little-endian, one after the other in the order of "arrays": [name, type, shape]>

Names: `ids`, `prompt`, `domain`, `generated` [T]; for layer 3 `3/chosen` and `3/weights` [T, k], `3/entropy` [T],
`3/mean_probabilities` [domains, E], `3/probabilities` [T, E]; all but `chosen` may be missing. Types: `u1`, `u2`,
`u4`, `f2`, `f4`, `f8`. Probabilities and entropies are kept in 16 bits.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.errors import MoecliError, json_object, unreadable
from moecli.routing.trace import MOST_DOMAINS, MOST_EXPERTS, LayerTrace, RoutingTrace
from moecli.store import filesystem

_MAGIC = b"moecli-trace"
_VERSION = 1
_TYPES = frozenset({"u1", "u2", "u4", "f2", "f4", "f8"})
_TEXTS = ("model", "revision", "dtype", "family")
_PER_LAYER = {"weights": "f4", "entropy": "f2", "mean_probabilities": "f8", "probabilities": "f2"}


def save(trace: RoutingTrace, path: Path) -> None:
    """Write the trace; an existing file is replaced when the new one is whole. DiskError if it cannot be."""
    arrays: dict[str, NDArray[Any]] = {
        "ids": trace.ids.astype("<u4"),
        "prompt": trace.prompt.astype("<u4"),
        "domain": trace.domain.astype("<u2"),
        "generated": trace.generated.astype("<u1"),
    }
    layers = []
    for layer in trace.layers:
        arrays[f"{layer.layer}/chosen"] = layer.chosen.astype("<u1" if layer.experts <= 256 else "<u2")
        for name, kind in _PER_LAYER.items():
            if (array := getattr(layer, name)) is not None:
                arrays[f"{layer.layer}/{name}"] = array.astype(f"<{kind}")
        row = {"layer": layer.layer, "experts": layer.experts, "active": layer.active}
        layers.append(row | {"log_sum_squared": layer.log_sum_squared, "foreseen": layer.foreseen})
    header = {
        **{name: getattr(trace, name) for name in _TEXTS},
        "provenance": dict(trace.provenance),
        "tokens": trace.tokens,
        "domains": trace.domains,
        "layers": layers,
        "pieces": {str(number): text for number, text in trace.pieces.items()},
        "arrays": [[name, array.dtype.str.lstrip("<|"), array.shape] for name, array in arrays.items()],
    }
    body = json.dumps(header, allow_nan=False).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
    first = f"{_MAGIC.decode()} {_VERSION} {hashlib.sha256(body).hexdigest()}\n".encode()
    filesystem.write(path, [first, body])


def load(path: Path) -> RoutingTrace:
    """Read a trace from anyone. MoecliError if it is no trace, of a newer version, damaged or inconsistent."""
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = unreadable(path, error, "record one: moecli run MODEL PROMPT --trace FILE").hint
        raise MoecliError(f"cannot read the trace {path}: {error.strerror}", hint) from error
    first, _, body = content.partition(b"\n")
    words = first.split(b" ")
    if words[0] != _MAGIC or len(words) != 3:
        raise MoecliError(f"{path} is not a trace", "record one: moecli run MODEL PROMPT --trace FILE")
    if words[1] != str(_VERSION).encode():
        version = words[1].decode(errors="replace")[:20]
        raise MoecliError(f"{path} has trace version {version}, not {_VERSION}", "upgrade moecli, or record it again")
    if hashlib.sha256(body).hexdigest().encode() != words[2]:
        raise _damaged(path, "its checksum is wrong")
    line, _, data = body.partition(b"\n")
    try:
        return _read(json_object(line, lambda problem: _damaged(path, f"it {problem}")), data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error


def _damaged(path: Path, reason: str) -> MoecliError:
    return MoecliError(f"the trace {path} is damaged: {reason[:200]}", "record or copy it again")


def _read(header: dict[str, Any], data: bytes) -> RoutingTrace:
    """The trace, each number checked against every other. ValueError and its like where they disagree."""
    tokens, domains = header["tokens"], tuple(header["domains"])
    _require(type(tokens) is int and tokens > 0, "no tokens")
    _require(0 < len(domains) <= MOST_DOMAINS and all(isinstance(name, str) for name in domains), "domains")
    texts = {name: header[name] for name in _TEXTS}
    provenance = dict(header.get("provenance", {}))
    _require(all(isinstance(text, str) for text in provenance.values()), "provenance")
    pieces = {int(number): text for number, text in header["pieces"].items()}
    _require(all(isinstance(text, str) for text in (*texts.values(), *pieces.values())), "texts")
    arrays = _arrays(header["arrays"], data)
    layers = tuple(_layer(row, arrays, tokens, len(domains)) for row in header["layers"])
    _require(bool(layers) and len({layer.layer for layer in layers}) == len(layers), "layers")
    columns = {name: _shaped(arrays, name, (tokens,)) for name in ("ids", "prompt", "domain", "generated")}
    _require(bool(columns["domain"].max() < len(domains)), "a domain out of range")
    return RoutingTrace(
        layers,
        columns["ids"].astype(np.uint32),
        columns["prompt"].astype(np.uint32),
        columns["domain"].astype(np.uint16),
        columns["generated"].astype(bool),
        domains,
        pieces,
        provenance=provenance,
        **texts,
    )


def _arrays(table: list[Any], data: bytes) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for name, kind, shape in table:
        _require(kind in _TYPES, f"type {kind!r} of {name!r}")
        _require(all(type(size) is int and 0 < size <= len(data) for size in shape), f"shape of {name!r}")
        count = math.prod(shape)
        stop = start + count * int(kind[1])
        _require(stop <= len(data), "it ends too early")
        arrays[name] = np.frombuffer(data, f"<{kind}", count, start).reshape(shape)
        start = stop
    _require(start == len(data), "it is longer than it says")
    return arrays


def _layer(row: dict[str, Any], arrays: dict[str, NDArray[Any]], tokens: int, domains: int) -> LayerTrace:
    number, experts, active, log_sum_squared = (row[k] for k in ("layer", "experts", "active", "log_sum_squared"))
    _require(all(type(n) is int and n >= 0 for n in (number, experts, active)), "a layer's sizes")
    _require(0 < active <= experts <= MOST_EXPERTS, f"{active} of {experts} experts")
    _require(log_sum_squared is None or 0 <= float(log_sum_squared) < math.inf, "log_sum_squared")
    foreseen = row.get("foreseen")
    _require(foreseen is None or 0 <= float(foreseen) <= 1, "foreseen")
    shapes = {
        "weights": (tokens, active),
        "entropy": (tokens,),
        "mean_probabilities": (domains, experts),
        "probabilities": (tokens, experts),
    }
    chosen = _shaped(arrays, f"{number}/chosen", (tokens, active))
    _require(chosen.dtype.kind == "u" and int(chosen.max()) < experts, f"an expert out of range in layer {number}")
    ordered = np.sort(chosen, axis=1)
    _require(bool((ordered[:, 1:] != ordered[:, :-1]).all()), f"an expert chosen twice by a token in layer {number}")
    parts: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        if f"{number}/{name}" in arrays:
            wide = np.float64 if name == "mean_probabilities" else np.float32
            parts[name] = _shaped(arrays, f"{number}/{name}", shape).astype(wide)
            _require(bool(np.isfinite(parts[name]).all()), f"a number in {name} of layer {number} that is none")
    return LayerTrace(
        number, experts, chosen.astype(np.uint16), log_sum_squared=log_sum_squared, foreseen=foreseen, **parts
    )


def _shaped(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    _require(arrays[name].shape == shape, f"shape {list(arrays[name].shape)} of {name!r}, not {list(shape)}")
    return arrays[name]


def _require(condition: bool, wrong: str) -> None:
    if not condition:
        raise ValueError(wrong)
