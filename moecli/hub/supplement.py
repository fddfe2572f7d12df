"""What a repository of weights does without: a configuration, from the catalog, a tokenizer, from another one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from moecli.errors import CheckpointError
from moecli.hub import bounds
from moecli.hub.headers import Repository
from moecli.hub.manifest import DownloadManifest, read_texts
from moecli.hub.retry import RetryPolicy, retry
from moecli.store.filesystem import unwritable

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def supply(manifest: DownloadManifest, folder: Path, policy: RetryPolicy | None = None) -> None:
    """Write into `folder`, which holds the other small files, what the catalog knows to be missing there.

    Nothing where the repository is complete, and nothing twice. NetworkError, CheckpointError or DiskError.
    """
    entry = manifest.supplied_by
    if entry is None:
        return
    found = {"config.json": json.dumps(entry.config(), indent=1).encode()}
    if entry.tokenizer and not all((folder / name).exists() for name in _TOKENIZER[:1]):
        found |= _texts(entry.tokenizer, policy or RetryPolicy(attempts=4))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in found.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise unwritable(folder, error) from error


def _texts(repo: str, policy: RetryPolicy) -> dict[str, bytes]:
    commit, listed = read_texts(repo, policy)
    source = Repository(repo, commit)
    found: dict[str, bytes] = {}
    for name in filter(listed.__contains__, _TOKENIZER):
        piece = retry(partial(source.fetch, name, bounds.LARGEST_TOKENIZER), policy)
        if piece is None or not listed[name].is_of(piece.data):
            raise CheckpointError(f"{name} of {repo} is not the file that the Hub lists", "try again later")
        found[name] = piece.data
    return found
