"""The architecture card of one model."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from moecli.checkpoint.inventory import Inventory
from moecli.errors import lines_printable
from moecli.library.advice import Advice
from moecli.library.inspection import Report
from moecli.library.resolve import Kind
from moecli.model.params import Counts
from moecli.model.spec import Mixture, ModelSpec, Part
from moecli.output import tables, words
from moecli.output.comparison import billions
from moecli.output.memory import fits_here, next_step
from moecli.planning.memory import default_context, estimate_memory
from moecli.units import format_bytes

PART_NAMES = {
    Part.EMBEDDING: "input embedding",
    Part.ATTENTION: "attention",
    Part.MIXER_OTHER: "other mixers",
    Part.ROUTER: "router",
    Part.ROUTED_EXPERTS: "routed experts",
    Part.SHARED_EXPERTS: "shared experts",
    Part.DENSE_FFN: "dense FFN",
    Part.NORMS: "norms",
    Part.OTHER: "other",
    Part.LM_HEAD: "output head",
}
_SIZES = ("bf16", "q8", "q4")
_STATUS = {
    "published": "the published configuration",
    "sibling": "configuration of a sibling release of the same architecture",
    "reconstructed": "configuration reconstructed from named sources, not a copy",
    "trimmed": "real configuration, with some keys lost",
    "described": "configuration written from its description",
    "paper": "configuration written from the paper",
}


def card(to: Console, report: Report, advice: Advice) -> None:
    """All that is known of one model, on one screen; the last lines are about this machine."""
    parts: list[RenderableType] = [
        tables.Group(tables.title(report.model, _subtitle(report)), _wrapped(_provenance(report))),
        tables.Facts(_architecture(report)),
        _breakdown(to, report.counts),
        tables.Facts(_conventions(report)),
        tables.Facts([*_costs(report), *_here(report, advice)]),
    ]
    tables.show(to, *parts)


def _subtitle(report: Report) -> str:
    entry = report.entry
    counts = report.counts
    size = billions(counts.total) + ("" if report.dense else f", {billions(counts.active)} active")
    names = [size, f"{report.spec.family} family", entry.licence if entry else None, entry.repo if entry else None]
    return ", ".join(name for name in names if name)


def _provenance(report: Report) -> str:
    if report.fallback:
        return f"{_from(report)} The Hub was asked first: {report.fallback}."
    return _from(report)


def _from(report: Report) -> str:
    at = f" at {report.revision[:12]}" if report.revision else ""
    if report.source is Kind.CATALOG and report.entry is not None:
        return f"From the catalog: {_STATUS[report.entry.config_status]}; nothing was fetched."
    if report.source is Kind.HUB:
        headers = "" if report.unread else " and the headers of its weights"
        return f"From the Hub, {report.location}{at}: config.json{headers}."
    what = "config.json and the headers of its weights" if report.inventory else "a configuration without weights"
    return f"From {report.location}: {what}."


def _wrapped(text: str) -> Text:
    return Text(lines_printable(text), style="dim")


def _architecture(report: Report) -> list[tuple[str, str | Text]]:
    spec = report.spec
    mixture = words.mixture_of(spec)
    rows: list[tuple[str, str | Text]] = [
        ("layers", layers(spec)),
        ("hidden size", f"{spec.hidden_size:,}"),
        ("attention", "\n".join(words.attention_lines(spec))),
    ]
    if mixture is None:
        dense = next(layer.ffn for layer in spec.layers)
        assert not isinstance(dense, Mixture)
        rows.append(("feed-forward", f"dense: {words.feed_forward(dense)}"))
    else:
        rows += [("router", words.router(mixture.router)), ("experts", experts(spec, mixture))]
    rows += [
        ("context", f"{spec.context_length:,} tokens"),
        ("vocabulary", f"{spec.vocab_size:,}" + (", tied to the output head" if spec.tied_embeddings else "")),
        ("engine", "runs this model" if report.runnable else f"lacks {', '.join(report.lacks)}"),
    ]
    return rows + [("note", note) for note in report.notes]


def layers(spec: ModelSpec) -> str:
    """How many layers, and which of them are mixtures: 32, all mixture-of-experts."""
    every = spec.blocks
    mixed = sum(isinstance(layer.ffn, Mixture) for layer in every)
    sides = f" ({len(spec.encoder)} of them in the encoder)" if spec.encoder else ""
    if mixed == len(every):
        return f"{mixed}{sides}, all mixture-of-experts"
    return f"{len(every)}{sides}, " + (f"{mixed} mixture-of-experts" if mixed else "dense")


def experts(spec: ModelSpec, mixture: Mixture) -> str:
    """How many routed and shared experts there are, and what each is, in two lines or three."""
    shared = words.shared_experts(mixture)
    gated = " behind a gate" if mixture.shared_gate else ""
    beside = next((layer.parallel for layer in spec.layers if layer.parallel is not None), None)
    lines = [
        f"{mixture.router.experts} routed, {mixture.router.top_k} active"
        + (f", {shared} shared and always on{gated}" if shared else ""),
        f"each {words.feed_forward(mixture.expert)}"
        + (f", behind a projection to {mixture.latent_width:,}" if mixture.latent_width else ""),
        f"a dense block beside them, {words.feed_forward(beside)}" if beside else "",
    ]
    return "\n".join(line for line in lines if line)


def _breakdown(to: Console, counts: Counts) -> Table:
    """Every part once, largest first: its share of all parameters, and of those that work on one token."""
    idle = counts.total - counts.active
    rows = [
        (PART_NAMES[part], number, number - (idle if part is Part.ROUTED_EXPERTS else 0))
        for part, number in sorted(counts.parts.items(), key=lambda item: -item[1])
    ]
    rows.append(("all", counts.total, counts.active))
    numbers = len(f"{counts.total:,}{counts.active:,}")
    width = min((to.width - numbers - 37) // 2, 20)  # 37: names, percentages and gaps
    if width < 3:  # a narrow screen
        short = [(name, billions(all_), billions(active)) for name, all_, active in rows]
        return tables.grid(("parameters", "total", "active"), short, total=True)
    cells: list[list[str | Text]] = [
        [name, *_share(to, all_, counts.total, width), *_share(to, active, counts.active, width, "yellow")]
        for name, all_, active in rows
    ]
    return tables.grid(("parameters", "total", "", "", "active", "", ""), cells, left=(0, 2, 5), total=True)


def _share(to: Console, number: int, whole: int, width: int, style: str = "blue") -> tuple[str, Text, str]:
    share = number / whole if whole else 0.0
    return f"{number:,}", tables.bar(to, share, width, style), tables.percent(share)


def _conventions(report: Report) -> list[tuple[str, str | Text]]:
    counts, entry = report.counts, report.entry
    rows: list[tuple[str, str | Text]] = [
        ("active", f"{counts.active:,} with both tables"),
        ("", f"{counts.active_without_input_embedding:,} without the input table" + (", which is tied" * counts.tied)),
        ("", f"{counts.active_without_embeddings:,} without both tables"),
    ]
    if entry is not None and entry.published is not None:
        published = entry.published
        active = f", {published.active} active" if published.active else ""
        rows.append(("published", f"{published.total}{active} ({published.source})"))
    if report.explanation is not None:
        rows.append(("", Text(report.explanation.text, style="" if report.explanation.complete else "yellow")))
    if entry is not None and entry.published is not None and entry.published.note:
        rows.append(("", f"{entry.published.note[0].upper()}{entry.published.note[1:].rstrip('.')}."))
    return rows


def _costs(report: Report) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [
        ("KV cache", f"{_bytes(report.kv_bytes_per_token)} per token, at 2 bytes a number"),
        ("reads", f"{_bytes(report.read_bytes_per_token)} of weights per token in bf16"),
    ]
    if report.inventory is not None:
        rows += _files(report, report.inventory)
    elif report.stored is not None:
        rows.append(("files", f"{_bytes(report.stored.bytes)} as published, mostly {report.stored.format}"))
    if report.quantised is not None and report.bits_per_weight is not None:
        rows.append(("", f"{report.bits_per_weight:.2f} bits per weight"))
    return rows


def _here(report: Report, advice: Advice) -> list[tuple[str, str | Text]]:
    """What it weighs in the usual formats; then what of this machine."""
    sizes = (estimate_memory(report.spec, name, default_context(report.spec)) for name in _SIZES)
    rows: list[tuple[str, str | Text]] = [
        ("sizes", ", ".join(f"{format_bytes(m.weights)} in {m.dtype}" for m in sizes))
    ]
    plan = advice.way.plan if advice.way else None
    where = f", in {plan.memory.dtype}" if plan and not advice.obstacle else ""
    rows.append(("fits here", fits_here(plan, not advice.obstacle) + where))
    return [*rows, *next_step(advice)]


def _files(report: Report, inventory: Inventory) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = []
    if report.stored_read_bytes_per_token is not None:
        rows.append(("", f"{_bytes(report.stored_read_bytes_per_token)} per token as stored"))
    rows.append(
        ("files", f"{inventory.parameters:,} parameters, mostly {inventory.format}, in {_bytes(inventory.bytes)}")
    )
    for each in inventory.excluded:
        rows.append(("not counted", f"{each.reason}: {each.parameters:,} in {each.tensors} tensors"))
    for text in inventory.differences:
        rows.append(("difference", Text(text, style="bold red")))
    if not inventory.differences:
        rows.append(("", Text("The files agree with config.json.", style="green")))
    return rows


def _bytes(size: int) -> str:
    return f"{size:,} bytes ({format_bytes(size)})"
