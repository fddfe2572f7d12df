"""Build the training and the held-out text of the six domains from Debian packages and Python files."""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import extract
import packages

SEPARATOR = "\x1e"
HELDOUT_BYTES = 25_000
PACKAGE_BYTES, MANUAL_BYTES = 4_000_000, 1_500_000
OVERLAP, COMMON = 8, 8
CATALOGUE_GROUP = 16
CODE_PACKAGES = ("torch", "transformers", "sympy", "networkx", "numpy")
WORD = re.compile(r"[^\W\d_]+")
FUNCTION_WORDS = {
    "english": "the of and to in that is it for was with as be his you not this he on which are by they but "
    "have had from at or an were we all there if when will your can has been their its would who what do "
    "him her she my them more than then into some so no one out up any other only",
    "french": "le la les de des du un une et est dans que qui pour par sur au aux ce cette se pas ne plus son "
    "ses il elle nous vous ils avec sont être vous votre leur mais ou si sans comme tout peut fait été avez "
    "je tu même cet ces deux faire aussi bien très entre l d qu n c s",
    "german": "der die das und ist in den von zu mit sich des auf für nicht ein eine als auch es an werden aus "
    "er hat dass sie nach wird bei einer um am sind noch wie einem über so zum kann oder wenn wir ich einen "
    "nur man aber vor durch sein haben dem im diese dieser ihr ihre können zur eines keine mehr du",
    "spanish": "el la los las de que y en un una es por con para no se del al lo como más su sus pero este "
    "esta son está si o ha ser cuando sin sobre todo también hay puede fue muy entre desde cada uno le les "
    "me nos yo tú usted porque donde qué esto eso otro otra todos tiene",
    "italian": "il la le lo gli i di che e in un una è per con non si del della dei delle al alla da dal nel "
    "nella come più sono questo questa ha o ma anche se essere può su ci suo sua loro tutto quando ogni dalla "
    "alle degli nei sul sulla tra cui dopo senza solo perché viene c è l",
}
CROSS_REFERENCE = re.compile(r"\*[Nn]ote ([^:]*)::?|\*note\b")
LANGUAGE_OF: dict[str, set[str]] = {}
for _language, _words in FUNCTION_WORDS.items():
    for _word in _words.split():
        LANGUAGE_OF.setdefault(_word, set()).add(_language)


def language(text: str) -> str | None:
    """Language of a paragraph by its function words; None when unclear or when it is not prose."""
    words = WORD.findall(text.lower())
    if len(words) < 5 or sum(map(len, words)) < 0.7 * len(text):
        return None
    votes: dict[str, float] = defaultdict(float)
    for word in words:
        languages = LANGUAGE_OF.get(word, ())
        for name in languages:
            votes[name] += 1 / len(languages)
    if not votes:
        return None
    first, *rest = sorted(votes, key=lambda name: -votes[name])
    if votes[first] < 0.17 * len(words) or (rest and votes[rest[0]] > 0.6 * votes[first]):
        return None
    return first


def prose(path: Path) -> list[tuple[str, list[str]]]:
    """Language and paragraphs of every document in one file."""
    try:
        parts = extract.paragraphs(path)
    except (OSError, RecursionError):
        return []
    by_language: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        part = part.replace("\u00ad", "").replace("\u00a0", " ").replace("\u202f", " ")
        if 30 <= len(part) <= 6000 and (name := language(part)):
            by_language[name].append(part)
    found = []
    grouped = path.suffix in (".mo", ".gmo") or "endless-sky" in path.as_posix()
    for name, kept in by_language.items():
        size = CATALOGUE_GROUP if grouped else 60
        found += [(name, kept[start : start + size]) for start in range(0, len(kept), size)]
    return found


def documents(root: Path) -> Iterator[tuple[str, str, str]]:
    """Language, package and text of every prose document, without paragraphs seen in another one before."""
    seen: set[int] = set()
    names = (*packages.STORIES, *packages.SDISTS, *packages.PACKAGES)
    paths = [path for name in dict.fromkeys(names) for path in sorted((root / name).rglob("*")) if wanted(path)]
    with ProcessPoolExecutor(2) as pool:
        for path, found in zip(paths, pool.map(prose, paths, chunksize=64), strict=True):
            for name, kept in found:
                fresh = []
                for part in kept:
                    key = hash(re.sub(r"[\W\d]+", "", part.lower()))
                    if key not in seen:
                        seen.add(key)
                        fresh.append(part)
                text = "\n\n".join(fresh)
                if len(text) >= 200:
                    yield name, path.relative_to(root).parts[0], text


def wanted(path: Path) -> bool:
    """Leave out licences, change logs, offensive fortunes, crates' API pages and other poor prose."""
    name = path.as_posix()
    if not path.is_file() or path.is_symlink():
        return False
    if "rust-doc" in name:
        return re.search(r"/html/(book|reference|nomicon|rust-by-example|edition-guide|cargo)/", name) is not None
    return not re.search(
        r"copyright|changelog|/off/|NEWS|/genindex|/whatsnew/changelog|print\.html|searchindex|"
        r"lintian|LICENSE|COPYING|_sources/|/perl/.*\.pod|perl\w*delta|\.u8$",
        name,
    )


def code(folders: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """Domain, package and text of Python source files of reasonable shape."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if re.search(
                r"site-packages|(^|/)tests?(/|_)|idlelib|encodings|lib2to3|_data|testing/_internal|"
                r"pydoc_data|turtledemo|sysconfigdata|tables",
                name,
            ):
                continue
            try:
                text = path.read_text("utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            lines = text.splitlines()
            if 400 <= len(text) <= 200_000 and max(map(len, lines)) < 400:
                yield "code", folder.name, strip_notice("\n".join(line.rstrip() for line in lines))


def strip_notice(text: str) -> str:
    """Remove the comment lines at the top, nearly always a licence notice."""
    return re.sub(r"\A(#.*\n|\s*\n)+", "", text)


def code_folders() -> list[Path]:
    """Folders of the standard library and of the permissively licensed packages installed here."""
    found = [Path(sysconfig.get_path("stdlib"))]
    for name in CODE_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations:
            found.append(Path(spec.submodule_search_locations[0]))
    return found


def hold_out(texts: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Shuffled documents: some of moderate size to hold out, and all the others."""
    heldout, rest, held = [], [], 0
    for package, text in texts:
        size = len(text.encode())
        if held < HELDOUT_BYTES and 400 <= size <= 3000:
            heldout.append(text)
            held += size
        else:
            rest.append((package, text))
    return heldout, rest


def fingerprints(text: str) -> set[str]:
    """Runs of eight words of every paragraph; of shorter paragraphs all words, when they are at least five."""
    found = set()
    for part in text.split("\n\n"):
        words = re.findall(r"\w+", part.lower())
        if len(words) >= 5:
            found |= {" ".join(words[start : start + OVERLAP]) for start in range(max(1, len(words) - OVERLAP + 1))}
    return found


def without(texts: list[tuple[str, str]], heldout: str) -> list[tuple[str, str]]:
    """Documents that share no run of words with the held-out text, save what many documents have in common."""
    known = fingerprints(heldout)
    shared = [known & fingerprints(text) for _, text in texts]
    times = Counter(run for runs in shared for run in runs)
    return [text for text, runs in zip(texts, shared, strict=True) if all(times[run] > COMMON for run in runs)]


def limited(texts: list[tuple[str, str]], domain: str) -> list[str]:
    """A limited amount of each package; of English scripture and manuals less than of plain prose."""
    training = []
    used: dict[str, int] = defaultdict(int)
    for package, text in texts:
        plain = domain != "english" or package in packages.PROSE
        if used[package] < (PACKAGE_BYTES if plain else MANUAL_BYTES):
            training.append(CROSS_REFERENCE.sub(r"\1", text))
            used[package] += len(text.encode())
    return training


def main() -> None:
    """Write <cache>/text/<domain>.txt and, unless they are to be kept, training/heldout/<domain>.txt."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, default=Path(__file__).parent / "heldout")
    parser.add_argument(
        "--keep-heldout", action="store_true", help="leave those files alone and train on nothing that overlaps them"
    )
    options = parser.parse_args()
    packages.download(options.cache)
    packages.unpack(options.cache)
    by_domain: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for source in (documents(options.cache / "root"), code(code_folders())):
        for name, package, text in source:
            by_domain[name].append((package, text))
    (options.cache / "text").mkdir(exist_ok=True)
    options.heldout.mkdir(exist_ok=True)
    for name, texts in sorted(by_domain.items()):
        random.Random(name).shuffle(texts)
        path = options.heldout / f"{name}.txt"
        if options.keep_heldout:
            rest = without(texts, path.read_text("utf-8"))
            note = f"left out {len(texts) - len(rest)} that overlap the held-out text"
        else:
            heldout, rest = hold_out(texts)
            path.write_text("\n\n".join(heldout) + "\n", "utf-8")
            note = f"held out {len(heldout)}"
        training = limited(rest, name)
        (options.cache / "text" / f"{name}.txt").write_text(SEPARATOR.join(training), "utf-8")
        size = sum(len(text.encode()) for text in training)
        print(f"{name:10}{len(training):7} documents {size / 1e6:8.1f} MB, {note}", flush=True)


if __name__ == "__main__":
    main()
