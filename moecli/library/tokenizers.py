"""The tokenizer that --tokenizer names: a file, a folder, a model on this machine, or files of a Hub repository."""

from __future__ import annotations

from pathlib import Path

from moecli import settings
from moecli.errors import ModelNotFound, TextError
from moecli.hub import cache as hub_cache
from moecli.hub import download
from moecli.hub.retry import RetryPolicy
from moecli.hub.supplement import write_whole
from moecli.library.resolve import ModelRef, path_named, resolve
from moecli.store.filesystem import unwritable
from moecli.store.journal import make_folder
from moecli.text.files import tokenizer_texts
from moecli.text.tokenizer import Tokenizer


def find(name: str, offline: bool = False) -> Path:
    """The file or folder that holds it; what is on the Hub alone is fetched into the Hugging Face cache.

    ModelNotFound for what names nothing, TextError for what holds no tokenizer, NetworkError if it cannot be had.
    """
    path = path_named(name)
    is_folder = name.strip() != "" and hub_cache.is_folder(path)
    if hub_cache.is_file(path) or (is_folder and (_holds(path) or not hub_cache.is_repo(name))):
        tokenizer_texts(path)
        return path
    ref = resolve(name, original=True)
    if ref.folder is not None and _holds(ref.folder):
        return ref.folder
    repo = (ref.entry.tokenizer if ref.entry else None) or ref.repo
    if repo is None:
        raise TextError(f"'{ref.name}' holds no tokenizer that can be read", "name a file, a folder or a Hub id")
    revision = ref.revision if repo == ref.repo else None
    for folder in hub_cache.snapshots(repo, revision):
        if _holds(folder):
            return folder
    if offline or settings.offline():
        raise ModelNotFound(f"the tokenizer of {repo} is not on this machine", "leave out --offline, or name a file")
    folder = download.fetch_tokenizer(repo, revision, RetryPolicy(attempts=4))
    tokenizer_texts(folder)
    return folder


def check(path: Path) -> None:
    """TextError unless it can be read, before much is done for a model that is to have it."""
    Tokenizer.load(path if hub_cache.is_folder(path) else path.parent, path)


def lay(ref: ModelRef, folder: Path) -> None:
    """Copy the tokenizer that was given for a model, if one was, into the folder of its files."""
    if ref.tokenizer is None:
        return
    try:
        make_folder(folder)
        for name, path in tokenizer_texts(ref.tokenizer).items():
            write_whole(folder / name, path.read_bytes())
    except OSError as error:
        raise unwritable(folder, error) from error


def _holds(folder: Path) -> bool:
    try:
        tokenizer_texts(folder)
    except TextError:
        return False
    return True
