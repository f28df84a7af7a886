"""Reading a run file, and saying what is wrong with it: the setting, the mistake, and what would be right."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from plait.errors import RunFileError
from plait.spec.fitting import misfit
from plait.spec.run import Run
from plait.spec.section import Section


def load(path: str | Path, overrides: Iterable[str] = ()) -> Run:
    """Read a run file and lay `section.key=value` overrides over it.

    Raises RunFileError: unreadable file, broken TOML, unknown or wrong settings.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFileError(f"{path}: there is no such run file{_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(f"{path}: is not TOML: {error}") from None
    for override in overrides:
        _lay_over(table, override)
    return parse(table, str(path))


def parse(table: Mapping[str, Any], origin: str = "run") -> Run:
    """The `Run` of a table of plain data. Raises RunFileError, naming each wrong setting."""
    try:
        run = Run.model_validate(dict(table))
    except pydantic.ValidationError as error:
        raise RunFileError("\n".join(_explain(origin, detail) for detail in _telling(error))) from None
    if run.settled and (wrong := misfit(run.layout, run.model, run.data.sequence)):
        raise RunFileError(f"{origin}: {wrong}")
    return run


def schema() -> dict[str, Any]:
    """The run file's JSON Schema, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "plait run file", **Run.model_json_schema(by_alias=True)}


def _nearby(path: Path) -> str:
    files = sorted(str(other) for other in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), files, n=1) or files[:1]
    return f"; did you mean {close[0]}?" if close else ""


def _lay_over(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not parents or not all(parents) or not last:
        raise RunFileError(f"{override!r} is no override; write section.key=value, for example train.optimizer.lr=3e-4")
    here = table
    for parent in parents:
        inner = here.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RunFileError(f"{override!r}: {parent} is a value, not a table")
        here = inner
    here[last] = _value(text.strip())


def _value(text: str) -> Any:
    """A TOML value; what is not one is taken as a string, so that quotes may be left out on the command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _telling(error: pydantic.ValidationError) -> list[Any]:
    """The errors worth reading: of a union's branches, the one that came closest."""
    details = error.errors(include_url=False)
    unions: dict[tuple[Any, ...], list[Any]] = {}
    for detail in details:
        place = tuple(part for part in detail["loc"] if not _is_branch(part))
        unions.setdefault(place, []).append(detail)
    return [_closest(group) for group in unions.values()]


def _closest(group: list[Any]) -> Any:
    return next((detail for detail in group if not detail["type"].endswith("_type")), group[0])


def _is_branch(part: Any) -> bool:
    """pydantic puts the name of a union's branch into the path: it names no setting."""
    return isinstance(part, str) and (part in ("int", "str", "float", "Source", "constrained-int") or "[" in part)


def _explain(origin: str, detail: Any) -> str:
    place = [part for part in detail["loc"] if not _is_branch(part)]
    where = ".".join(str(part) for part in place) or "run"
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {where}: unknown setting{_suggestion(place)}"
    if detail["type"] == "missing":
        return f"{origin}: {where}: is missing"
    message = detail["msg"].removeprefix("Value error, ")
    given = (
        "" if isinstance(detail["input"], dict) or detail["type"] == "value_error" else f", not {json.dumps(detail['input'], default=str)}"
    )
    return f"{origin}: {where}: {message[0].lower() + message[1:]}{given}"


def _suggestion(place: list[Any]) -> str:
    known = _known_keys(place[:-1])
    close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {'.'.join([*map(str, place[:-1]), close[0]])}?" if close else f"; known here: {', '.join(known)}"


def _known_keys(parents: list[Any]) -> list[str]:
    section: Any = Run
    for parent in parents:
        if isinstance(parent, int):
            continue
        section = _section_of(section.model_fields[parent].annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = [section for inner in getattr(annotation, "__args__", ()) if (section := _section_of(inner)) is not None]
    return found[0] if found else None
