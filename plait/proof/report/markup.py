"""Text as it may stand in a page."""

from __future__ import annotations

import html
import re

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, escaped or not: control characters, and the lone surrogates of file names that are no UTF-8."""


def text(anything: object) -> str:
    """Escaped for text and attributes alike; characters that no page can hold are question marks."""
    return html.escape(_FORBIDDEN.sub("?", str(anything)))
