"""The confusion matrix as a picture: an SVG that browsers and editors show, and that a page may hold.

        told   bad  good
bad            41     9        each row is a label, and how its rows were told; the darker the larger its share of the row
good            3    57
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from plait.errors import UserError

CELL, LINE, CHARACTER = 46, 18, 7.5
"""Of a cell's side, a line of text, and a character's width, in pixels."""
LONGEST = 24
"""Characters of a label that are shown."""


def draw(labels: Sequence[str], confusion: Sequence[Sequence[int]], title: str) -> str:
    """confusion: [right][told]."""
    names = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in labels]
    margin = round(max(map(len, names)) * CHARACTER * 1.3) + 30
    top, side = margin + 2 * LINE, CELL * len(names)
    width, height = margin + side + 10, top + side + 10
    parts = [*_cells(confusion, margin, top), *_names(names, margin, top)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="13">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="10" y="{LINE}" font-weight="bold">{escape(title)}</text>\n'
        f'<text x="10" y="{2 * LINE}" fill="#555">rows: right, columns: told</text>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def save(path: Path, picture: str) -> None:
    """Raises UserError: it cannot be written."""
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--confusion {path}: cannot be written: {error.strerror}") from None


def _cells(confusion: Sequence[Sequence[int]], left: int, top: int) -> Iterator[str]:
    for row, counts in enumerate(confusion):
        for column, count in enumerate(counts):
            share = count / (sum(counts) or 1)
            x, y = left + CELL * column, top + CELL * row
            edge = ' stroke="#111" stroke-width="1.5"' if row == column else ' stroke="#ccc"'
            ink = "#fff" if share > 0.55 else "#111"
            yield f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{_shade(share)}"{edge}/>'
            yield f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2 + 5:g}" text-anchor="middle" fill="{ink}">{count}</text>'


def _names(names: Sequence[str], left: int, top: int) -> Iterator[str]:
    for number, name in enumerate(names):
        middle = CELL * number + CELL / 2
        yield f'<text x="{left - 8}" y="{top + middle + 5:g}" text-anchor="end">{escape(name)}</text>'
        x, y = left + middle, top - 8
        yield f'<text x="{x:g}" y="{y}" transform="rotate(-50 {x:g} {y})">{escape(name)}</text>'


def _shade(share: float) -> str:
    """From white to a dark blue."""
    return "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (0x1B, 0x4F, 0x8A))
