"""Rows of Parquet and Arrow files, a batch at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from plait.data import streams
from plait.data.broken import Unusable
from plait.errors import DataError

Columns = Callable[[list[str]], list[str]]
"""Of all columns of a file those to read."""

_BATCH = 1024  # rows
_ARROW = b"ARROW1"


def rows(path: Path, format_: str, columns: Columns, on_read: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Of a "parquet" or an "arrow" file. Raises DataError: no pyarrow. Unusable: a broken file, and what `columns` raises."""
    name = format_.title()
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{path}: reading {name} needs pyarrow: pip install 'plait[parquet]'") from None
    try:
        for some in (_parquet if format_ == "parquet" else _arrow)(path, columns, on_read):
            yield from some
    except (pyarrow.ArrowException, OSError) as error:
        raise Unusable(str(path), f"broken {name}", f"is no {name} file or a broken one: {error}") from None


def _parquet(path: Path, columns: Columns, on_read: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(_bytes(path) if path.suffix in streams.COMPRESSIONS else str(path))
    wanted = columns(table.schema_arrow.names)
    for group in range(table.num_row_groups):
        for batch in table.iter_batches(batch_size=_BATCH, columns=wanted, row_groups=[group]):
            yield batch.to_pylist()
        on_read(path.stat().st_size // table.num_row_groups)


def _arrow(path: Path, columns: Columns, on_read: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    """A stream of record batches, as datasets writes, or a file of them, as Feather is."""
    import pyarrow as pa

    content = pa.BufferReader(_bytes(path).getbuffer()) if path.suffix in streams.COMPRESSIONS else pa.memory_map(str(path))
    batches: Iterable[Any]
    if content.read(len(_ARROW)) == _ARROW:
        file = pa.ipc.open_file(content)
        schema, batches = file.schema, map(file.get_batch, range(file.num_record_batches))
    else:
        content.seek(0)
        schema, batches = (stream := pa.ipc.open_stream(content)).schema, stream
    wanted, read = columns(schema.names), 0
    for batch in batches:
        for first in range(0, batch.num_rows, _BATCH):
            yield batch.select(wanted).slice(first, _BATCH).to_pylist()
        read, before = min(path.stat().st_size, read + batch.nbytes), read
        on_read(read - before)


def _bytes(path: Path) -> io.BytesIO:
    """Tables are read at random places: one that is compressed as a whole is unpacked in memory first."""
    return io.BytesIO(b"".join(streams.read(path)))
