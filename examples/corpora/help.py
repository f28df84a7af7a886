"""Writes examples/corpora/help: sentences of LibreOffice's help in English and German, from two Debian packages.

    python -m examples.corpora.help

Fetches 5 MB into runs/packages, once; needs apt-get and dpkg-deb. A page of the help is the same page in every language, and a paragraph
bears the same id there: that is what pairs them.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from html.parser import HTMLParser
from io import BytesIO

from examples.corpora import packages

VERSION = "4:7.4.7-1+deb12u14"
SUMS = {
    "en-US": "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
    "de": "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
}
LONGEST = 80


def main() -> None:
    english, german = (paragraphs(language) for language in SUMS)
    pairs = {source: german[place] for place, source in english.items() if place in german and is_fit(source, german[place])}
    kept = packages.shuffled(pairs.items(), lambda pair: pair[0])
    packages.write("help", "tsv", ["\t".join(pair) for pair in kept], held=500)


def is_fit(source: str, target: str) -> bool:
    """Whether something is translated, and it is not long."""
    words = re.search("[a-z]{2}", source) is not None and source != target
    return words and 3 <= len(source) <= LONGEST and 3 <= len(target) <= 2 * LONGEST


def paragraphs(language: str) -> dict[tuple[str, str], str]:
    """The text of each paragraph and heading, by page and id."""
    package = packages.debian(f"libreoffice-help-{language.lower()}", VERSION, SUMS[language])
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
    found = {}
    with tarfile.open(fileobj=BytesIO(content)) as files:
        for member in sorted(files, key=lambda member: member.name):
            page = re.search(rf"/help/{language}/(text/.*\.html)$", member.name)
            if page is not None and (file := files.extractfile(member)) is not None:
                found |= {(page[1], id_): text for id_, text in Paragraphs(file.read().decode()).found.items()}
    return found


class Paragraphs(HTMLParser):
    """found: the text of each paragraph and heading of a page that has an id, white space folded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._id: str | None = None
        self._text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if re.fullmatch("p|h[1-6]", tag):
            self._id, self._text = dict(attrs).get("id"), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("p|h[1-6]", tag) and self._id is not None:
            self.found.setdefault(self._id, " ".join(self._text.split()))
            self._id = None


if __name__ == "__main__":
    main()
