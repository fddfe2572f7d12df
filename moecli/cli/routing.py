"""`moecli inspect --routing`: which expert each token takes at each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecli.cli import options, pull
from moecli.cli.routing_options import Wishes
from moecli.errors import DiskError, UsageError
from moecli.formats import FORMATS
from moecli.library import resolve as hub
from moecli.library import resolve_local as local
from moecli.output import loading, terminal
from moecli.units import parse_size

if TYPE_CHECKING:
    from moecli.routing.analysis import Analysis
    from moecli.routing.prompts import Prompt
    from moecli.routing.recorded import Recorded
    from moecli.routing.trace import Trace


def show(models: Sequence[str], wishes: Wishes, json: bool, no_color: bool, offline: bool) -> None:
    """Record or read a trace, analyse it, and show it in the form asked for."""
    form, layers, factors = wishes.form(json), wishes.chosen_layers(), wishes.factors()
    options.check_folder("--output", wishes.output)
    options.check_folder("--save-trace", wishes.save_trace)
    source = _source(models, wishes)
    if source is None or wishes.from_trace is not None:
        assert wishes.from_trace is not None, "without either, _source refuses"
        ours = _read(wishes.from_trace, source)
        other = _other_trace(wishes.against)
    else:
        prompts, raw = _prompts(wishes)
        ours = _record(models[0], source, offline, wishes, prompts, raw, json)
        other = _other(wishes, models[0], prompts, raw, offline, json)
    if layers is not None and (missing := layers - {layer.layer for layer in ours.trace.layers}):
        known = ", ".join(str(layer.layer) for layer in ours.trace.layers)
        raise UsageError(f"--layers {min(missing)} has no router", f"it takes some of {known}")
    if wishes.save_trace is not None:
        from moecli.routing import files

        files.write(ours.trace, wishes.save_trace)
    from moecli.routing.analysis import analyse

    with terminal.status("analysing ...", json):
        analysis = analyse(ours.trace, factors=factors, memory=ours.memory, other=other, note=ours.note)
    _present(analysis, form, wishes, layers, source, no_color)


def _present(
    analysis: Analysis,
    form: str,
    wishes: Wishes,
    layers: frozenset[int] | None,
    source: hub.Source | None,
    no_color: bool,
) -> None:
    if form == "json":
        document = _document(analysis, layers, source)
        if wishes.output is None:
            terminal.write_json(document)
        else:
            from json import dumps

            _write(wishes.output, dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
        return
    from moecli.output.routing import View, screen, write_file

    view = View(None if layers is None else tuple(sorted(layers)), wishes.sort, wishes.by is not None)
    if form == "table" and wishes.output is None:
        screen(analysis, layers=view.layers, sort=view.sort, by_domain=view.by_domain, no_color=no_color)
    else:
        write_file(analysis, form, wishes.output, view)


def _document(analysis: Analysis, layers: frozenset[int] | None, source: hub.Source | None) -> dict[str, Any]:
    """`inspect --json` of the model, where it is named, and `routing`."""
    from moecli.library import inspection
    from moecli.output import inspect_document
    from moecli.planning import machine
    from moecli.routing.analysis_document import analysis_document

    routing = analysis_document(analysis, layers) | {"peak_rss_bytes": machine.peak_rss()}
    if source is None:
        about = {"schema_version": inspect_document.SCHEMA_VERSION, "model": analysis.trace.model or None}
        return about | {"family": analysis.trace.family or None, "routing": routing}
    report = inspection.inspect(source)
    return inspect_document.document(report, inspection.dense_reference([report])) | {"routing": routing}


def _source(models: Sequence[str], wishes: Wishes) -> hub.Source | None:
    """The one MODEL; None where only a trace is named."""
    if len(models) > 1:
        raise UsageError(
            f"--routing shows one model, not {len(models)}", f"compare two: {models[0]} --against {models[1]}"
        )
    if wishes.from_trace is not None:
        for name in ("prompt", "prompts", "limit"):
            if getattr(wishes, name) is not None:
                raise UsageError(f"--{name} and --from cannot both be meant", "a trace already holds what was read")
        return local.resolve(models[0], wishes.dtype) if models else None
    if not models:
        raise UsageError("no MODEL is named", "moecli inspect tiny --routing, or --from TRACE")
    return local.resolve(models[0], wishes.dtype)


def _prompts(wishes: Wishes) -> tuple[list[Prompt], bool]:
    """What to read, and whether without chat template, as the bundled passages always are."""
    from moecli.routing import prompts

    if wishes.prompts is not None:
        if wishes.prompt is not None:
            raise UsageError("--prompt and --prompts cannot both be meant", "leave one of them out")
        return prompts.read(wishes.prompts), wishes.raw
    typed = terminal.clean(wishes.prompt or "")
    parts = [part for part in (terminal.read_stdin().strip("\n"), typed) if part]
    if parts:
        return [prompts.Prompt("\n\n".join(parts))], wishes.raw
    if wishes.prompt is not None:
        raise UsageError("--prompt is empty", "leave it out to read the bundled passages")
    return prompts.bundled(), True


def _record(
    model: str, source: hub.Source, offline: bool, wishes: Wishes, prompts: Sequence[Prompt], raw: bool, quiet: bool
) -> Recorded:
    if source.entry is not None:  # before its weights are fetched for nothing
        from moecli.model import families
        from moecli.routing.recorded import require_router

        require_router(source.name, families.read_spec(source.entry.config()))
    folder = (None if offline else pull.offer(source, quiet)) or hub.require_folder(source)
    with terminal.status("loading ...", quiet):
        from moecli.engine import analysis
        from moecli.engine.runner import Choices, open_runner

        choices = Choices(
            seed=wishes.seed, raw=raw, context=wishes.ctx, threads=wishes.threads,
            ram=None if wishes.ram is None else parse_size(wishes.ram),
        )  # fmt: skip
        runner = open_runner(source.name, folder, wishes.dtype, choices, model)
    with loading.progress(source.name, quiet) as progress, loading.reading(source.name, quiet) as watch:
        return analysis.record(runner, prompts, wishes.limit, wishes.max_tokens, progress, watch, wishes.probabilities)


def _other(
    wishes: Wishes, model: str, prompts: Sequence[Prompt], raw: bool, offline: bool, quiet: bool
) -> Trace | None:
    """What to compare with: a trace, the same model in another format, or another model, on the same prompts."""
    against = wishes.against
    if against is None or _is_trace(against):
        return _other_trace(against)
    if against.startswith("dtype="):
        wishes = replace(wishes, dtype=against.removeprefix("dtype="))
        if wishes.dtype not in FORMATS:
            raise UsageError(f"--against {against} is not known", f"it takes dtype= with {', '.join(FORMATS)}")
    else:
        model = against
    return _record(model, local.resolve(model, wishes.dtype), offline, wishes, prompts, raw, quiet).trace


def _is_trace(name: str) -> bool:
    path = Path(name)
    return path.is_file() and path.suffix != ".json"


def _other_trace(name: str | None) -> Trace | None:
    if name is None:
        return None
    if not _is_trace(name):
        raise UsageError(f"--against {name} is not a trace", "with --from only another trace can be compared")
    return _read(Path(name), None).trace


def _read(path: Path, source: hub.Source | None) -> Recorded:
    """A trace; with the model that is said to have made it, what that takes. UsageError if it cannot have."""
    from moecli.routing import files
    from moecli.routing.recorded import Recorded, described

    if source is None:
        return Recorded(files.read(path))
    from moecli.library import inspection

    spec = inspection.inspect(source).spec
    shapes = [(layer, mixture.router.top_k, mixture.router.experts) for layer, mixture in spec.mixtures]
    trace = files.read(path, min((shape[1:] for shape in shapes), default=None))
    if [(layer.layer, layer.active, layer.experts) for layer in trace.layers] != shapes:
        raise UsageError(f"{path} was not recorded of {source.name}: its layers differ", "leave MODEL out")
    return described(trace, spec)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error
