"""Traces from and to other tools: CSV with a line for each choice, JSONL with an object for each token."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from moecli.errors import MoecliError, json_object, json_text
from moecli.routing.trace import MOST_DOMAINS, MOST_EXPERTS, Choices, LayerTrace, RoutingTrace, bare

_COLUMNS = "prompt", "position", "token", "layer", "expert", "weight"
_CSV_HINT = f"one line per choice: {','.join(_COLUMNS)}, or layer,expert alone"


def to_csv(trace: RoutingTrace) -> Iterator[str]:
    """Token by token, layer by layer, best expert first. `position` counts in the prompt, `token` is the id, `weight`
    is empty where it was not recorded. Lines without line ends."""
    yield ",".join(_COLUMNS)
    rows = [(layer.layer, layer.chosen, layer.weights) for layer in trace.layers]
    places: Counter[int] = Counter()
    for token, (prompt, number) in enumerate(zip(trace.prompt.tolist(), trace.ids.tolist(), strict=True)):
        for layer, chosen, weights in rows:
            shares = [""] * chosen.shape[1] if weights is None else [f"{w:.5g}" for w in weights[token].tolist()]
            for expert, weight in zip(chosen[token].tolist(), shares, strict=True):
                yield f"{prompt},{places[prompt]},{number},{layer},{expert},{weight}"
        places[prompt] += 1


def from_csv(lines: Iterable[str], active: int | None, experts: int | None = None) -> RoutingTrace:
    """`active` choices of each layer in a row are one token's; None: as many as the first token's first layer has.
    Without `experts`: as many as the highest seen + 1. Of the columns only `layer` and `expert` are required."""
    table = _table(lines)
    names = [name for name in _COLUMNS if name in table]
    first = list(zip(*(table[name] for name in ("position", "layer") if name in table), strict=True))
    active = active or next((place for place, each in enumerate(first) if each != first[0]), None)
    if active is None:
        raise MoecliError(
            "with one layer alone it does not say how many experts a token takes",
            "name the model it is of: moecli inspect MODEL --routing --from FILE",
        )
    columns: dict[int, dict[str, list[float]]] = {}
    for row in zip(*(table[name] for name in names), strict=True):
        given = dict(zip(names, row, strict=True))
        kept = columns.setdefault(int(given["layer"]), {name: [] for name in names})
        for name, value in given.items():
            kept[name].append(value)
    trace = _bare(
        {layer: [int(expert) for expert in kept["expert"]] for layer, kept in columns.items()}, active, experts
    )
    one, nothing = columns[trace.layers[0].layer], trace.ids
    ids, prompt = (np.array(one[name][::active], np.uint32) if name in one else nothing for name in ("token", "prompt"))
    layers = trace.layers
    if "weight" in names and not any(math.isnan(weight) for weight in table["weight"]):
        weights = {layer: np.array(kept["weight"], np.float32).reshape(-1, active) for layer, kept in columns.items()}
        layers = tuple(replace(layer, weights=weights[layer.layer]) for layer in layers)
    return replace(trace, layers=layers, ids=ids, prompt=prompt)


def _table(lines: Iterable[str]) -> dict[str, list[float]]:
    """The columns by name; a weight that is missing is no number. MoecliError for another line."""
    names: tuple[str, ...] = ("layer", "expert")
    table: dict[str, list[float]] = {}
    for number, line in enumerate(lines, 1):
        fields = tuple(field.strip() for field in line.split(","))
        if fields == ("",):
            continue
        if not table and {"layer", "expert"} <= set(fields) <= set(_COLUMNS) and len(set(fields)) == len(fields):
            names = fields
        elif len(fields) != len(names) or not all(map(_is_value, names, fields)):
            raise MoecliError(f"line {number} is {line.strip()[:60]!r}, not {' and '.join(names)}", _CSV_HINT)
        else:
            for name, value in zip(names, fields, strict=True):
                table.setdefault(name, []).append(float(value or "nan"))
    if not table:
        raise MoecliError("there is no choice in the file", _CSV_HINT)
    return table


def _is_value(name: str, field: str) -> bool:
    if name == "weight":
        return re.fullmatch(r"|[0-9]{1,9}(\.[0-9]{0,9})?(e-?[0-9]{1,2})?", field, re.ASCII) is not None
    return field.isdecimal() and field.isascii() and len(field) < (7 if name in ("layer", "expert") else 10)


def _bare(chosen: Mapping[int, list[int]], active: int, experts: int | None) -> RoutingTrace:
    lengths = sorted({len(column) for column in chosen.values()})
    if len(lengths) != 1 or lengths[0] % active:
        raise MoecliError(
            f"the layers have {', '.join(map(str, lengths[:8])) or 'no'} choices, not the same multiple of {active}",
            "name the number of active experts per token, and give every token at every layer",
        )
    layers = {layer: np.array(column).reshape(-1, active) for layer, column in chosen.items()}
    known = experts or max(int(rows.max()) for rows in layers.values()) + 1
    return bare({layer: (known, _checked(rows, layer, known)) for layer, rows in layers.items()})


def _checked(rows: Any, layer: int, experts: int) -> Choices:
    """The rows [T, k] as choices. MoecliError unless they are in range and all different."""
    ordered = np.sort(rows, axis=1)
    if ordered.min() < 0 or ordered.max() >= experts or experts > MOST_EXPERTS:
        raise MoecliError(
            f"layer {layer} takes expert {ordered.max()} of {experts}", "name the right number of experts"
        )
    if (twice := (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)).any():
        token = int(twice.argmax())
        raise MoecliError(
            f"layer {layer} takes one expert twice for token {token}: {rows[token].tolist()}",
            "name the right number of active experts per token",
        )
    return np.asarray(rows, np.uint16)


def to_jsonl(trace: RoutingTrace) -> Iterator[str]:
    """A first line about the model, then a line per token. Lines without line ends."""
    about = {name: getattr(trace, name) for name in ("model", "revision", "dtype", "family")}
    about["provenance"] = dict(trace.provenance)
    yield json_text(about | {"experts": {str(layer.layer): layer.experts for layer in trace.layers}})
    for token, number in enumerate(trace.ids.tolist()):
        layers = {}
        for layer in trace.layers:
            row: dict[str, Any] = {"experts": layer.chosen[token].tolist()}
            if layer.weights is not None:
                row["weights"] = [round(weight, 5) for weight in layer.weights[token].tolist()]
            if layer.probabilities is not None:
                row["probabilities"] = [round(share, 5) for share in layer.probabilities[token].tolist()]
            layers[str(layer.layer)] = row
        line = {
            "token": number,
            "text": trace.pieces.get(number),
            "prompt": int(trace.prompt[token]),
            "domain": trace.domains[trace.domain[token]],
            "generated": bool(trace.generated[token]),
            "layers": layers,
        }
        yield json_text(line)


def from_jsonl(lines: Iterable[str]) -> RoutingTrace:
    """The lines of `to_jsonl`. Only `layers` with `experts` is required; the first line may be missing."""
    about: dict[str, Any] = {}
    tokens: list[dict[str, Any]] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line = json_object(text, partial(_not_a_token, number))
        if number == 1 and "layers" not in line:
            about = line
        else:
            tokens.append(line)
    if not tokens:
        raise MoecliError("there is no token in the file", "one JSON object per token")
    try:
        return _assemble(about, tokens)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise MoecliError(f"the tokens do not fit together ({reason})", "every token needs the same layers") from error


def _not_a_token(number: int, problem: str) -> MoecliError:
    return MoecliError(f"line {number} {problem}", "one JSON object per token")


def _assemble(about: dict[str, Any], tokens: list[dict[str, Any]]) -> RoutingTrace:
    experts = {int(layer): int(count) for layer, count in about.get("experts", {}).items()}
    layers = []
    if not isinstance(tokens[0]["layers"], dict) or not tokens[0]["layers"]:
        raise ValueError("no layers")
    for name in sorted(tokens[0]["layers"], key=int):
        rows = np.array([token["layers"][name]["experts"] for token in tokens])
        if rows.ndim != 2 or rows.dtype.kind != "i" or not rows.size:
            raise ValueError(f"experts of layer {name}")
        known = experts.get(int(name), int(rows.max()) + 1)
        weights = None
        if "weights" in tokens[0]["layers"][name]:
            weights = np.array([token["layers"][name]["weights"] for token in tokens], np.float32).reshape(rows.shape)
        shares = None
        if "probabilities" in tokens[0]["layers"][name]:
            shares = np.array([token["layers"][name]["probabilities"] for token in tokens], np.float32)
            shares = shares.reshape(len(rows), known)
        if not all(np.isfinite(part).all() for part in (weights, shares) if part is not None):
            raise ValueError(f"a weight or probability of layer {name} that is no number")
        layers.append(
            LayerTrace(int(name), known, _checked(rows, int(name), known), weights, probabilities=shares)
        )  # fmt: skip
    names = dict.fromkeys(str(token.get("domain", "")) for token in tokens)
    domains = {name: place for place, name in enumerate(names)}
    if len(domains) > MOST_DOMAINS:
        raise ValueError(f"{len(domains)} domains, more than {MOST_DOMAINS}")
    return RoutingTrace(
        tuple(layers),
        np.array([token.get("token", 0) for token in tokens], np.uint32),
        np.array([token.get("prompt", 0) for token in tokens], np.uint32),
        np.array([domains[str(token.get("domain", ""))] for token in tokens], np.uint16),
        np.array([token.get("generated", False) is True for token in tokens]),
        tuple(domains),
        {int(token["token"]): str(token["text"]) for token in tokens if token.get("text") is not None},
        **{name: str(about.get(name, "")) for name in ("model", "revision", "dtype", "family")},
        provenance={str(name): str(text) for name, text in dict(about.get("provenance") or {}).items()},
    )
