"""`inspect --json`: what a model is, in numbers and in words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from moecli.library.inspection import Report
from moecli.library.resolve import Kind
from moecli.model.params import Counts, read_figure
from moecli.model.spec import MLA, Attention, FeedForward, GroupedQuery, Mixture, ModelSpec, Part, Router
from moecli.output import words
from moecli.output.json import SCHEMA_VERSION

# Always there, so that a script need not ask; the rarer parts stand beside them where a model has them.
_PARTS = (
    Part.EMBEDDING, Part.ATTENTION, Part.ROUTER, Part.ROUTED_EXPERTS, Part.SHARED_EXPERTS, Part.DENSE_FFN, Part.NORMS,
    Part.LM_HEAD,
)  # fmt: skip


def document(report: Report, reference: Report) -> dict[str, Any]:
    """One model; numbers are whole numbers, bytes say so in their key."""
    spec, counts, inventory = report.spec, report.counts, report.inventory
    every = spec.blocks
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report.model,
        "source": report.source.value,
        "location": report.location,
        "revision": report.revision,
        "config_status": report.entry.config_status if report.entry and report.source is Kind.CATALOG else None,
        "repository": report.entry.repo if report.entry else report.location if report.source is Kind.HUB else None,
        "license": report.entry.licence if report.entry else None,
        "family": spec.family,
        "runnable": report.runnable,
        "lacks": list(report.lacks),
        "layers": len(every),
        "encoder_layers": len(spec.encoder),
        "moe_layers": sum(isinstance(layer.ffn, Mixture) for layer in every),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "tied_embeddings": spec.tied_embeddings,
        "attention": _attention(spec),
        "router": _router(words.mixture_of(spec)),
        "experts": _experts(spec, counts),
        "parameters": _parameters(counts),
        **_published(report),
        "kv_bytes_per_token": report.kv_bytes_per_token,
        "read_bytes_per_token": report.read_bytes_per_token,
        "stored_read_bytes_per_token": report.stored_read_bytes_per_token,
        "cost": {"reference": reference.model, "active": counts.active, "reference_active": reference.counts.active},
        "notes": list(report.notes),
        "stored_bytes": report.stored.bytes if report.stored else None,
        "stored_format": report.stored.format if report.stored else None,
        "bits_per_weight": None if report.bits_per_weight is None else round(report.bits_per_weight, 4),
        "stored_parameters": inventory.parameters if inventory else None,
        "excluded": [
            {"reason": e.reason, "tensors": e.tensors, "parameters": e.parameters, "bytes": e.bytes}
            for e in (inventory.excluded if inventory else ())
        ],
        "differences": list(inventory.differences) if inventory else [],
    }


def _attention(spec: ModelSpec) -> dict[str, Any]:
    """The attention of the layers that see everything, where there are such, and how many others there are."""
    mixers = [layer.attention for layer in spec.layers if layer.recurrent is None and _heads(layer.attention)]
    recurrent = sum(layer.recurrent is not None for layer in spec.layers)
    if not mixers:
        return {"kind": "none", "heads": 0, "kv_heads": 0, "head_dim": 0, "recurrent_layers": recurrent}
    chosen = next((mixer for mixer in mixers if mixer.window is None), mixers[0])
    windows = [mixer.window for mixer in mixers if mixer.window is not None]
    return {
        "kind": words.attention_kind(chosen),
        "heads": chosen.heads,
        "kv_heads": chosen.kv_heads if isinstance(chosen, GroupedQuery) else chosen.heads,
        "head_dim": chosen.head_dim,
        "rope_dim": chosen.rope.dims,
        "rope_theta": _whole(chosen.rope.theta) if chosen.rope.dims else None,
        **(_latent(chosen) if isinstance(chosen, MLA) else {}),
        "full_layers": len(mixers) - len(windows),
        "window_layers": len(windows),
        "window": windows[0] if windows else None,
        "recurrent_layers": recurrent,
        "description": words.attention_lines(spec),
    }


def _heads(attention: Attention) -> bool:
    return isinstance(attention, MLA) or attention.heads > 0


def _latent(attention: MLA) -> dict[str, Any]:
    return {
        "query_rank": attention.query_rank,
        "kv_rank": attention.kv_rank,
        "nope_dim": attention.nope_dim,
        "value_dim": attention.value_dim,
        **({"index_topk": attention.indexer.top_k} if attention.indexer else {}),
    }


def _router(mixture: Mixture | None) -> dict[str, Any]:
    if mixture is None:  # one expert, always on
        return {"rule": "none", "top_k": 1, "normalised": True}
    rule: Router = mixture.router
    return {
        "rule": rule.scoring.value,
        "top_k": rule.top_k,
        "normalised": words.normalised(rule),
        "scaling": _whole(rule.scaling),
        "groups": rule.n_group,
        "kept_groups": rule.topk_group,
        "correction_bias": rule.correction_bias,
        "expert_capacity": rule.capacity,
        "description": words.router(rule),
    }


def _experts(spec: ModelSpec, counts: Counts) -> dict[str, Any]:
    mixture = words.mixture_of(spec)
    dense = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, FeedForward)), None)
    width = mixture.expert.intermediate_size if mixture else dense.intermediate_size if dense else 0
    return {
        "routed": counts.experts,
        "active": counts.active_experts,
        "shared": words.shared_experts(mixture) if mixture else 0,
        "intermediate_size": width,
        "parameters_each": counts.expert_parameters,
    }


def _parameters(counts: Counts) -> dict[str, int]:
    others = [part for part in counts.parts if part not in _PARTS]
    return {
        "total": counts.total,
        "active": counts.active,
        "active_without_input_embedding": counts.active_without_input_embedding,
        "active_without_embeddings": counts.active_without_embeddings,
        **{part.value: counts.parts.get(part, 0) for part in (*_PARTS, *others)},
    }


def _published(report: Report) -> dict[str, Any]:
    """What the vendor prints, as numbers and as printed; a note where no way of counting gives it."""
    published, explanation = report.entry.published if report.entry else None, report.explanation
    if published is None:
        return {}
    figures = {
        "total": _figure(published.total),
        "active": _figure(published.active),
        "source": published.source,
        "status": published.status,
        "as_printed": [text for text in (published.total, published.active) if text],
        "explained": explanation.text if explanation else None,
    }
    unexplained = explanation is not None and not explanation.complete
    notes = [explanation.text if unexplained and explanation else "", published.note or ""]
    note = " ".join(text for text in notes if text)
    return {"published": figures, **({"note": note} if unexplained else {})}


def _figure(printed: str | None) -> int | None:
    """A printed figure as a number, 46.7B -> 46700000000; None if it is none."""
    figure = read_figure(printed or "")
    return None if figure is None else int(Decimal(figure[0]).scaleb(figure[1]))


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
