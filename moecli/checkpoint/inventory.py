"""What the files of a model hold, counted from their headers and held against what config.json implies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from moecli.checkpoint.binding import BUFFERS, HEADS, Weights, input_widths
from moecli.checkpoint.decoding import decoded
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.prequantized import TrueTensor, main_format, quantised_among, true_tensors
from moecli.checkpoint.stored import StoredTensor
from moecli.checkpoint.towers import split_towers
from moecli.errors import MoecliError, printable
from moecli.formats import stored_as
from moecli.model.families import Family
from moecli.model.params import Counts
from moecli.model.spec import ModelSpec, Part, is_decoded


@dataclass(frozen=True, slots=True)
class Excluded:
    """Tensors in the files that the counts leave out, by reason."""

    reason: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """The files of one model. `parameters` leaves out what is `excluded`; `bytes` is all tensors, as stored."""

    parameters: int
    bytes: int
    format: str
    read_bytes_per_token: int | None  # as stored; None where the names do not tell the experts
    excluded: tuple[Excluded, ...]
    differences: tuple[str, ...]  # from config.json, in plain words; empty if all is well
    quantised: str | None = None  # the format of weights that are not plain numbers


def take_inventory(
    header: Mapping[str, StoredTensor],
    family: Family,
    spec: ModelSpec,
    counts: Counts,
    scheme: Mapping[str, Any] = MappingProxyType({}),
) -> Inventory:
    """Count the tensors of `header`; never reads a weight.

    `scheme` is the quantization_config of the model.
    """
    text, towers = split_towers(header)
    text = {name: replace(stored, name=name) for name, stored in text.items()}
    reasons = _reasons(family, spec, has_table=any(map(_TABLE.fullmatch, text)))
    kept: list[TrueTensor] = []
    excluded: dict[str, list[TrueTensor]] = {}
    if towers:
        excluded[_TOWERS] = true_tensors(towers, scheme)
    for tensor in true_tensors(text, scheme):
        reason = _reason(tensor.name, text[tensor.name].dtype if tensor.name in text else "", reasons)
        (kept if reason is None else excluded.setdefault(reason, [])).append(tensor)
    return Inventory(
        parameters=sum(tensor.numbers for tensor in kept),
        bytes=sum(part.size for stored in header.values() for part in stored.parts),
        format=main_format(kept),
        read_bytes_per_token=_read_bytes(kept, spec, counts),
        excluded=tuple(_sum(reason, tensors) for reason, tensors in excluded.items()),
        differences=tuple(_differences(text, kept, family, spec, counts, scheme)),
        quantised=quantised_among(kept),
    )


def _sum(reason: str, tensors: list[TrueTensor]) -> Excluded:
    numbers, size = sum(t.numbers for t in tensors), sum(t.stored_bytes for t in tensors)
    return Excluded(reason, len(tensors), numbers, size)


_VISION = r"(.*\.)?(vision_\w+|visual|multi_modal_projector|mm_projector|audio_tower|embed_vision|embed_audio)\..+"
_TOWERS = "vision and audio"
_Reasons = list[tuple[str, re.Pattern[str]]]


def _reasons(family: Family, spec: ModelSpec, has_table: bool) -> _Reasons:
    """Why a tensor may stand in the files and not in the counts, by the form of its name."""
    first, last = len(spec.layers), len(spec.layers) + spec.extra_layers
    beyond = "|".join(str(index) for index in range(first, last)) or "none"
    tied = r"(.*\.)?lm_head\.weight|(.*\.)?output\.weight|(en|de)coder\.embed_tokens\.weight"
    buffers = "|".join((BUFFERS, *(p for each in family.layouts for p in each.ignored)))
    rows = {
        "multi-token prediction": rf"(.*\.)?mtp[._].+|(model\.layers|blk)\.({beyond})\..+",
        _TOWERS: _VISION,
        "copies of the tied table": tied
        if spec.tied_embeddings and has_table
        else r"(en|de)coder\.embed_tokens\.weight",
        "buffers": buffers,
        "heads for training": HEADS,
    }
    return [(reason, re.compile(pattern)) for reason, pattern in rows.items()]


def _reason(name: str, dtype: str, reasons: _Reasons) -> str | None:
    if dtype in ("I64", "I32", "BOOL"):
        return "tables of integers"
    return next((reason for reason, pattern in reasons if pattern.fullmatch(name)), None)


def _differences(
    header: Mapping[str, StoredTensor],
    kept: list[TrueTensor],
    family: Family,
    spec: ModelSpec,
    counts: Counts,
    scheme: Mapping[str, Any],
) -> Iterator[str]:
    found = sum(tensor.numbers for tensor in kept)
    if found != counts.total:
        more = f"{abs(found - counts.total):,} {'more' if found > counts.total else 'fewer'}"
        yield f"the files hold {found:,} parameters and config.json implies {counts.total:,}: {more}"
    quantised = quantised_among(kept)
    if family.layouts and is_decoded(quantised):
        try:
            tensors = decoded(header, scheme, stored_as(spec.stored_dtype), partial(input_widths, spec, family))
            Weights(spec, family, Checkpoint(tensors))
        except MoecliError as error:
            yield printable(error.message)


_EXPERT = re.compile(
    r"(.*\.)?(experts?|switch_mlp)\..+|.*block_sparse_moe\.(input|output)_linear\.weight|.*decoder_layer[._]\d+[./]moe[./].+"
    r"|blk\.\d+\.ffn_(gate|up|gate_up|down)(_exps|\.\d+)\.weight"
)
_TABLE = re.compile(
    r"(.*\.)?(embed_tokens|wte|word_embeddings|in_out_embed|shared|embeddings|tok_embeddings)\.weight"
    r"|language_model/in_out_embed/embeddings|token_embd\.weight"
)


def _read_bytes(kept: list[TrueTensor], spec: ModelSpec, counts: Counts) -> int | None:
    """Bytes that one decode step reads: active experts and the rest but the input table. None unless it adds up."""
    experts = [tensor for tensor in kept if _EXPERT.fullmatch(tensor.name)]
    tables = [tensor for tensor in kept if _TABLE.fullmatch(tensor.name)]
    expected = counts.parts.get(Part.ROUTED_EXPERTS, 0), counts.parts[Part.EMBEDDING]
    if (sum(t.numbers for t in experts), sum(t.numbers for t in tables)) != expected:
        return None
    if spec.encoder:  # is at rest then
        kept, experts = ([t for t in group if not t.name.startswith("encoder.")] for group in (kept, experts))
    expert_bytes, table_bytes = (sum(t.stored_bytes for t in group) for group in (experts, tables))
    rest = sum(t.stored_bytes for t in kept) - expert_bytes - (0 if counts.tied else table_bytes)
    return rest + expert_bytes * counts.active_experts // counts.experts
