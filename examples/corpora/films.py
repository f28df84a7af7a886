"""Writes runs/corpora/films: English sentences of film reviews, each praise or blame, from the Python package vaderSentiment.

    python -m examples.corpora.films

Fetches 2 MB into runs/packages, once. The package is under the MIT licence, and the sentences are critics', from Rotten Tomatoes: whose
rights they are is not told, so that plait fetches them for who wants to try, and ships none. Labels are the sign of the mean of twenty
people's ratings (Hutto, Gilbert 2014).
"""

from __future__ import annotations

import json
import tarfile

from examples.corpora import packages

FOLDER = packages.FOLDER.parent / "corpora" / "films"
INSIDE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATED = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def main() -> None:
    package = packages.pypi("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
    with tarfile.open(package) as files, tarfile.open(fileobj=files.extractfile(INSIDE)) as archive:
        rated = archive.extractfile(RATED)
        assert rated is not None
        rows = reviews(rated.read().decode("utf-8", "replace"))
    kept = packages.shuffled(rows.items(), lambda row: row[0])
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in kept]
    packages.write("films", "jsonl", lines, held=1000, folder=FOLDER)


def reviews(table: str) -> dict[str, str]:
    """Texts and their labels: columns are a number, the mean of the ratings and the text. Those that are neither praise nor blame are left
    out."""
    columns = (line.split("\t", 2) for line in table.splitlines())
    rated = {" ".join(text.split()): float(mean) for _, mean, text in columns}
    return {text: "positive" if mean > 0 else "negative" for text, mean in rated.items() if mean}


if __name__ == "__main__":
    main()
