"""`moecli pull`: a model from the Hub into the Hugging Face cache, or straight into a packed store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from moecli import settings
from moecli.cli import options, running
from moecli.cli.pack import StoreFolder
from moecli.errors import UsageError
from moecli.formats.words import with_dense

EXAMPLES = """Examples:

  moecli pull mixtral --dry-run

  moecli pull mixtral --dtype q4

  moecli pull Qwen/Qwen3-30B-A3B@main --yes --json
"""


def pull(
    model: options.Model,
    *,
    dtype: Annotated[
        str | None,
        options.option(
            "--dtype",
            "--quant",
            metavar="FORMAT",
            values=options.DTYPES[1:],
            help=f"Pack on the way, shard by shard: {', '.join(options.DTYPES[1:])}.",
        ),
    ] = None,
    dense: options.Dense = None,
    output: StoreFolder = None,
    keep_original: Annotated[
        bool, options.option("--keep-original", help="With --dtype: keep the downloaded files as well.")
    ] = False,
    tokenizer: options.Tokenizer = None,
    threads: options.Threads = None,
    dry_run: Annotated[bool, options.option("--dry-run", help="Show what would be fetched, and stop.")] = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:
    """Download a model from the Hub: weights, configuration and tokenizer only.

    With --dtype each shard is packed when it arrives, and deleted: the disk never holds more than the packed model and
    two shards. Interrupted, it goes on where it stopped when repeated. It asks only where something speaks against it.
    """
    from moecli.cli import fetching
    from moecli.library.resolve import resolve

    if dtype is not None or dense is not None:
        dtype = with_dense(dtype or "auto", dense)
    if offline:
        settings.forbid_network()
    ref = running.with_tokenizer(resolve(model, dtype=dtype or "auto", original=True), tokenizer, check=True)
    if ref.variant is not None and (dtype is not None or output is not None or keep_original):
        hint = f"moecli pull {ref.typed}, then moecli pack {ref.typed} --dtype {dtype or 'q4'}"
        raise UsageError("a GGUF file is packed once it is here, not on its way", hint)
    if ref.variant is not None and tokenizer is not None:
        raise UsageError("nothing is laid beside a GGUF file", f"moecli run {ref.typed} --tokenizer {tokenizer}")
    if ref.dtype != "auto":
        dtype = ref.dtype
    elif output is not None or keep_original:
        raise UsageError(f"{'-o' if output else '--keep-original'} goes with --dtype", "add for instance --dtype q4")
    target = Path(os.path.realpath(output)) if output else None
    talk = fetching.Talk(json, quiet, no_color)
    if dry_run:
        fetching.dry_run(ref, dtype, target, keep_original, talk)
    else:
        fetching.pull(ref, dtype, target, keep_original, threads, yes, talk)
