"""The support table of docs/storage.md: written by the conformance tests when they run with PLAIT_WRITE_TABLE=1, and compared with what
they see otherwise. Versions are those of the run that wrote it, and may differ elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from plait.store import Store
from plait.store.check import Checked

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
BEGIN, END = "<!-- support -->\n", "<!-- /support -->\n"
OPERATIONS = ["write", "read", "range", "stat", "list", "create", "upload", "delete"]
HEAD = f"| system | server | {' | '.join(OPERATIONS)} |\n|{'---|' * (len(OPERATIONS) + 2)}\n"
ORDER = ["file", "memory", "s3", "gs", "hdfs", "webhdfs", "alluxio", "mongodb", "cassandra", "redis", "memcached", "hf"]


def compare(system: str, server: str, home: Store, checked: list[Checked]) -> None:
    rows = read()
    row = [server, *cells(home, checked)]
    if os.environ.get("PLAIT_WRITE_TABLE"):
        write({**rows, system: row})
    else:
        assert rows.get(system, [])[1:] == row[1:], (
            f"{PAGE.name} tells otherwise of {system}: PLAIT_WRITE_TABLE=1 pytest tests/store writes it"
        )


def cells(home: Store, checked: list[Checked]) -> list[str]:
    """A word for each operation."""
    states = {each.operation: "yes" if each.state == "ok" else "no" for each in checked}
    if not home.conditional:
        states["create"] = "looks first"
    return [states[operation] for operation in OPERATIONS]


def read() -> dict[str, list[str]]:
    _, _, rest = PAGE.read_text().partition(BEGIN)
    lines = rest.partition(END)[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`").removesuffix("://"): row[1:] for row in found}


def write(rows: dict[str, list[str]]) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    lines = [f"| `{system}://` | {' | '.join(rows[system])} |\n" for system in ORDER if system in rows]
    PAGE.write_text(before + BEGIN + HEAD + "".join(lines) + END + rest.partition(END)[2])
