"""The report of a comparison: one HTML page that needs nothing else, and every figure of it as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from plait.proof.comparison import Comparison
from plait.proof.report.page import page
from plait.proof.report.record import as_dict


def write(comparison: Comparison, out: Path, command: str) -> None:
    """OUT/compare.html and OUT/compare.json. command: what was typed, for others to repeat."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps(as_dict(comparison, command), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "compare.html").write_text(page(comparison, command), encoding="utf-8")
