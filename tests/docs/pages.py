"""README and docs as tests see them: fenced blocks, and the commands and outputs in those that show a console."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A command of a page, and the output that stands below it there."""

    command: str
    output: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        if found[1] == language:
            yield found[2]


def shown(page: Path) -> list[Shown]:
    """The `$ ` lines of the page's console blocks, in order; a backslash continues a command on the next line."""
    found = []
    for block in blocks(page, "console"):
        _, *parts = re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)
        found += [Shown(command, output) for command, _, output in (part.partition("\n") for part in parts)]
    return found
