"""Rotary settings in both dialects of config.json: rope_theta + rope_scaling, and rope_parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.spec import Rope, RopeKind

# Images are placed on several axes; in a text all of them count the same.
_TEXT_ONLY = frozenset({"mrope_interleaved", "mrope_section"})


def read_rope(
    config: ConfigReader,
    dims: int,
    context: int,
    default_theta: float = 10_000.0,
    interleaved: bool = False,
    partial: float | None = None,
) -> Rope:
    """Rope over the first `dims` of a head. `context` is max_position_embeddings. Defaults are transformers'.

    `partial` is the default of partial_rotary_factor; without it, the family knows no factor but 1.
    """
    theta = config.optional_number("rope_theta")
    scaling = config.nested("rope_scaling")
    parameters = config.nested("rope_parameters")
    part = parameters or scaling
    if parameters and scaling and config.raw("rope_parameters") != config.raw("rope_scaling"):
        raise config.fail("rope_scaling", "contradicts rope_parameters")
    return _rope_of(config, part, theta, dims, context, default_theta, interleaved, partial)


@dataclass(frozen=True, slots=True)
class RopeDefaults:
    """Of one kind of layer: the width of a head, the base, and the share that rotates; None: all, and no key for it."""

    head_dim: int
    theta: float
    partial: float | None = None
    kind: RopeKind = RopeKind.DEFAULT  # where the file says nothing


def read_ropes(config: ConfigReader, context: int, kinds: Mapping[str, RopeDefaults]) -> dict[str, Rope]:
    """The rope of each kind of layer, where rope_parameters has an object for each: Gemma's and its followers' way."""
    parts = config.nested("rope_parameters")
    found = {
        kind: _rope_of(
            config,
            (parts.nested(kind) if parts else None) or ConfigReader({"rope_type": of.kind.value}, config.family),
            None,
            of.head_dim,
            context,
            of.theta,
            False,
            of.partial,
        )
        for kind, of in kinds.items()
    }
    if parts is not None:
        parts.finish((), strict=True)
    return found


def read_ropes_by_layer(
    config: ConfigReader, context: int, layers: Sequence[str], kinds: Mapping[str, RopeDefaults], stretched: str
) -> dict[str, Rope]:
    """The same of files whose rope_theta and partial_rotary_factors may be lists, one number a layer.

    `layers`: the kind of each. What rope_scaling says is of the `stretched` kind alone.
    """
    parameters, found = config.raw("rope_parameters", None), dict[str, dict[str, Any]]()
    names = ("rope_scaling", "rope_theta", "partial_rotary_factors")
    scaling, theta, shares = (config.raw(name, None) for name in names)
    for key, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(value, dict | None):
            raise config.fail(key, "must be an object")
    if parameters and parameters.keys() <= kinds.keys():
        return read_ropes(ConfigReader({"rope_parameters": parameters}, config.family), context, kinds)
    if scaling and parameters and parameters != scaling:
        raise config.fail("rope_scaling", "contradicts rope_parameters")
    for kind in set(layers):
        of = [index for index, each in enumerate(layers) if each == kind]
        found[kind] = {"rope_theta": _shared(config, "rope_theta", theta, of)}
        if shares is not None:
            found[kind]["partial_rotary_factor"] = _shared(config, "partial_rotary_factors", shares, of)
    if stretched in found:
        found[stretched] |= scaling or parameters or {}
    return read_ropes(ConfigReader({"rope_parameters": found}, config.family), context, kinds)


def _shared(config: ConfigReader, key: str, value: Any, layers: Sequence[int]) -> Any:
    """The number that all of these layers have."""
    if not isinstance(value, list):
        return value
    numbers = {str(value[index]) for index in layers if index < len(value)}
    if len(numbers) != 1 or max(layers) >= len(value):
        raise config.fail(key, "must hold a number for each layer, the same for all of one kind")
    return value[layers[0]]


def _rope_of(
    config: ConfigReader,
    part: ConfigReader | None,
    theta: float | None,
    head_dim: int,
    context: int,
    default_theta: float,
    interleaved: bool,
    partial: float | None,
) -> Rope:
    dims = _rotating(config, part, head_dim, partial)
    if part is not None:
        theta = part.optional_number("rope_theta", theta) or theta
    theta = theta or default_theta
    if theta <= 1:
        raise config.fail("rope_theta", f"is {theta}: it must be more than 1")
    if part is None:
        return Rope(theta, dims, interleaved)
    part.refuse_objects()
    rope = _read_scaling(part, theta, dims, context, interleaved)
    if rope.kind is RopeKind.PROPORTIONAL:
        rope = replace(rope, dims=head_dim, turning=dims)
    part.finish(irrelevant=_TEXT_ONLY)
    return rope


def _rotating(config: ConfigReader, part: ConfigReader | None, dims: int, partial: float | None) -> int:
    if partial is None:
        config.expect("partial_rotary_factor", 1.0, None)
        if part is not None:
            part.expect("partial_rotary_factor", 1.0, None)
        return dims
    factor = config.optional_number("partial_rotary_factor", partial) or partial
    if part is not None:
        factor = part.optional_number("partial_rotary_factor", factor) or factor
    rotating = int(dims * factor + 1e-6)
    if not 0 < rotating <= dims or rotating % 2:
        raise config.fail("partial_rotary_factor", f"makes {rotating} of {dims} dimensions rotate")
    return rotating


def _read_scaling(part: ConfigReader, theta: float, dims: int, context: int, interleaved: bool) -> Rope:
    name = part.text("rope_type", part.raw("type", "default"))
    try:
        kind = RopeKind({"su": "longrope", "mrope": "default"}.get(name, name))
    except ValueError:
        raise part.fail("rope_type", f"names an unknown kind, '{name}'") from None
    if kind is RopeKind.DEFAULT:
        return Rope(theta, dims, interleaved)
    if kind in (RopeKind.LINEAR, RopeKind.DYNAMIC):
        part.ignore("original_max_position_embeddings")
        if kind is RopeKind.DYNAMIC and dims <= 2:
            raise part.fail("rope_type", "dynamic needs more than two rotary dimensions")
        return Rope(theta, dims, interleaved, kind, part.number("factor"), context)
    if kind is RopeKind.PROPORTIONAL:
        return Rope(theta, dims, interleaved, kind, part.optional_number("factor", 1.0) or 1.0)
    original = part.count("original_max_position_embeddings", context)
    if kind is RopeKind.LLAMA3:
        return Rope(
            theta, dims, interleaved, kind, part.number("factor"), original,
            low_frequency_factor=part.number("low_freq_factor"),
            high_frequency_factor=part.number("high_freq_factor"),
        )  # fmt: skip
    factor = part.optional_number("factor") or context / original
    if kind is RopeKind.YARN:
        return _yarn(part, Rope(theta, dims, interleaved, kind, factor, original))
    return _longrope(part, Rope(theta, dims, interleaved, kind, factor, original))


def _yarn(part: ConfigReader, rope: Rope) -> Rope:
    mscale = part.number("mscale", 0.0, positive=False)
    mscale_all = part.number("mscale_all_dim", 0.0, positive=False)
    given = part.optional_number("attention_factor")
    inferred = (
        yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, mscale_all) if mscale and mscale_all else None
    )
    return Rope(
        rope.theta, rope.dims, rope.interleaved, rope.kind, rope.factor, rope.original_context,
        attention_factor=given or inferred or yarn_mscale(rope.factor, 1.0),
        beta_fast=part.optional_number("beta_fast") or 32.0,
        beta_slow=part.optional_number("beta_slow") or 1.0,
        truncate=part.flag("truncate", True),
    )  # fmt: skip


def _longrope(part: ConfigReader, rope: Rope) -> Rope:
    short, long = part.numbers("short_factor"), part.numbers("long_factor")
    if len(short) != rope.dims // 2 or len(long) != rope.dims // 2:
        raise part.fail("short_factor", f"and long_factor must hold {rope.dims // 2} numbers each")
    stretched = rope.factor > 1 and rope.original_context > 1
    inferred = math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_context)) if stretched else 1.0
    return Rope(
        rope.theta, rope.dims, rope.interleaved, rope.kind, rope.factor, rope.original_context,
        attention_factor=part.optional_number("attention_factor") or inferred,
        short_factors=short, long_factors=long,
    )  # fmt: skip


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, 0.1 m ln(s) + 1 (arXiv 2309.00071, section 3.4; DeepSeek's m)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
