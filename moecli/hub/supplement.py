"""What a repository of weights does without: a configuration, from the catalog, a tokenizer, from another one."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

from moecli.errors import CheckpointError
from moecli.hub import bounds
from moecli.hub.cache import is_file
from moecli.hub.headers import Repository
from moecli.hub.manifest import DownloadManifest, read_texts
from moecli.hub.retry import RetryPolicy, retry
from moecli.store.filesystem import unwritable
from moecli.store.journal import make_folder, sync_folder
from moecli.text.files import tokenizer_among

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def supply(manifest: DownloadManifest, folder: Path, policy: RetryPolicy | None = None) -> None:
    """Write into `folder`, which holds the other small files, what the catalog knows to be missing there.

    Nothing where the repository is complete, and nothing twice. NetworkError, CheckpointError or DiskError.
    """
    entry = manifest.supplied_by
    if entry is None:
        return
    names = [file.name for file in manifest.texts]
    found = {}
    if "config.json" not in names:
        found["config.json"] = json.dumps(entry.config(), indent=1).encode()
    if entry.tokenizer and tokenizer_among(names) is None and not is_file(folder / _TOKENIZER[0]):
        supplied = _texts(entry.tokenizer, policy or RetryPolicy(attempts=4))
        found |= {name: content for name, content in supplied.items() if name not in names}
    try:
        make_folder(folder)
        for name in sorted(found, key=_TOKENIZER[0].__eq__):  # by which all are known to be there
            write_whole(folder / name, found[name])
    except OSError as error:
        raise unwritable(folder, error) from error


def write_whole(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a power cut; what is whole is not written again."""
    if is_file(path) and path.read_bytes() == content:
        return
    growing = path.with_name(f"{path.name}.tmp")
    with growing.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    growing.replace(path)
    sync_folder(path.parent)


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
