"""Finding a model on this machine: the order of meanings, the Hugging Face cache, hostile names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._validators import validate_repo_id

from moecli.errors import CheckpointError, ModelNotFound, UsageError
from moecli.hub import cache as hub_cache
from moecli.library import resolve as front_door
from moecli.library.resolve import Kind, resolve, without_dtype

REPO = "mistralai/Mixtral-8x7B-Instruct-v0.1"
OLD, NEW = "a" * 40, "b" * 40
SHARDS = tuple(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))
WHOLE = ("config.json", "tokenizer.json", *SHARDS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and an empty working directory beside it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    return tmp_path / "hf" / "hub"


def download(
    cache: Path, files: tuple[str, ...] = WHOLE, repo: str = REPO, commit: str = NEW, ref: str | None = "main"
) -> Path:
    """A snapshot as the real library lays it out: blobs, links to them, and a ref that names the commit."""
    root = cache / repo_folder_name(repo_id=repo, repo_type="model")
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for name in files:
        blob = root / "blobs" / f"{commit[0]}-{name}"
        blob.write_bytes(b"{}" if name.endswith(".json") else b"weights " * 100)
        (folder / name).symlink_to(Path("..", "..", "blobs", blob.name))
    if ref:
        path = root / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return folder


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def refusal(model: str) -> tuple[str, str | None]:
    """What the user reads when MODEL cannot be run."""
    with pytest.raises(ModelNotFound) as caught:
        assert resolve(model).weights is None
    return caught.value.message, caught.value.hint


# What a MODEL means


def test_a_folder_comes_before_an_alias_and_before_a_hub_id(cache: Path) -> None:
    download(cache)
    for name in ("mixtral", "tiny", "mistralai/Mixtral-8x7B-Instruct-v0.1"):
        folder = model_folder(Path(name))
        source = resolve(name)
        assert source.folder == folder and source.entry is None and source.repo is None
        assert source.name == folder.name


def test_a_folder_without_a_model_does_not_hide_an_alias() -> None:
    Path("mixtral").mkdir()
    assert resolve("mixtral").repo == REPO


def test_the_built_in_model_lies_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(front_door, "__file__", str(tmp_path / "package" / "library" / "resolve.py"))
    assert refusal("tiny") == (
        "the built-in model 'tiny' is missing from this installation",
        "reinstall moecli",
    )
    folder = model_folder(tmp_path / "package" / "tiny")
    assert resolve("Tiny").weights == folder


def test_an_alias_leads_to_the_entry_and_its_repository(cache: Path) -> None:
    source = resolve("mixtral-8x7b")
    assert (source.name, source.repo, source.folder, source.commit) == ("mixtral", REPO, None, None)
    assert source.entry is not None and source.entry.alias == "mixtral"
    folder = download(cache)
    source = resolve("mixtral-8x7b")
    assert (source.folder, source.commit, source.revision) == (folder, NEW, None)


def test_a_hub_id_of_the_catalog_is_spelled_as_the_hub_spells_it(cache: Path) -> None:
    folder = download(cache)
    source = resolve(REPO.lower())
    assert (source.name, source.repo, source.folder) == ("mixtral", REPO, folder)


def test_any_other_hub_id_keeps_its_name(cache: Path) -> None:
    folder = download(cache, repo="someone/My_MoE.v2", ref="dev")
    source = resolve("someone/My_MoE.v2@dev")
    assert (source.name, source.repo, source.revision) == ("someone/My_MoE.v2", "someone/My_MoE.v2", "dev")
    assert (source.folder, source.entry) == (folder, None)


@pytest.mark.parametrize("spelling", ["./m", "{here}/m", "~/m", "m", "../desk/m", "./m/"])
def test_every_spelling_of_a_path(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    model_folder(Path("m"))
    source = resolve(spelling.format(here=Path.cwd()))
    assert source.name == "m" and source.folder is not None and source.folder.samefile("m")


def test_the_working_directory_is_named_by_its_folder() -> None:
    Path("config.json").write_text("{}")
    Path("inner").mkdir()
    assert resolve(".").name == "desk"
    os.chdir("inner")
    assert resolve("..").name == "desk"


def test_a_packed_store_is_a_path_too() -> None:
    Path("store").mkdir()
    Path("store/manifest.json").write_text("{}")
    assert resolve("store").weights == Path("store")


@pytest.mark.parametrize("spelling", ["some/config.json", "./some/config.json"])
def test_a_bare_configuration_can_be_read_but_not_run(spelling: str) -> None:
    model_folder(Path("some"))
    source = resolve(spelling)
    assert source.file == Path("some/config.json") and source.folder is None and source.name == "some"
    message, hint = refusal(spelling)
    assert message == "'some/config.json' is a configuration without weights" and hint


# What a user reads when nothing is there


def test_a_typo_is_answered_with_the_nearest_aliases() -> None:
    message, hint = refusal("mixtrl")
    assert message == "no model is called 'mixtrl'"
    assert hint is not None and hint.startswith("did you mean mixtral, mixtral-8x22b")
    assert refusal("xyzzy")[1] == "type an alias such as mixtral, a folder as ./name, or a Hub id as org/name"


def test_a_known_model_that_is_not_here_names_the_command() -> None:
    message, hint = refusal("mixtral")
    assert message.startswith(f"model 'mixtral' ({REPO}) is not on this machine") and "moecli pull" in hint
    assert refusal("a/b") == ("model 'a/b' is not on this machine", "moecli pull a/b")


def test_another_revision_is_not_the_one_asked_for(cache: Path) -> None:
    download(cache)
    message, hint = refusal("mixtral@v2")
    assert message.startswith(f"model 'mixtral' ({REPO}) is not on this machine at revision v2")
    assert "moecli pull mixtral@v2" in hint


def test_a_model_without_weights_says_so() -> None:
    message, hint = refusal("glam")
    assert message == "no weights of 'glam-64b-64e' were ever published"
    assert hint.startswith("the nearest model that runs here: moecli pull ")


def test_paths_that_cannot_be_run() -> None:
    Path("empty").mkdir()
    Path("m.gguf").write_text("GGUF")
    assert refusal("./empty")[0] == "the folder 'empty' holds no config.json"
    assert refusal("empty") == ("no model is called 'empty'", "the folder 'empty' holds no config.json")
    with pytest.raises(CheckpointError, match=r"m\.gguf is damaged: its head is cut short"):
        resolve("./m.gguf")
    assert refusal("./nowhere")[0] == "there is no folder 'nowhere'"
    assert refusal("~nobody-here/x")[0] == "there is no folder '~nobody-here/x'"
    assert "there is no folder" in refusal("C:\\models\\m")[0]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (("tokenizer.json",), "its config.json is missing"),
        (("config.json",), "its weights are missing"),
        (("config.json", *SHARDS[:2]), "1 of its 3 weight files are missing"),
    ],
)
def test_a_partial_download_says_what_is_missing(cache: Path, files: tuple[str, ...], reason: str) -> None:
    folder = download(cache, files)
    message = f"model 'mixtral' ({REPO}) is only partly on this machine: {reason}"
    found, hint = refusal("mixtral")
    assert found.startswith(message) and "moecli pull" in hint
    config = folder / "config.json"
    assert resolve("mixtral").file == (config if "config.json" in files else None)


def test_a_link_to_a_blob_that_is_gone_counts_as_missing(cache: Path) -> None:
    folder = download(cache)
    (folder / SHARDS[2]).resolve().unlink()
    assert "1 of its 3 weight files are missing" in refusal("mixtral")[0]


def test_one_whole_series_of_weight_files_is_enough(cache: Path) -> None:
    folder = download(cache, (*WHOLE, "consolidated-01-of-02.safetensors"))
    assert hub_cache.snapshot(REPO) == folder


def test_an_index_tells_about_files_without_numbers(cache: Path) -> None:
    folder = download(cache, ("config.json", "first.safetensors", "model.safetensors.index.json"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "first.safetensors", "y": "second.safetensors"}}))
    assert "1 of its 2 weight files are missing" in refusal("mixtral")[0]
    index.write_text("not json")
    assert hub_cache.snapshot(REPO) == folder


def test_a_download_that_has_just_begun(cache: Path) -> None:
    blobs = cache / repo_folder_name(repo_id=REPO, repo_type="model") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"half")
    assert refusal("mixtral")[0].endswith("is only partly on this machine: its download was not finished")


def test_a_release_of_grok_without_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "ckpt-0").mkdir()
    message, hint = refusal(str(tmp_path))
    assert "holds no config.json" in message and "beside ckpt-0" in hint


def test_files_of_torch_are_weights(cache: Path) -> None:
    download(cache, ("config.json", "pytorch_model-00001-of-00002.bin"), repo="somebody/torch")
    assert "is only partly on this machine: 1 of its 2 weight files are missing" in refusal("somebody/torch")[0]
    folder = download(cache, ("config.json", "pytorch_model.bin"), repo="somebody/torch", commit="f" * 40)
    assert resolve("somebody/torch").folder == folder


def test_a_cache_that_cannot_be_read_is_not_an_empty_one(cache: Path) -> None:
    cache.mkdir(parents=True)
    loop = cache / repo_folder_name(repo_id=REPO, repo_type="model")
    loop.symlink_to(loop)
    assert "cannot be read" in refusal("mixtral")[0]


# The cache, as the real library sees it


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/7", "v1.0", OLD, NEW, "absent", "c" * 40])
def test_a_snapshot_is_the_one_the_library_would_take(cache: Path, revision: str | None) -> None:
    download(cache, commit=OLD, ref="v1.0")
    download(cache, commit=NEW, ref="main")
    (cache / repo_folder_name(repo_id=REPO, repo_type="model") / "refs" / "refs" / "pr").mkdir(parents=True)
    (cache / repo_folder_name(repo_id=REPO, repo_type="model") / "refs" / "refs" / "pr" / "7").write_text(OLD)
    theirs = huggingface_hub.try_to_load_from_cache(REPO, "config.json", cache_dir=cache, revision=revision)
    ours = hub_cache.snapshot(REPO, revision)
    assert (str(ours / "config.json") if ours else None) == theirs


def test_without_a_ref_the_newest_whole_snapshot_is_taken(cache: Path) -> None:
    old, new = download(cache, commit=OLD, ref=None), download(cache, commit=NEW, ref=None)
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    assert hub_cache.snapshot(REPO) == new
    os.utime(old, (3, 3))
    assert hub_cache.snapshot(REPO) == old
    (old / SHARDS[0]).unlink()
    assert hub_cache.snapshot(REPO) == new


def test_a_whole_old_snapshot_is_better_than_a_partial_main(cache: Path) -> None:
    old = download(cache, commit=OLD, ref=None)
    download(cache, ("config.json",), commit=NEW)
    assert hub_cache.snapshot(REPO) == old
    assert hub_cache.snapshot(REPO, "main") is None


def test_one_weight_file_without_a_number_is_whole(cache: Path) -> None:
    assert hub_cache.snapshot(REPO) is None
    folder = download(cache, ("config.json", "model.safetensors"))
    assert hub_cache.snapshot(REPO) == folder


def test_the_list_agrees_with_the_library(cache: Path) -> None:
    download(cache, commit=OLD, ref="v1.0")
    folder = download(cache, commit=NEW)
    download(cache, ("config.json", SHARDS[0]), repo="someone/Half")
    listed = {model.repo: model for model in hub_cache.local_models()}
    theirs = {repo.repo_id: repo for repo in huggingface_hub.scan_cache_dir(cache).repos}
    assert listed.keys() == theirs.keys() == {REPO, "someone/Half"}
    for repo, model in listed.items():
        assert model.bytes == theirs[repo].size_on_disk
        assert model.revision in {revision.commit_hash for revision in theirs[repo].revisions}
    assert (listed[REPO].name, listed[REPO].revision, listed[REPO].path) == ("mixtral", NEW, folder)
    assert listed[REPO].complete and listed[REPO].revisions == (OLD, NEW) and not listed[REPO].partial_bytes
    assert listed[REPO].last_used == pytest.approx(theirs[REPO].last_accessed)
    assert (listed["someone/Half"].name, listed["someone/Half"].complete) == ("someone/Half", False)
    assert resolve(listed[REPO].name).folder == listed[REPO].path


def test_the_list_counts_unfinished_files_and_skips_strangers(cache: Path) -> None:
    blobs = cache / "models--someone--Begun" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"half")
    for other in (
        "datasets--a--b",
        "models--a--..--b",
        "models--",
        "models--a--empty",
        ".locks",
        "version.txt",
    ):
        (cache / other / "blobs").mkdir(parents=True)
        if not other.endswith("empty"):
            (cache / other / "blobs" / "file").write_text("x")
    root = cache / "models--someone--Begun"
    (begun,) = hub_cache.local_models()
    assert (begun.name, begun.repo, begun.revision, begun.path) == ("someone/Begun", "someone/Begun", None, root)
    assert (begun.bytes, begun.partial_bytes, begun.complete, begun.revisions) == (4, 4, False, ())


def test_the_list_calls_a_model_by_an_alias_only_if_the_alias_leads_to_it(cache: Path) -> None:
    download(cache, repo=REPO.lower())
    assert [model.name for model in hub_cache.local_models()] == [REPO.lower()]
    assert resolve("mixtral").folder is None


def test_the_list_of_a_machine_without_a_cache_is_empty() -> None:
    assert hub_cache.local_models() == []


# Hostile names


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "../../etc",
        "/etc",
        "a/b/c",
        "a//b",
        "org/..",
        "org/na--me",
        "org/na..me",
        "org/name.git",
        "org/.hidden",
        "-org/name",
        "org/name@../x",
        "org/name@",
        "org/name@/etc",
        "org/name@a/../../b",
        "org/name@.hidden",
        "mixtral@../x",
        "tiny\0",
        "~\0/x",
        "org/na\nme",
        "org/na\x1b[2Jme",
        "órg/name",
        "x" * 100_000,
        "org/" + "x" * 97,
        "./" + "x" * 100_000,
        "org/name@" + "x" * 100_000,
    ],
)
def test_a_hostile_name_is_refused_in_one_clean_line(name: str, cache: Path) -> None:
    (cache.parent / "x" / "config.json").parent.mkdir(parents=True)
    message, hint = refusal(name)
    assert (message + (hint or "")).isprintable() and len(message) < 200


@pytest.mark.parametrize("revision", ["../../../x", "..", "", "/", "a/../../b", "\0", "x" * 100_000])
def test_a_hostile_revision_finds_nothing(cache: Path, revision: str) -> None:
    outside = model_folder(cache.parent / "x")
    (outside / "model.safetensors").write_bytes(b"weights")
    download(cache)
    assert hub_cache.snapshot(REPO, revision) is None


def test_revisions_and_commits_as_long_as_they_may_be(cache: Path) -> None:
    assert hub_cache.is_revision("x" * 200) and not hub_cache.is_revision("x" * 201)
    assert hub_cache.is_revision("refs/pr/7") and not hub_cache.is_revision("a b")
    for commit in ("c" * 64, "c" * 65):
        download(cache, commit=commit, ref=None)
        root = hub_cache.repository(REPO)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs/long").write_text(f"{commit}\n")
        assert hub_cache.commit(root, "long") == (commit if len(commit) == 64 else None)


@pytest.mark.parametrize("commit", ["../../../x", "../../x", "/etc", "", "a b", "\0", "x" * 1000, "ü" * 40])
def test_a_hostile_ref_file_leads_nowhere(cache: Path, commit: str) -> None:
    folder = download(cache)
    outside = model_folder(cache / "x")
    (outside / "model.safetensors").write_bytes(b"weights")
    (folder.parent.parent / "refs" / "main").write_text(commit)
    assert hub_cache.snapshot(REPO, "main") is None
    assert hub_cache.snapshot(REPO) == folder


@pytest.mark.parametrize("repo", ["../x", "a/../b", "a/b/c", "a", "", "a--b/c", "\0/x"])
def test_a_hostile_repository_finds_nothing(repo: str) -> None:
    assert hub_cache.snapshot(repo) is None


@pytest.mark.parametrize(
    "repo",
    [
        "a/b",
        "A_1/b.c-d",
        "a/b.git",
        "a/-b",
        "a/b-",
        "a/b.",
        "a.b/c",
        "a/b--c",
        "a/b..c",
        "a/" + "x" * 96,
        "a/" + "x" * 97,
        "_a/b_",
        "á/b",
    ],
)
def test_the_same_ids_are_valid_as_in_the_library(repo: str, cache: Path) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        with pytest.raises(ModelNotFound, match="no model is called"):
            resolve(repo)
    else:
        assert resolve(repo).repo == repo


@pytest.mark.parametrize("typed", ["tiny:q4", "tiny-q4", "Tiny:Q4"])
def test_a_format_in_the_name_is_the_one_asked_for(typed, monkeypatch, tmp_path):
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path))
    ref = resolve(typed)
    assert (ref.name, ref.dtype, ref.typed, ref.kind) == ("tiny", "q4", typed, Kind.BUILT_IN)
    assert resolve(typed, dtype="q4").dtype == "q4"
    with pytest.raises(UsageError, match="cannot both be meant"):
        resolve(typed, dtype="q8")


def test_what_is_no_format_is_no_name():
    assert resolve("mixtral:latest").dtype == "auto"
    assert without_dtype("mixtral:q4") == "mixtral" and without_dtype("tiny-q4") == "tiny-q4"
    assert refusal("mixtral:q5")[1] == "did you mean mixtral:q4?"
    for typed in ("mixtrl:q4", "q4", ":q4", "mixtral:q4:q4"):
        with pytest.raises(ModelNotFound):
            resolve(typed)
