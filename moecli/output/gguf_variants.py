"""How the GGUF files of a repository are listed: size, bits per weight, and what fits this machine."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from moecli.library.gguf_variants import Offer, Offers
from moecli.output import tables
from moecli.output.memory import fits_here
from moecli.units import figure, format_bytes


def screen(found: Offers, no_color: bool) -> None:
    """Print a line for each, and the command for the best one."""
    header = ("file", "size", "bits/weight", "packs to", "fits here", "tokens/s")
    rows = [
        (
            each.model.partition(":")[2], format_bytes(each.bytes), f"{each.bits_per_weight:.2f}",
            each.estimate.memory.dtype, _fits(each), figure(each.estimate.speed.middle) if each.runs else "-",
        )
        for each in found.offers
    ]  # fmt: skip
    about = f"{found.repo}  {found.parameters:,} parameters, {len(rows)} GGUF models"
    best = found.best
    facts = [("next", "nothing here runs on this machine" if best is None else _next(best))]
    tables.show(tables.console(no_color), Text(about), tables.grid(header, rows, left=(0, 3, 4)), tables.Facts(facts))


def document(found: Offers) -> list[dict[str, Any]]:
    """The same for `--json`: an object for each."""
    return [
        {
            "model": each.model,
            "repository": found.repo,
            "revision": found.commit,
            "files": list(each.variant.files),
            "label": each.variant.label,
            "bytes": each.bytes,
            "parameters": found.parameters,
            "bits_per_weight": round(each.bits_per_weight, 4),
            "packs_to": each.estimate.memory.dtype,
            "runs": each.runs,
            "runs_from": each.estimate.plan.runs_from,
            "has_room": each.has_room,
            "here": each.here,
            "tokens_per_s": each.estimate.speed.middle if each.runs else None,
        }
        for each in found.offers
    ]


def _fits(offer: Offer) -> str:
    if offer.here:
        return f"{fits_here(offer.estimate.plan)}, is here"
    return fits_here(offer.estimate.plan) if offer.has_room else "no, the disk is too small"


def _next(offer: Offer) -> str:
    if offer.here:
        return f"moecli pack {offer.model}"
    return f"moecli pull {offer.model}\nfetches {format_bytes(offer.bytes)}"
