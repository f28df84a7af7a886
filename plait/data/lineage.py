"""Lineage: how a prepared folder came about, told from its records and its settings."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from plait import spec
from plait.data import sources
from plait.data.cleaning import cleaner
from plait.data.cleaning.rules import SETS
from plait.data.records import KEPT, Lineage, Step

_LIBRARIES = {"repair": "ftfy", cleaner.LANGUAGE: "py3langid", cleaner.NEAR: "rensa"}


def told(data: spec.Data, found: list[sources.Source], rows: np.ndarray, aside: dict[str, Any], version: str) -> Lineage:
    """rows: the records of all documents. aside: counts of what could not be used, and the first of each kind."""
    changes, reasons = (cleaner.changes(data.clean), cleaner.reasons(data.clean)) if data.studied else ([], [])
    read = {"field": data.field, "separator": data.separator, "broken": data.broken}
    steps = [Step(name="read", kind="reads", settings=read, documents=len(rows))]
    steps += [_change(name, bit, data, rows) for bit, name in enumerate(changes)]
    steps += [_drop(name, number, data, rows) for number, name in enumerate(reasons, start=1) if _asked(name, data)]
    split = data.split.model_dump(exclude_defaults=True) or {"validation": data.split.validation, "test": data.split.test}
    steps.append(Step(name="split", kind="reads", settings=split, documents=int((rows["reason"] == KEPT).sum())))
    return Lineage(
        plait=version,
        files=[str(path) for path in sources.paths(found)],
        sources=[source.name for source in found],
        steps=steps,
        changes=changes,
        reasons=reasons,
        broken=aside["counts"],
        first_broken=aside["first"],
    )


def _change(name: str, bit: int, data: spec.Data, rows: np.ndarray) -> Step:
    settings: dict[str, object] = {"form": data.clean.normalize} if data.clean and name == "normalize" else {}
    changed = int(((rows["changed"] >> bit) & 1).sum())
    return Step(name=name, kind="changes", settings=settings, by=_by(name), documents=changed)


def _drop(name: str, number: int, data: spec.Data, rows: np.ndarray) -> Step:
    return Step(name=name, kind="drops", settings=_settings(name, data), by=_by(name), documents=int((rows["reason"] == number).sum()))


def _asked(name: str, data: spec.Data) -> bool:
    clean = data.clean
    if clean is None:
        return name == cleaner.EMPTY
    unasked = {
        cleaner.LANGUAGE: not clean.languages,
        cleaner.EVALUATION: not clean.against,
        cleaner.EXACT: clean.duplicates == "keep",
        cleaner.NEAR: clean.duplicates != "near",
    }
    return not unasked.get(name, False)


def _settings(name: str, data: spec.Data) -> dict[str, object]:
    clean = data.clean
    assert clean is not None or name == cleaner.EMPTY
    if clean is None:
        return {}
    told: dict[str, dict[str, object]] = {
        cleaner.LANGUAGE: {"languages": clean.languages},
        cleaner.EVALUATION: {"against": clean.against, "words": clean.against_words},
        cleaner.EXACT: {"within": clean.within},
        cleaner.NEAR: {"within": clean.within, "similarity": clean.similarity},
    }
    limits = {language: limits.model_dump(exclude_none=True) for language, limits in clean.limits.items()}
    return told.get(name, {"limits": limits} if limits else {})


def _by(name: str) -> str:
    if name in _LIBRARIES:
        return f"{_LIBRARIES[name]} {metadata.version(_LIBRARIES[name])}"
    return next((rule.source for rules in SETS.values() for rule in rules if rule.name == name), "plait")
