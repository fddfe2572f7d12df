"""Files of a manifest into the Hugging Face cache, several at once, laid out as huggingface_hub lays them out."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from moecli.checkpoint.headers import read_header
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError, DiskError
from moecli.hub import client
from moecli.hub.background import each_in_background, in_background
from moecli.hub.cache import UNFINISHED, commit, lock_folder, status
from moecli.hub.headers import Repository
from moecli.hub.manifest import DownloadManifest, RemoteFile, tokenizer_manifest
from moecli.hub.retry import RetryPolicy, Tell, retry
from moecli.hub.supplement import supply
from moecli.hub.transfer import Transfer, Watcher
from moecli.store.filesystem import FULL, free_space, nearest_folder, unwritable
from moecli.store.journal import make_folder, sync_folder
from moecli.units import format_bytes

_AT_ONCE, _HEADERS_AT_ONCE = 4, 8
Place = Callable[[DownloadManifest, RemoteFile, Transfer], Path]  # brings a file to where it belongs


def fetch_all(manifest: DownloadManifest, watcher: Watcher, policy: RetryPolicy | None = None) -> Path:
    """The whole model, and the ref that names it; returns its snapshot folder.

    The ref moves last, so that an update that was cut leaves the earlier revision in use.
    """
    for files in (manifest.texts, manifest.weights):  # a snapshot with all weights has everything
        if files is manifest.weights:
            supply(manifest, manifest.snapshot)
        for _ in each(manifest, files, watcher, ahead=_AT_ONCE - 1, policy=policy):
            pass
    write_ref(manifest)
    return manifest.snapshot


def each(
    manifest: DownloadManifest,
    files: Sequence[RemoteFile],
    watcher: Watcher,
    ahead: int = 1,
    policy: RetryPolicy | None = None,
    place: Place | None = None,
) -> Generator[tuple[RemoteFile, Path], None, None]:
    """File after file, verified and in place (the cache), in the given order; at most `ahead` more meanwhile.

    When the caller stops, all transfers stop at once; what they have is resumed next time.
    """
    stop = threading.Event()
    transfer = Transfer(manifest.repo, manifest.commit, watcher, policy or RetryPolicy(), stop)
    waiting: deque[tuple[RemoteFile, Future[Path]]] = deque()
    rest = iter(files)
    place = place or _place
    try:
        while True:
            while len(waiting) <= ahead and (file := next(rest, None)) is not None:
                waiting.append((file, in_background(partial(place, manifest, file, transfer))))
            if not waiting:
                return
            file, future = waiting.popleft()
            yield file, future.result()
    finally:
        stop.set()


def fetch_tokenizer(repo: str, revision: str | None, policy: RetryPolicy) -> Path:
    """A tokenizer and what lies beside it into the cache, whatever else the repository holds; their snapshot."""
    manifest = tokenizer_manifest(repo, revision, policy)
    for _ in each(manifest, manifest.texts, _Nobody(), policy=policy):
        pass
    write_ref(manifest)
    return manifest.snapshot


class _Nobody:
    """Who watches the small files of a tokenizer."""

    def advance(self, file: RemoteFile, size: int) -> None:
        pass

    found = advance

    def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
        pass


def present(manifest: DownloadManifest, file: RemoteFile) -> int:
    """Bytes of the file that need not be fetched any more."""
    return file.size if cached(manifest, file) else unfinished(manifest.blob(file), file)


def cached(manifest: DownloadManifest, file: RemoteFile) -> Path | None:
    """The file, if the cache holds all of it."""
    places = (manifest.snapshot / file.name, manifest.blob(file))
    return next((path for path in places if is_whole(path, file)), None)


def unfinished(path: Path, file: RemoteFile) -> int:
    """Bytes of the file that wait to be completed and named `path`."""
    partial = status(path.with_name(path.name + UNFINISHED))
    return partial.st_size if partial is not None and partial.st_size <= file.size else 0


def headers(manifest: DownloadManifest, tell: Tell | None) -> Iterator[dict[str, StoredTensor]]:
    """What each file of weights holds, in their order: read from the cache where it is there, else asked of the Hub."""
    if manifest.tensors is not None:
        return iter([dict(manifest.tensors)])
    hub = Repository(manifest.repo, manifest.commit)

    def read(file: RemoteFile) -> dict[str, StoredTensor]:
        if (path := cached(manifest, file)) is not None:
            here = read_header(path, file.name)
            return {name: stored.at(Path(file.name)) for name, stored in here.items()}
        header = retry(lambda: hub.header(file.name, 0), RetryPolicy(attempts=4), tell=tell)
        if header is None:
            raise CheckpointError(f"{manifest.repo} lists '{file.name}' and does not hold it", "try again later")
        return header[0]

    return each_in_background(read, manifest.weights, _HEADERS_AT_ONCE)


def check_space(manifest: DownloadManifest, files: Sequence[RemoteFile]) -> None:
    """DiskError unless what is still to come fits the disk."""
    missing = sum(file.size - present(manifest, file) for file in files)
    free = free_space(manifest.root)
    if missing > free:
        raise DiskError(
            f"{format_bytes(missing)} are to be fetched and {format_bytes(free)} are free in {manifest.root.parent}",
            "make room, or set HF_HOME to a folder on a larger disk",
        )


def share_a_disk(one: Path, other: Path) -> bool:
    """Whether what is written to both takes the same room."""
    return nearest_folder(one).stat().st_dev == nearest_folder(other).stat().st_dev


def is_whole(path: Path, file: RemoteFile) -> bool:
    """By its size: its hash was checked before it got its name."""
    found = status(path)
    return found is not None and found.st_size == file.size


def write_ref(manifest: DownloadManifest) -> None:
    """Let the branch or tag that was asked for name the commit."""
    if manifest.revision == manifest.commit or commit(manifest.root, manifest.revision) == manifest.commit:
        return
    with _explained(manifest.root):
        path = manifest.root / "refs" / manifest.revision
        make_folder(path.parent)
        with _replacing(path) as temporary, temporary.open("w") as file:
            file.write(manifest.commit)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


def _place(manifest: DownloadManifest, file: RemoteFile, transfer: Transfer) -> Path:
    """The file in its snapshot. The lock is huggingface_hub's own: one process fetches, the others wait for it."""
    blob, pointer = manifest.blob(file), manifest.snapshot / file.name
    if is_whole(pointer, file):  # nothing is written: the cache may be read-only
        transfer.watcher.found(file, file.size)
        return pointer
    locks = lock_folder(manifest.repo)
    busy = partial(transfer.watcher.wait, file, f"another process is fetching {file.name}", None)
    with _explained(manifest.root):
        for folder in (blob.parent, pointer.parent, locks):
            make_folder(folder)
        with _alone(locks / f"{file.hash}.lock", busy):
            linked = is_whole(pointer, file)  # meanwhile, by another process
            if linked or is_whole(blob, file):
                transfer.watcher.found(file, file.size)
            else:
                transfer.fetch(file, blob)
                sync_folder(blob.parent)
            if not linked:
                _link(blob, pointer)
                sync_folder(pointer.parent)
    return pointer


@contextlib.contextmanager
def _alone(lock: Path, busy: Callable[[], None]) -> Iterator[None]:
    """While no other process holds the lock; `busy` is called once if that takes a while."""
    lock_of = client.library().utils.WeakFileLock
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_of(lock, timeout=0.5))
        except TimeoutError:
            busy()
            stack.enter_context(lock_of(lock))
        yield


def _link(blob: Path, pointer: Path) -> None:
    """A relative link, as the library makes it, instead of what was not whole; without links, the file itself."""
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError as error:
        if error.errno in FULL:
            raise
        blob.replace(pointer)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path`, which it gets when the block ends well; otherwise nothing is left."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Trouble with the cache folder in words."""
    try:
        yield
    except OSError as error:
        failure = unwritable(folder, error)
        failure.hint = failure.hint or "HF_HOME or HF_HUB_CACHE names another folder for the cache"
        raise failure from error
