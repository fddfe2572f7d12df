"""Name the Debian and Python packages the corpus is made of, download them and unpack their text files."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

LANGUAGES = ("de", "fr", "es", "it")

STORIES = ("r-cran-janeaustenr", "wordnet-base", "freeorion-data", "crossfire-maps", "fillets-ng-data")
"""English stories and plain prose that came with the second training."""

SDISTS = {"brotli": "1.1.0"}
"""A Python source package whose tests carry books: Alice in Wonderland, Shakespeare, Milton, plain lectures."""

GAMES = (
    *("wesnoth-1.16-data", "cataclysm-dda-data", "freeciv-data", "crawl-common", "endless-sky-data"),
    *("naev-data", "widelands-data", "stellarium-data", "freedroidrpg-data", "adonthell-data"),
)

PACKAGES = (
    # literature, quotations, stories
    *("sword-text-kjv", "sword-text-web", "sword-text-sparv", "dict-jargon", "dict-devil"),
    *("fortunes", "fortunes-min", "fortunes-de", "fortunes-es", "fortunes-it", "miscfiles"),
    *GAMES,
    *STORIES,
    # manuals that exist in several languages
    *("debian-handbook", "installation-guide-amd64", "gnome-user-docs", "lyx-common", "gnucash-docs"),
    *("kate5-data", "kdenlive-data", "kmymoney-common", "evolution-common", "tellico-data"),
    *("lilypond-doc-html", "live-manual-txt", "harden-doc"),
    *("debian-faq", "debian-faq-de", "debian-faq-fr", "debian-faq-it"),
    *("developers-reference", "developers-reference-de", "developers-reference-fr", "developers-reference-it"),
    *("aptitude-doc-en", "aptitude-doc-es", "aptitude-doc-fr", "aptitude-doc-it"),
    *("maint-guide", "maint-guide-de", "libreoffice-help-en-us", "gimp-help-en", "kicad-doc-en"),
    *("debian-reference-en", "debian-edu-doc-en"),
    *(
        f"{stem}-{code}"
        for code in LANGUAGES
        for stem in ("libreoffice-help", "gimp-help", "kicad-doc", "debian-reference", "debian-edu-doc", "manpages")
    ),
    *(f"manpages-{code}-dev" for code in LANGUAGES),
    # English manuals
    *("manpages", "manpages-dev", "debian-policy", "debian-history", "rust-doc", "git-doc"),
    *("python3.11-doc", "postgresql-doc-15", "emacs-common", "perl-doc", "c++-annotations-txt"),
)

PROSE = frozenset((*STORIES, *SDISTS, *GAMES, "fortunes", "fortunes-min", "dict-jargon", "dict-devil", "miscfiles"))
"""Packages of English prose that is neither scripture nor a manual."""

SKIPPED_ENDINGS = ("png", "ogg", "svg", "svgz", "pdf", "jpg", "webp", "wav", "ttf", "elc", "ly", "css", "js")


def download(cache: Path) -> None:
    """Fetch every package not yet in the cache with apt-get and pip."""
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in PACKAGES if not list(debs.glob(f"{name}_*.deb"))]
    if wanted:
        subprocess.run(["apt-get", "download", *wanted], cwd=debs, check=True)
    sources = [f"{name}=={version}" for name, version in SDISTS.items() if not list(debs.glob(f"{name}-*.tar.gz"))]
    if sources:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, *sources], cwd=debs, check=True)
        for archive in debs.glob("*.tar.gz"):
            archive.rename(archive.with_name(archive.name.lower()))


def unpack(cache: Path) -> None:
    """Unpack every package into its own folder, without pictures and sounds."""
    skipped = [f"--exclude=*.{ending}" for ending in SKIPPED_ENDINGS]
    for name in PACKAGES:
        folder = cache / "root" / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        archive = next((cache / "debs").glob(f"{name}_*.deb"))
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-x", "-C", str(folder), *skipped], stdin=tar.stdout, check=True)
    for name in SDISTS:
        with tarfile.open(next((cache / "debs").glob(f"{name}-*.tar.gz"))) as tar_file:
            texts = [member for member in tar_file if member.name.endswith(".txt")]
            tar_file.extractall(cache / "root" / name, members=texts, filter="data")


def versions(cache: Path) -> list[tuple[str, str]]:
    """Name and version of every package in the cache."""
    found = []
    for name in PACKAGES:
        archive = next((cache / "debs").glob(f"{name}_*.deb"))
        found.append((name, archive.name.split("_")[1].replace("%3a", ":")))
    return found
