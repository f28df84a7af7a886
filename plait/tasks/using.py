"""What a trained model is used with: the command that a person is told."""

from __future__ import annotations

from pathlib import Path

from plait import spec

_OF_KINDS = {
    "answer": 'answer {} --question "..." --passage "..."',
    "classify": 'classify {} "..."',
    "regress": 'classify {} "..."',
    "tag": 'classify {} "..."',
    "translate": 'translate {} "..."',
}
_OF_PAIRS = 'classify {} "..." "..."'


def command(run: spec.Run, folder: Path) -> str | None:
    """`plait` with a command and what it wants; None of an encoder without a head for a task, which tells masked tokens alone."""
    objective = run.data.objective
    if objective.kind == "masked":
        return None
    usual = _OF_KINDS.get(objective.kind, 'generate {} --prompt "..."')
    return f"plait {(_OF_PAIRS if objective.pair is not None and objective.labelled else usual).format(folder)}"
