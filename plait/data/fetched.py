"""What comes from elsewhere: files and tables of a corpus, evaluation sets, a tokenizer, a template that URLs name are brought here.

    s3://bucket/books/*.txt.zst        <prepared>/fetched/s3/bucket/books/*.txt.zst
    mongodb://host/db/articles         <prepared>/fetched/mongodb/host/db/articles-<what was asked>.jsonl
    hf://datasets/owner/name/*.parquet ...

From then on a URL is a path like any other. The index of a Megatron token file, NAME.idx, comes with its NAME.bin. A file is fetched again
when its size or version there has changed; a table, which has no version, each time. Files that are there no longer are removed here.
Messages name the URL.

Of a corpus that has been prepared `data.fetched_gib` stay; of the other files their content is let go, and their names, sizes and times are
left: what they are known by. It is fetched again should it be read again, for other settings say.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from plait import spec
from plait.data import labels, parallel
from plait.data.hashes import Hashes
from plait.errors import DataError
from plait.store import Entry, Store, at, documents, durable, is_url
from plait.store.patience import insistently

_KNOWN = "fetched.json"
_HOLLOW = "let go"


def here(data: spec.Data, prepared: Path, whole: bool = False) -> spec.Data:
    """The same settings with paths in place of URLs, and what they name fetched into a folder below `prepared`.

    whole: also what was let go since it was prepared, which else is known by its checksum alone. Raises DataError: nothing that a URL
    names. StorageError, StorageFailed.
    """
    spool = _Spool(prepared / "fetched", [*_read_of_rows(data), *data.needed_fields.values()], Hashes(prepared), whole)
    changes: dict[str, object] = {"corpus": [_entry(entry, spool) for entry in data.corpus]}
    if data.clean is not None and any(map(is_url, data.clean.against)):
        changes["clean"] = data.clean.model_copy(
            update={"against": [spool.path_of(each, "data.clean.against") for each in data.clean.against]}
        )
    if data.chat is not None and data.chat.template is not None:
        changes["chat"] = data.chat.model_copy(update={"template": spool.path_of(data.chat.template, "data.chat.template")})
    if data.tokenizer.file is not None:
        changes["tokenizer"] = tokenizer(data.tokenizer, prepared)
    return data.model_copy(update=changes)


def tokenizer(asked: spec.Tokenizer, prepared: Path) -> spec.Tokenizer:
    """With its file here. Raises DataError, StorageError, StorageFailed."""
    assert asked.file is not None
    spool = _Spool(prepared / "fetched", [], Hashes(prepared), whole=True)
    return asked.model_copy(update={"file": spool.path_of(asked.file, "data.tokenizer.file")})


def bound(data: spec.Data, prepared: Path, files: list[Path]) -> None:
    """Of a corpus that is prepared, let go of the content of those fetched files that are beyond data.fetched_gib."""
    if data.fetched_gib is None:
        return
    held = itertools.accumulate(path.stat().st_size for path in files)
    beyond = [path for path, size in zip(files, held, strict=True) if size > data.fetched_gib * 2**30]
    _Spool(prepared / "fetched", [], Hashes(prepared)).let_go(beyond)


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


def _read_of_rows(data: spec.Data) -> list[str]:
    """Fields of a table that documents are made from."""
    if data.chat is not None and not data.translates:
        return [data.chat.messages, data.chat.prompt, data.chat.answer]
    if not data.translates:
        return labels.fields_of(data)
    sides = [entry.sides for entry in data.corpus if isinstance(entry, spec.Source) and entry.sides is not None]
    return [side.partition(".")[0] for pair in [parallel.FIELDS, *sides] for side in pair]


def _entry(entry: str | spec.Source, spool: _Spool) -> str | spec.Source:
    if isinstance(entry, str):
        return spool.path_of(entry)
    target = None if entry.target is None else spool.path_of(entry.target)
    return entry.model_copy(update={"path": spool.path_of(entry.path), "target": target, "name": entry.name or entry.path})


class _Spool:
    """Where fetched files lie. fields: of a table's rows, those that are asked for. whole: content that was let go is fetched again."""

    def __init__(self, folder: Path, fields: list[str], hashes: Hashes, whole: bool = False) -> None:
        self._folder = folder
        self._fields = list(dict.fromkeys(fields))
        self._hashes, self._whole = hashes, whole

    def path_of(self, pattern: str, setting: str = "data.corpus") -> str:
        """The path or glob that stands for a path, glob or URL of a setting; what it names is fetched."""
        if not is_url(pattern) or pattern.startswith("file://"):
            return pattern.removeprefix("file://")
        if documents.is_documents(pattern):
            return str(self._table(pattern))
        return self._files(pattern, setting)

    def _table(self, url: str) -> Path:
        asked = hashlib.sha256(json.dumps([url, self._fields]).encode()).hexdigest()[:8]
        path = self._local(url.partition("?")[0]).with_name(f"{url.partition('?')[0].rpartition('/')[2]}-{asked}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        documents.download(url, self._fields, path)
        return path

    def _files(self, pattern: str, setting: str) -> str:
        """Bring those that changed, and remove those that are gone."""
        base, wanted = _cut(pattern)
        home = at(base)
        found = insistently(lambda: _matching(home, wanted))
        if not found:
            raise DataError(f"{setting}: {pattern}: {'no file matches it' if glob.has_magic(wanted) else 'there is no such file'}")
        found += self._indices(home, found)
        known = self._known()
        for entry in found:
            path = self._local(home.url(entry.name))
            if not self._stands(path, entry, known.get(str(path))):
                path.parent.mkdir(parents=True, exist_ok=True)
                insistently(lambda: home.download(entry.name, path))  # noqa: B023
                known[str(path)] = [entry.bytes, entry.version]
        self._remember(known)
        home.close()
        self._forget(pattern, {self._local(home.url(entry.name)) for entry in found})
        return str(self._local(pattern))

    def _stands(self, path: Path, entry: Entry, known: list[int | str | None] | None) -> bool:
        """Whether what was fetched before will do."""
        if not path.exists() or entry.version is None or known is None or known[:2] != [entry.bytes, entry.version]:
            return False
        return _HOLLOW not in known or (not self._whole and self._hashes.knows(path))

    def let_go(self, paths: list[Path]) -> None:
        """Noted before it is done: what is cut off in between is fetched again."""
        known = self._known()
        whole = [path for path in paths if str(path) in known and _HOLLOW not in known[str(path)] and self._hashes.knows(path)]
        for path in whole:
            known[str(path)].append(_HOLLOW)
        if whole:
            self._remember(known)
        for path in whole:
            about = path.stat()
            os.truncate(path, 0)
            os.truncate(path, about.st_size)  # a hole
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

    def _indices(self, home: Store, found: list[Entry]) -> list[Entry]:
        """Those that stand beside token files."""
        names = [f"{entry.name.removesuffix('.bin')}.idx" for entry in found if entry.name.endswith(".bin")]
        stats = [insistently(lambda: home.stat(name)) for name in names]  # noqa: B023
        return [entry for entry in stats if entry is not None]

    def _forget(self, pattern: str, stays: set[Path]) -> None:
        """Remove what the pattern names here and no longer there, with its index."""
        local = str(self._local(pattern))
        named = {Path(each) for each in glob.glob(local, recursive=True)}
        for path in (named | {path.with_suffix(".idx") for path in named if path.suffix == ".bin"}) - stays:
            if path.is_file():
                path.unlink()

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
