"""What `plait verify` shows: a line as each comparison ends, and what it all means."""

from __future__ import annotations

from plait.proof.layouts import Compared, Report, Tolerance, named

_WIDTH = 36


def heading(tolerance: Tolerance) -> str:
    """Two lines: what the columns are, and what may differ."""
    return "\n".join(
        [
            f"{'layout':<{_WIDTH}}{'loss':>10}{'grad_norm':>12}{'params':>10}",
            f"{'allowed':<{_WIDTH}}{tolerance.loss:>10.0e}{tolerance.grad_norm:>12.0e}{tolerance.params:>10.0e}",
        ]
    )


def line(compared: Compared) -> str:
    """One comparison; where it did not end, its last line of trouble."""
    numbers = f"{compared.loss:>10.1e}{compared.grad_norm:>12.1e}{compared.params:>10.1e}"
    verdict = "" if not compared.layout else "  pass" if compared.ok else "  FAIL"
    why = f"  {compared.why.strip().splitlines()[-1]}" if compared.why else ""
    return f"{named(compared.layout):<{_WIDTH}}{numbers}{verdict}{why}"


def conclusion(report: Report) -> str:
    lines = [f"left out: {layout}: {why}" for layout, why in report.left_out.items()]
    failed = sum(not compared.ok for compared in report.layouts)
    held = f"{len(report.layouts)} layouts draw the curve of one process"
    return "\n".join([*lines, f"{failed} of {len(report.layouts)} layouts do NOT draw the curve of one process" if failed else held])
