"""`moecli inspect --routing`: which expert each token takes at each layer."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moecli.cli import options, running
from moecli.cli.routing_options import RoutingOptions
from moecli.errors import ModelNotFound, UsageError
from moecli.formats import FORMATS
from moecli.formats.words import is_dtype, nearest
from moecli.output import loading, terminal
from moecli.units import parse_size

if TYPE_CHECKING:
    from moecli.library.resolve import ModelRef
    from moecli.routing.analysis import Analysis
    from moecli.routing.prompts import Prompt
    from moecli.routing.recorded import Recorded
    from moecli.routing.trace import RoutingTrace


def show(models: Sequence[str], wanted: RoutingOptions, json: bool, no_color: bool, offline: bool, quiet: bool) -> None:
    """Record or read a trace, analyse it, and show it in the form asked for."""
    wanted = wanted.with_formats()
    form, layers, factors = wanted.form(json), wanted.chosen_layers(), wanted.factors()
    options.check_output("--output", wanted.output)
    options.check_output("--save-trace", wanted.save_trace)
    if wanted.probabilities and wanted.save_trace is None:
        raise UsageError("--probabilities goes with --save-trace", "add --save-trace FILE.jsonl, or .trace")
    if wanted.probabilities and wanted.save_trace is not None and wanted.save_trace.suffix == ".csv":
        raise UsageError("a CSV trace has no room for --probabilities", "name the trace .jsonl or .trace")
    if form in ("png", "pdf"):  # before anything is read for nothing
        from moecli.output.routing import picture

        picture.require()
    ref = _model(models, wanted)
    if ref is not None and wanted.from_ is None:
        ref = running.with_tokenizer(ref, wanted.tokenizer, offline)
    wanted = wanted if ref is None else replace(wanted, dtype=ref.dtype)
    if ref is None or wanted.from_ is not None:
        assert wanted.from_ is not None, "without either, _model refuses"
        other = _other_trace(wanted.against)
        ours = {"": _read(wanted.from_, ref)}
        others = {} if other is None else {"": other}
    else:
        from moecli.routing.provenance import recorded

        if ref.folder is None and form == "table":
            _without_weights(ref, wanted, offline, no_color)
        against = _against(wanted, ref, offline, quiet)
        name, prompts, raw = _prompts(wanted)
        ours = _record(ref, offline, wanted, prompts, raw, quiet)
        if isinstance(against, tuple):
            others = {stack: each.trace for stack, each in _record(*against, prompts, raw, quiet).items()}
        else:
            others = {} if against is None else dict.fromkeys(ours, against)
        made = recorded(_command(), wanted.seed, name, prompts, raw)
        ours = {stack: replace(each, trace=replace(each.trace, provenance=made)) for stack, each in ours.items()}
    numbers = [layer.layer for each in ours.values() for layer in each.trace.layers]
    if layers is not None and (missing := layers - set(numbers)):
        known = ", ".join(map(str, numbers))
        raise UsageError(f"--layers {min(missing)} has no router", f"it takes some of {known}")
    if wanted.save_trace is not None:
        from moecli.routing import files

        for stack, each in ours.items():
            written = files.write(each.trace, wanted.save_trace, stack)
            if not quiet:
                terminal.say_written(written)
    from moecli.routing.analysis import analyse
    from moecli.routing.provenance import of_analysis

    analyses = {}
    with terminal.status("analysing ...", quiet), loading.meter("analysing", "layers", quiet) as watch:
        for stack, each in ours.items():
            if layers is None or layers & {layer.layer for layer in each.trace.layers}:
                analyses[stack] = analyse(
                    each.trace, factors=factors, memory=each.memory, other=others.get(stack), note=each.note,
                    provenance=of_analysis(_command(), each.trace), watch=watch,
                )  # fmt: skip
    for file in _present(analyses, form, wanted, layers, ref, no_color):
        if not quiet:
            terminal.say_written(file)


def _without_weights(ref: ModelRef, wanted: RoutingOptions, offline: bool, no_color: bool) -> None:
    """Show what is known of a router whose model is not here, and what a look at it would take."""
    from moecli import settings
    from moecli.errors import MoecliError
    from moecli.library import inspection
    from moecli.library.advice import advise_on_report
    from moecli.output import router, tables
    from moecli.planning.estimate import Budget
    from moecli.routing.cost import look
    from moecli.routing.prompts import bundled

    try:
        report = inspection.inspect(ref, ask_hub=ref.by_hub_id and not (offline or settings.offline()))
    except MoecliError:  # nothing is known; why it is not here is said next
        return
    advice = advise_on_report(ref, report, wanted.dtype, Budget.of(wanted.ram), wanted.ctx)
    router.screen(tables.console(no_color), report, advice, look(advice, bundled()))


def _command() -> str:
    """What was typed."""
    return shlex.join(["moecli", *sys.argv[1:]])


def _present(
    analyses: Mapping[str, Analysis],
    form: str,
    wanted: RoutingOptions,
    layers: frozenset[int] | None,
    ref: ModelRef | None,
    no_color: bool,
) -> list[Path]:
    """Show it; returns the files that were written."""
    if form == "json":
        from moecli.library import inspection
        from moecli.output.json.routing import document

        report = None if ref is None else inspection.inspect(ref)
        terminal.write_json(document(analyses, layers, report), wanted.output)
        return [] if wanted.output is None else [wanted.output]
    from moecli.output.routing import View, screen, write_file
    from moecli.routing.files import of_stack

    title = None if wanted.title is None else terminal.clean(wanted.title)
    written: list[Path] = []
    for stack, analysis in analyses.items():
        mine = {layer.layer for layer in analysis.trace.layers}
        chosen = None if layers is None else tuple(sorted(layers & mine))
        view = View(chosen, wanted.sort, wanted.by is not None, title, wanted.colormap, wanted.dpi)
        if form == "table" and wanted.output is None:
            screen(analysis, layers=view.layers, sort=view.sort, by_domain=view.by_domain, no_color=no_color)
        else:
            written += write_file(analysis, form, wanted.output and of_stack(wanted.output, stack), view)
    return written


def _model(models: Sequence[str], wanted: RoutingOptions) -> ModelRef | None:
    """The one MODEL; None where only a trace is named."""
    from moecli.library.resolve import resolve

    if len(models) > 1:
        raise UsageError(
            f"--routing shows one model, not {len(models)}", f"compare two: {models[0]} --against {models[1]}"
        )
    if wanted.from_ is not None:
        for name in ("prompt", "prompts", "limit"):
            if getattr(wanted, name) is not None:
                raise UsageError(f"--{name} and --from cannot both be meant", "a trace already holds what was read")
        return resolve(models[0], dtype=wanted.dtype) if models else None
    if not models:
        raise UsageError("no MODEL is named", "moecli inspect tiny --routing, or --from TRACE")
    return resolve(models[0], dtype=wanted.dtype)


def _prompts(wanted: RoutingOptions) -> tuple[str, list[Prompt], bool]:
    """The name of the prompt set, its prompts, and whether to read them without chat template, as the bundled ones."""
    from moecli.routing import prompts

    if wanted.prompts is not None:
        if wanted.prompt is not None:
            raise UsageError("--prompt and --prompts cannot both be meant", "leave one of them out")
        if str(wanted.prompts) == "-":
            return "stdin", prompts.parse(terminal.read_stdin_bytes(), "stdin", terminal.say), wanted.raw
        return str(wanted.prompts), prompts.read(wanted.prompts, terminal.say), wanted.raw
    if text := running.behind_stdin(wanted.prompt or ""):
        return "the text given", [prompts.Prompt(text)], wanted.raw
    if wanted.prompt is not None:
        raise UsageError("--prompt is empty", "leave it out to read the bundled passages")
    return "bundled", prompts.bundled(), True


def _record(
    ref: ModelRef,
    offline: bool,
    wanted: RoutingOptions,
    prompts: Sequence[Prompt],
    raw: bool,
    quiet: bool,
) -> dict[str, Recorded]:
    """By the stack that was recorded: "" of a decoder alone, else "encoder" and "decoder"."""
    if ref.entry is not None:  # before its weights are fetched for nothing
        from moecli.model import families
        from moecli.routing.recorded import require_router

        require_router(ref.name, families.read_spec(ref.entry.config()))
    ref = running.with_weights(ref, wanted.dtype, wanted.ram, wanted.ctx, offline, quiet)
    with terminal.status("loading ...", quiet):
        from moecli.engine import analysis
        from moecli.engine.chat import GenerationConfig
        from moecli.engine.loaded import LoadOptions, open_for_run
        from moecli.engine.sampling import SamplingOptions, new_seed

        limits = LoadOptions(
            dtype=wanted.dtype, context=wanted.ctx, threads=wanted.threads,
            ram=None if wanted.ram is None else parse_size(wanted.ram), expert_capacity=wanted.expert_capacity,
        )  # fmt: skip
        opened = open_for_run(ref, limits)
        config = GenerationConfig(
            SamplingOptions().resolve(opened.defaults),
            new_seed() if wanted.seed is None else wanted.seed,
            max_tokens=wanted.max_tokens,
            raw=raw,
        )
    if not quiet:
        terminal.say_notes(opened.notes)
    with loading.progress(ref.name, quiet) as progress, loading.meter(f"{ref.name} reads", "tokens", quiet) as watch:
        found = analysis.record(opened, config, prompts, wanted.limit, progress, watch, wanted.probabilities)
    revision = _revision(ref)
    return {stack: replace(each, trace=replace(each.trace, revision=revision)) for stack, each in found.items()}


def _revision(ref: ModelRef) -> str:
    """The commit that the weights are of; empty where they are files of one's own."""
    from moecli.library import inspection
    from moecli.library.resolve import Kind

    return inspection.inspect(ref).revision or ("built in" if ref.kind is Kind.BUILT_IN else "")


def _against(
    wanted: RoutingOptions, ref: ModelRef, offline: bool, quiet: bool
) -> RoutingTrace | tuple[ModelRef, bool, RoutingOptions] | None:
    """What to compare with, found before anything is read: a trace, or a model that is here and how to read it."""
    from moecli.library.resolve import resolve, without_dtype

    against = wanted.against
    if against is None or _is_trace(against):
        return _other_trace(against)
    name = against
    if against.startswith("dtype="):
        name, wanted = without_dtype(ref.typed), replace(wanted, dtype=against.removeprefix("dtype="))
        if not is_dtype(wanted.dtype):
            raise UsageError.unknown("--against", against, f"dtype= with {', '.join(FORMATS)}")
    try:
        found = resolve(name, dtype=wanted.dtype)
    except ModelNotFound as error:
        word = nearest(against)
        raise UsageError(
            f"--against: {error.message}", f"did you mean dtype={word}?" if word else error.hint
        ) from error
    here = running.with_weights(found, found.dtype, wanted.ram, wanted.ctx, offline, quiet)
    return here, offline, replace(wanted, dtype=found.dtype)


def _is_trace(name: str) -> bool:
    """A file that is no configuration, or a pipe."""
    from moecli.hub.cache import is_folder, status

    path = Path(name)
    return status(path) is not None and not is_folder(path) and path.suffix != ".json"


def _other_trace(name: str | None) -> RoutingTrace | None:
    if name is None:
        return None
    if not _is_trace(name):
        raise UsageError(f"--against {name} is not a trace", "with --from only another trace can be compared")
    return _read(Path(name), None).trace


def _read(path: Path, ref: ModelRef | None) -> Recorded:
    """A trace; with the model that is said to have made it, what that takes. UsageError if it cannot have."""
    from moecli.routing import files
    from moecli.routing.recorded import Recorded, described

    if ref is None:
        return Recorded(files.read(path))
    from moecli.library import inspection

    spec = inspection.inspect(ref).spec
    shapes = [(layer, mixture.router.top_k, mixture.router.experts) for layer, mixture in spec.mixtures]
    trace = files.read(path, min((shape[1:] for shape in shapes), default=None))
    stacks = [[shape for shape in shapes if shape[0] in layers] for layers in spec.stacks.values()]
    if [(layer.layer, layer.active, layer.experts) for layer in trace.layers] not in stacks:
        raise UsageError(f"{path} was not recorded of {ref.name}: its layers differ", "leave MODEL out")
    return described(trace, spec)
