"""Writes what pages take from the code: the tables of run_file.md and events.md, and run.schema.json.

    .venv/bin/python docs/reference.py

tests/docs/test_reference.py fails where a page is no longer what this writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait import events, spec
from plait.data.cleaning import languages
from plait.data.cleaning.rules import INFINITY, SETS

DOCS = Path(__file__).parent
BEGIN, END = "<!-- written by docs/reference.py: begin -->", "<!-- written by docs/reference.py: end -->"


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """Each page that is taken from the code, as it should be."""
    return {
        DOCS / "run.schema.json": json.dumps(spec.schema(), indent=2) + "\n",
        DOCS / "run_file.md": _with_tables(DOCS / "run_file.md", "\n".join(_settings())),
        DOCS / "cleaning.md": _with_tables(DOCS / "cleaning.md", "\n".join(_rules())),
        DOCS / "events.md": _with_tables(DOCS / "events.md", "\n".join(_events())),
    }


def _with_tables(path: Path, tables: str) -> str:
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{rest.split(END)[1]}"


# --- rules of cleaning -----------------------------------------------------------------------------------------


def _rules() -> Iterator[str]:
    english, chinese = languages.bounds({})("en"), languages.bounds({})("zh")
    yield "| set | rule | English | Chinese | source |\n|---|---|---|---|---|"
    for name, rules in SETS.items():
        for rule in rules:
            yield f"| `{name}` | {rule.name} | {_allowed(rule.allowed(english))} | {_allowed(rule.allowed(chinese))} | {rule.source} |"
    yield ""


def _allowed(allowed: tuple[float, float] | None) -> str:
    if allowed is None:
        return "-"
    least, most = allowed
    if most == INFINITY:
        return f"at least {least:g}"
    return f"{least:,g} to {most:,.0f}" if least else f"at most {most:g}"


# --- the run file ----------------------------------------------------------------------------------------------


def _settings() -> Iterator[str]:
    schema = spec.schema()
    for name, section in schema["properties"].items():
        yield from _section(name, next(_tables_in(section, schema)), schema)


def _section(path: str, section: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    about = section.get("description", "").split("\n\n")[0]
    yield f"### {path}\n\n{about}\n" if about else f"### {path}\n"
    yield "| setting | type | left out | what | on resume |\n|---|---|---|---|---|"
    required = section.get("required", [])
    inner: list[tuple[str, dict[str, Any]]] = []
    for name, setting in section["properties"].items():
        dotted = f"{path}.{name}"
        inner += [(dotted, found) for found in _tables_in(setting, schema)]
        about = setting.get("description", "").replace("|", "\\|")
        yield f"| `{name}` | {_type(setting, schema)} | {_default(name, setting, required)} | {about} | {_on_resume(dotted)} |"
    yield ""
    for dotted, found in inner:
        yield from _section(dotted, found, schema)


def _tables_in(setting: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tables that a setting may be, or be a list of."""
    part = setting.get("items", setting)
    for branch in part.get("anyOf", []):
        yield from _tables_in(branch, schema)
    if "properties" in (found := _definition(schema, part)):
        yield found


def _definition(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def _type(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """A setting's type in words; null is how the schema says that it may be left out."""
    if "anyOf" in part:
        return " or ".join(_type(branch, schema) for branch in part["anyOf"] if branch.get("type") != "null")
    if part.get("$ref", "").endswith("/Duration"):
        return "duration"
    if "$ref" in part:
        return "table"
    if "enum" in part or "const" in part:
        return ", ".join(f"`{json.dumps(value)}`" for value in part.get("enum", [part.get("const")]))
    if part["type"] == "array":
        items = part.get("items") or part["prefixItems"][0]
        return f"list of {_type(items, schema)}"
    words = {"integer": "integer", "number": "number", "boolean": "boolean", "string": "string", "object": "table"}
    return words[part["type"]] + _bounds(part)


def _bounds(part: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {part[key]:g}" for key, sign in signs.items() if key in part]
    return " " + ", ".join(found) if found else ""


def _default(name: str, setting: dict[str, Any], required: list[str]) -> str:
    default = setting.get("default")
    if name in required:
        return "**needed**"
    if isinstance(default, dict):
        return "see below"
    return "" if default is None else f"`{json.dumps(default)}`"


def _on_resume(dotted: str) -> str:
    return "must stay" if spec.shapes_curve(dotted) else "may change"


# --- events ----------------------------------------------------------------------------------------------------


def _events() -> Iterator[str]:
    for kind in events.KINDS:
        own = [field for field in dataclasses.fields(kind) if field.name != "time"]
        yield f"### {kind.__name__}\n\n{_paragraph(kind)}\n\n| field | type |\n|---|---|"
        yield from (f"| `{field.name}` | {_json_type(str(field.type))} |" for field in own)
        yield ""


def _paragraph(kind: type) -> str:
    """The docstring, with names of fields that it explains as code."""
    text = inspect.cleandoc(kind.__doc__ or "").replace("\n", " ").replace("  ", "\n\n")
    for field in dataclasses.fields(kind):
        text = re.sub(rf"(?<![\w`]){field.name}(?=: |, \w+: )", f"`{field.name}`", text)
    return text


def _json_type(annotation: str) -> str:
    words = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "None": "null"}
    words |= {
        "Ranges": "list of [first, end)",
        "Load": "list of lists of integers",
        "list[int]": "list of integers",
        "list[str]": "list of strings",
    }
    if match := re.fullmatch(r"dict\[str, (\w+)\]", annotation):
        return f"object: replica to {words[match[1]]}"
    return " or ".join(words[part.strip()] for part in annotation.split("|"))


if __name__ == "__main__":
    main()
