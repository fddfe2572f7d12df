"""Re-hashing a model that is here: every file against the hash it was published or packed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moecli.checkpoint.files import RELEASE_FOLDER
from moecli.checkpoint.gguf_names import parts_of
from moecli.errors import ModelNotFound, remedy
from moecli.hub import cache as hub_cache
from moecli.library.resolve import ModelRef
from moecli.store import verify
from moecli.store.packed import PackedStore
from moecli.store.source import open_source

_READ = 1 << 20
Advance = Callable[[str, int], None]  # file, bytes read of it


@dataclass(frozen=True, slots=True)
class Checked:
    """One file after its check; `problem` is None if nothing differs. A copy without a hash cannot be `hashed`.

    `hint` is what helps where a file was not read and the reason lies elsewhere: it may be whole.
    """

    name: str
    path: Path
    bytes: int
    problem: str | None
    hashed: bool = True
    hint: str | None = None

    @property
    def damaged(self) -> bool:
        """Whether it is known that another one is needed."""
        return self.problem is not None and self.hint is None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be checked, so far unread."""

    name: str
    source: str
    revision: str | None
    path: Path
    files: tuple[Path, ...]
    packed: bool = False  # a store, whose manifest knows every record

    @property
    def bytes(self) -> int:
        found = map(hub_cache.status, self.files)
        return sum(status.st_size for status in found if status is not None)


def subject(ref: ModelRef) -> Subject:
    """A packed model, or the revision in use, or the one after `@`, whole or not. ModelNotFound if there is none."""
    if (store := ref.store) is not None:
        files = tuple(file for file in hub_cache.children(store.path) if hub_cache.is_file(file))
        return Subject(store.name, store.source, store.revision, store.path, files, packed=True)
    if ref.repo is None:
        hint = "moecli list shows what pull and pack have made"
        raise ModelNotFound(f"'{ref.name}' was not pulled: there is no hash to check it against", hint)
    if ref.snapshot is not None and ref.variant is not None and ref.file is not None:
        names = parts_of(ref.file.relative_to(ref.snapshot).as_posix())
        return Subject(ref.name, ref.repo, ref.commit, ref.snapshot, tuple(map(ref.snapshot.joinpath, names)))
    folder = ref.folder or next(iter(hub_cache.snapshots(ref.repo, ref.revision)), None) or ref.weights
    inside = hub_cache.children(folder / RELEASE_FOLDER)
    files = tuple(file for file in (*hub_cache.children(folder), *inside) if not hub_cache.is_folder(file))
    return Subject(ref.name, ref.repo, folder.name, folder, files)


def check(subject: Subject, advance: Advance) -> Iterator[Checked]:
    """Read every file once; what a snapshot lacks to be run comes last."""
    if subject.packed:
        yield from _check_store(subject, advance)
        return
    for file in subject.files:
        yield _check(file, advance)
    if (lack := hub_cache.lack(subject.path)) is not None:
        yield Checked("", subject.path, 0, lack)


def compare(subject: Subject, original: ModelRef, advance: Advance) -> Iterator[Checked]:
    """Pack the checkpoint `original` again, and yield what differs in `subject`, a packed model."""
    weights = open_source(original.weights)
    problems = verify.compare(PackedStore.open(subject.path), weights, _steps(original.typed, advance))
    yield from (Checked(problem.file, subject.path / problem.file, 0, problem.what) for problem in problems)


def _check_store(subject: Subject, advance: Advance) -> Iterator[Checked]:
    problems = verify.verify(subject.path, _steps(subject.name, advance))
    damaged = {problem.file for problem in problems}
    for problem in problems:
        yield Checked(problem.file, subject.path / problem.file, 0, problem.what, hint=problem.hint)
    for file in subject.files:
        if file.name not in damaged:
            yield _size(file)


def _size(file: Path) -> Checked:
    """One whose bytes are right."""
    try:
        return Checked(file.name, file, file.stat().st_size, None)
    except OSError as error:
        return _unread(file.name, file, 0, error)


def _steps(name: str, advance: Advance) -> Callable[[int, int], None]:
    """Totals so far, as the steps that `advance` takes."""
    before = 0

    def progress(done: int, total: int) -> None:
        nonlocal before
        advance(name, done - before)
        before = done

    return progress


def _check(file: Path, advance: Advance) -> Checked:
    try:
        blob = file.parent / file.readlink() if file.is_symlink() else file  # one hop: blobs may be links themselves
    except OSError as error:
        return _unread(file.name, file, 0, error)
    if not hub_cache.BLOB_NAME.fullmatch(blob.name):
        return Checked(file.name, blob, 0, None, hashed=False)
    read = 0
    try:
        with blob.open("rb", buffering=0) as stream:
            digest = hub_cache.blob_hash(blob.name, blob.stat().st_size)
            while chunk := stream.read(_READ):
                digest.update(chunk)
                read += len(chunk)
                advance(file.name, len(chunk))
    except FileNotFoundError:
        return Checked(file.name, blob, 0, "its blob is gone")
    except OSError as error:
        return _unread(file.name, blob, read, error)
    problem = None if digest.hexdigest() == blob.name else "its bytes are not those that were published"
    return Checked(file.name, blob, read, problem)


def _unread(name: str, path: Path, read: int, error: OSError) -> Checked:
    return Checked(name, path, read, f"it cannot be read: {error.strerror}", hint=remedy(path, error))
