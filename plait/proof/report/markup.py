"""Text as it may stand in a page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, escaped or not: control characters, and the lone surrogates of file names that are no UTF-8."""


def text(anything: object) -> str:
    """Escaped for text and attributes alike; characters that no page can hold are question marks."""
    return html.escape(_FORBIDDEN.sub("?", str(anything)))


def document(title: str, sections: Iterable[str]) -> str:
    """A page that needs nothing else; it is well-formed XML too."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="color-scheme" content="light dark"/>',
            f"<title>{text(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>",
            *sections,
            "</main></body></html>\n",
        ]
    )
