"""A corpus from elsewhere: files and tables that URLs name are brought here before they are read.

    s3://bucket/books/*.txt.zst        <prepared>/fetched/s3/bucket/books/*.txt.zst
    mongodb://host/db/articles         <prepared>/fetched/mongodb/host/db/articles-<what was asked>.jsonl
    hf://datasets/owner/name/*.parquet ...

From then on a URL is a path like any other. A file is fetched again when its size or version there has changed; a table, which has no
version, each time. Files that are there no longer are removed here. Messages name the URL.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from plait import spec
from plait.errors import DataError
from plait.store import Entry, Store, at, documents, durable, is_url
from plait.store.patience import insistently

_KNOWN = "fetched.json"


def here(data: spec.Data, prepared: Path) -> spec.Data:
    """The same settings with paths in place of URLs, and what they name fetched into a folder below `prepared`.

    Raises DataError: nothing that a URL names. StorageError, StorageFailed.
    """
    spool = _Spool(prepared / "fetched", [data.field, *data.needed_fields.values()])
    changes: dict[str, object] = {"corpus": [_entry(entry, spool) for entry in data.corpus]}
    if data.clean is not None and any(map(is_url, data.clean.against)):
        changes["clean"] = data.clean.model_copy(update={"against": [spool.path_of(each) for each in data.clean.against]})
    return data.model_copy(update=changes)


@contextlib.contextmanager
def named(prepared: Path) -> Iterator[None]:
    """Mistakes in what was fetched are told by its URL."""
    spool = re.escape(f"{prepared / 'fetched'}/")
    try:
        yield
    except DataError as error:
        if (message := re.sub(rf"{spool}(\w+)/", r"\1://", str(error))) != str(error):
            raise DataError(message) from None
        raise


def _entry(entry: str | spec.Source, spool: _Spool) -> str | spec.Source:
    if isinstance(entry, str):
        return spool.path_of(entry)
    return entry.model_copy(update={"path": spool.path_of(entry.path), "name": entry.name or entry.path})


class _Spool:
    """Where fetched files lie. fields: of a table's rows, those that are asked for."""

    def __init__(self, folder: Path, fields: list[str]) -> None:
        self._folder = folder
        self._fields = list(dict.fromkeys(fields))

    def path_of(self, pattern: str) -> str:
        """The path or glob that stands for a path, glob or URL; what it names is fetched."""
        if not is_url(pattern) or pattern.startswith("file://"):
            return pattern.removeprefix("file://")
        if documents.is_documents(pattern):
            return str(self._table(pattern))
        return self._files(pattern)

    def _table(self, url: str) -> Path:
        asked = hashlib.sha256(json.dumps([url, self._fields]).encode()).hexdigest()[:8]
        path = self._local(url.partition("?")[0]).with_name(f"{url.partition('?')[0].rpartition('/')[2]}-{asked}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        documents.download(url, self._fields, path)
        return path

    def _files(self, pattern: str) -> str:
        """Bring those that changed, and remove those that are gone."""
        base, wanted = _cut(pattern)
        home = at(base)
        found = insistently(lambda: _matching(home, wanted))
        if not found:
            raise DataError(f"data.corpus: {pattern}: {'no file matches it' if glob.has_magic(wanted) else 'there is no such file'}")
        known = self._known()
        for entry in found:
            path = self._local(home.url(entry.name))
            if not path.exists() or entry.version is None or known.get(str(path)) != [entry.bytes, entry.version]:
                path.parent.mkdir(parents=True, exist_ok=True)
                insistently(lambda: home.download(entry.name, path))  # noqa: B023
                known[str(path)] = [entry.bytes, entry.version]
        self._remember(known)
        home.close()
        local = str(self._local(pattern))
        for path in {Path(each) for each in glob.glob(local, recursive=True)} - {self._local(home.url(entry.name)) for entry in found}:
            if path.is_file():
                path.unlink()
        return local

    def _local(self, url: str) -> Path:
        scheme, _, rest = url.partition("://")
        return self._folder / scheme / rest

    def _known(self) -> dict[str, list[int | str | None]]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self._folder / _KNOWN).read_bytes()))
        return {}

    def _remember(self, known: dict[str, list[int | str | None]]) -> None:
        with durable.writing(self._folder / _KNOWN) as file:
            file.write(json.dumps(known, indent=0).encode())


def _cut(pattern: str) -> tuple[str, str]:
    """The URL of the folder that a pattern begins in, and the rest: s3://b/a/, *.txt."""
    plain = pattern[: next((place for place, letter in enumerate(pattern) if letter in "*?["), len(pattern))]
    base = plain.rpartition("/")[0]
    return base, pattern[len(base) + 1 :]


def _matching(home: Store, wanted: str) -> list[Entry]:
    if not glob.has_magic(wanted):
        entry = home.stat(wanted)
        return [] if entry is None else [entry]
    shape = re.compile(_regex(wanted))
    return [entry for entry in home.entries() if shape.fullmatch(entry.name)]


def _regex(pattern: str) -> str:
    """As glob reads it: ** goes through folders, * and ? stay inside one."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]*\])", pattern)
    meanings = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meanings.get(part) or (part.replace("[!", "[^") if part.startswith("[") else re.escape(part)) for part in parts)
