"""Writes examples/corpora/verses: the quatrains of the Complete Tang Poems, from the npm package chinese-poetry.
    python -m examples.corpora.verses

Fetches 85 MB into runs/packages, once.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from examples.corpora import packages

SUM = "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"
PART = re.compile(r".*/quantangshi/poet\.tang\.(\d+)\.json$")
FORM = re.compile("|".join("X，X。\nX，X。".replace("X", f"[㐀-鿿]{{{length}}}") for length in (5, 7)))
"""Four lines of five, or four of seven characters, in two sentences."""
Poem = dict[str, str]


def main() -> None:
    archive = packages.npm("chinese-poetry", "2.0.1", SUM)
    quatrains = [poem for poem in poems(archive) if FORM.fullmatch(poem["text"])]
    kept = without_variants(packages.shuffled(quatrains, lambda poem: poem["text"]))
    packages.write("verses", "jsonl", [json.dumps(poem, ensure_ascii=False) for poem in kept], held=500)


def poems(archive: Path) -> Iterator[Poem]:
    """Of Tang poets, in the order of the files that hold them."""
    with tarfile.open(archive) as files:
        parts = {int(name[1]): files.extractfile(name[0]) for name in map(PART.search, files.getnames()) if name}
        for _, part in sorted(parts.items()):
            assert part is not None
            for poem in json.load(part):
                yield {"text": "\n".join(poem["paragraphs"]), "title": poem["title"], "author": poem["author"]}


def without_variants(found: Iterable[Poem]) -> Iterator[Poem]:
    """Of poems that share a line, as versions of one poem do, the first: what is tested shall not have been learned by heart."""
    seen: set[str] = set()
    for poem in found:
        lines = set(re.split(r"\W+", poem["text"])) - {""}
        if not lines & seen:
            yield poem
        seen |= lines


if __name__ == "__main__":
    main()
