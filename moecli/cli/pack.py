"""`moecli pack`: convert a checkpoint into a packed store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import options, running
from moecli.formats.words import with_dense
from moecli.output import terminal

EXAMPLES = """Examples:

  moecli pack mixtral

  moecli pack ./my-model --dtype q8 -o /data/my-model-q8
"""

_DTYPE = "q4"
StoreFolder = Annotated[
    Path | None,
    options.option("--output", "-o", metavar="DIR", help="Folder of the packed model; default: in MOECLI_HOME."),
]


def pack(
    model: options.LocalModel,
    *,
    dtype: Annotated[
        str,
        options.option(
            "--dtype",
            "--quant",
            metavar="FORMAT",
            default=True,
            values=options.DTYPES,
            help=f"Format of the weights: {', '.join(options.DTYPES)}. auto: as stored, or nearest to it.",
        ),
    ] = _DTYPE,
    dense: options.Dense = None,
    output: StoreFolder = None,
    tokenizer: options.Tokenizer = None,
    threads: options.Threads = None,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_color: options.NoColor = False,
) -> None:
    """Convert a checkpoint on this machine into a packed store, which then runs without it.

    Interrupted, it goes on where it stopped when repeated. Prints the store's folder, which is a MODEL.
    """
    from moecli.library import stores
    from moecli.library.pull import lacks_tokenizer
    from moecli.library.resolve import resolve
    from moecli.output import pack as view
    from moecli.output.json.pack import document
    from moecli.store.layout import choose_layout
    from moecli.store.source import open_source, origin_of
    from moecli.text.files import texts_in, tokenizer_among

    dtype = with_dense(dtype, dense)
    ref = resolve(model, dtype="auto" if dtype == _DTYPE else dtype, original=True)
    ref = running.with_tokenizer(ref, tokenizer, check=True)
    dtype = dtype if ref.dtype == "auto" else ref.dtype
    weights = open_source(ref.weights)
    if not quiet:
        terminal.say_notes(weights.notes)
    dtype = weights.packed_dtype if dtype == "auto" else dtype
    origin = origin_of(ref.name, ref.repo, ref.commit, ref.weights, weights, ref.tokenizer)
    if ref.tokenizer is None and tokenizer_among(texts := texts_in(ref.weights)) is None:
        terminal.say(f"note: {lacks_tokenizer(texts, ref.repo)}")
        terminal.confirm("pack it nevertheless?", yes)
    target = Path(os.path.realpath(output)) if output else stores.default_folder(ref.name, dtype)
    load_packer(threads, quiet or json)
    from moecli.store.cost import measure
    from moecli.store.write import pack as write

    if verbose:
        view.explain(choose_layout(weights, dtype), target)
    size = sum(tensor.size for tensor in weights.checkpoint.tensors.values())
    try:
        with view.PackingProgress(ref.name, dtype, size, quiet or json) as watch:
            store = write(weights, ref.weights, target, dtype, origin, watch, ref.tokenizer)
    except KeyboardInterrupt:
        terminal.say("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    cost = measure(weights, store) if weights.is_encoded else None
    if json:
        terminal.write_json(document(store, watch, cost))
        return
    if not quiet:
        view.summary(store, watch, cost)
    terminal.write_path(store.folder)


def load_packer(threads: int | None, quiet: bool) -> None:
    """What takes a moment and is needed by nothing before."""
    with terminal.status("loading ...", quiet):
        import torch

        from moecli.planning.machine import compute_threads

        torch.set_num_threads(compute_threads(threads))
