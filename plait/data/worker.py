"""The processes that train a tokenizer and tokenise, and how they are asked.

    parent                                   python -m plait.data.worker (one a core)
      Workers.train(texts)     -- stdin -->  bpe.train                        all cores, in one worker
      Workers.study(chunk)     -- stdin -->  cleaning.study.write             one core each
      Workers.write(chunk)     -- stdin -->  pieces.write                     one core each
                              <-- stdout --  {"documents": .., "tokens": ..}  or {"error": ..}

Plain subprocesses and frames of bytes, not multiprocessing: a user's script is never imported a second time, so it needs
no `if __name__ == "__main__"`; and the threads of the tokenizers library stay out of the parent, which may fork later.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from plait import spec
from plait.data import bpe, pieces, records, tokenizer
from plait.data.chat import ConversationEncoder
from plait.data.chunks import Chunk
from plait.data.labels import Documents
from plait.data.parallel import PairEncoder
from plait.errors import DataError, WorkerFailed

Talk = tuple[spec.Chat, str]
"""How conversations are read: the settings, and the template."""
Read = Talk | spec.Objective | None
"""How documents are that are conversations, pairs, or have something told of them; plain texts when None."""

_LENGTH = struct.Struct("<Q")
_PACKAGE = Path(__file__).parents[2]


class Workers:
    """Some processes, each busy with one chunk at a time."""

    def __init__(self, count: int) -> None:
        self._processes = [_start() for _ in range(count)]
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="plait-prepare")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def train(self, texts: Iterable[list[str]], size: int, special: list[str]) -> str:
        """The tokenizer.json of a byte-level BPE. Raises DataError: the corpus cannot give that many entries."""
        process = self._free.get()
        try:
            _send(process, {"do": "train", "size": size, "special": special})
            for some in texts:
                _send_texts(process, some)
            _send_texts(process, [])
            return str(_answer(process)["json"])
        finally:
            self._free.put(process)

    def write(self, folder: Path, chunk: Chunk, stored: Path, pattern: str | None, read: Read = None) -> Future[pieces.Done]:
        """Tokenise a chunk to its piece; the future raises OSError, DataError or WorkerFailed."""
        talk = [read[0].model_dump(), read[1]] if isinstance(read, tuple) else None
        told = read.model_dump() if isinstance(read, spec.Objective) else None
        request = {"do": "write", "folder": str(folder), "tokenizer": str(stored), "pattern": pattern, "talk": talk, "objective": told}
        return self._threads.submit(self._written, request, chunk)

    def study(self, folder: Path, chunk: Chunk, data: spec.Data, evaluation: Path) -> Future[dict[str, Any]]:
        """Clean a chunk; the future raises DataError, OSError or WorkerFailed."""
        request = {"do": "study", "folder": str(folder), "data": data.model_dump_json(), "evaluation": str(evaluation)}
        return self._threads.submit(self._asked, request, chunk)

    def _written(self, request: dict[str, Any], chunk: Chunk) -> pieces.Done:
        return pieces.Done(**self._asked(request, chunk))

    def _asked(self, request: dict[str, Any], chunk: Chunk) -> dict[str, Any]:
        process = self._free.get()
        try:
            send_chunk(process, request, chunk)
            return _answer(process)
        finally:
            self._free.put(process)


def send_chunk(process: Any, request: dict[str, Any], chunk: Chunk) -> None:
    """A request about a chunk, and the chunk: what is small as JSON, then texts, records and numbers."""
    about = {"number": chunk.number, "source": chunk.source, "read": chunk.read, "fields": chunk.fields, "numeric": chunk.numbers.shape[1]}
    _send(process, {**request, **about})
    _send_texts(process, chunk.texts)
    _send_bytes(process, chunk.records.tobytes())
    _send_bytes(process, chunk.numbers.tobytes())


def main() -> None:
    """A worker's life: a request, its texts, an answer, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(BrokenPipeError, EOFError):  # the parent died: what is written stands, half a request is no request
        while True:
            answer = _answer_to(json.loads(_receive(requests)), requests)
            _frame(answers, json.dumps(answer).encode())


def _answer_to(request: dict[str, Any], requests: BinaryIO) -> dict[str, Any]:
    try:
        return _DOING[request["do"]](request, requests)
    except DataError as error:
        return {"error": str(error), "errno": None}
    except OSError as error:
        return {"error": error.strerror or str(error), "errno": error.errno}


def _train(request: dict[str, Any], requests: BinaryIO) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = (text for some in iter(lambda: _texts(requests), []) for text in some)
    return {"json": bpe.train(texts, request["size"], request["special"])}


def _tokenise(request: dict[str, Any], requests: BinaryIO) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    chunk = _chunk(request, requests)
    engine, talk = _loaded(request["tokenizer"], request["pattern"]), request["talk"]
    told = None if request["objective"] is None else spec.Objective(**request["objective"])
    pairs = PairEncoder(engine) if told is not None and told.kind == "translate" else None
    encoder = pairs if talk is None else ConversationEncoder(spec.Chat(**talk[0]), talk[1], engine)
    labelled = Documents(told, engine) if told is not None and told.labelled else None
    done = pieces.write(Path(request["folder"]), chunk, engine, encoder, labelled)
    return {"documents": done.documents, "tokens": done.tokens}


def _study(request: dict[str, Any], requests: BinaryIO) -> dict[str, Any]:
    from plait.data.cleaning import study

    chunk = _chunk(request, requests)
    asked = request["data"], request["evaluation"]
    if asked not in _cleaners:
        data = spec.Data.model_validate_json(request["data"])
        _cleaners[asked] = data, study.cleaner_of(data, Path(request["evaluation"]))
    data, cleaner = _cleaners[asked]
    study.write(Path(request["folder"]), chunk, cleaner, data)
    return {}


_DOING = {"train": _train, "write": _tokenise, "study": _study}
_cleaners: dict[tuple[str, str], tuple[spec.Data, Any]] = {}


def _chunk(request: dict[str, Any], requests: BinaryIO) -> Chunk:
    texts = _texts(requests)
    rows = np.frombuffer(_receive(requests), dtype=records.RECORD)
    numbers = np.frombuffer(_receive(requests), dtype=np.float64).reshape(len(texts), request["numeric"])
    return Chunk(request["number"], request["source"], texts, request["read"], rows, request["fields"], numbers)


_engines: dict[tuple[str, str | None], tokenizer.Tokenizer] = {}


def _loaded(path: str, pattern: str | None) -> tokenizer.Tokenizer:
    if (path, pattern) not in _engines:
        _engines[path, pattern] = tokenizer.load(Path(path), pattern)
    return _engines[path, pattern]


def _start() -> subprocess.Popen[bytes]:
    """A worker that finds this very package, and nothing that merely lies in the current folder."""
    paths = [str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", "-m", "plait.data.worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _send(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        _frame(process.stdin, json.dumps(request).encode())
    except BrokenPipeError:
        raise _died(process) from None


def _send_texts(process: subprocess.Popen[bytes], texts: list[str]) -> None:
    assert process.stdin is not None
    encoded = [text.encode() for text in texts]
    try:
        _frame(process.stdin, struct.pack(f"<{len(encoded)}Q", *map(len, encoded)))
        _frame(process.stdin, b"".join(encoded))
    except BrokenPipeError:
        raise _died(process) from None


def _send_bytes(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    try:
        _frame(process.stdin, content)
    except BrokenPipeError:
        raise _died(process) from None


def _answer(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        frame = _receive(process.stdout)
    except EOFError:
        raise _died(process) from None
    return _checked(json.loads(frame))


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer that is an error is raised as what it was there."""
    if "error" not in answer:
        return answer
    if answer["errno"] is None:
        raise DataError(answer["error"])
    raise OSError(answer["errno"], answer["error"])


def _died(process: subprocess.Popen[bytes]) -> WorkerFailed:
    code = process.wait()
    why = f"was killed by signal {-code}; is memory short?" if code < 0 else f"ended with code {code}; its error is above"
    return WorkerFailed(f"a process that prepares data (pid {process.pid}) {why} What it had finished is kept: run again to go on.")


def _frame(stream: Any, content: bytes) -> None:
    stream.write(_LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream: Any) -> bytes:
    """A whole frame. Raises EOFError: the other side ended, in the middle of it or before."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    return _exactly(stream, length)


def _exactly(stream: Any, count: int) -> bytes:
    content: bytes = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content


def _texts(stream: BinaryIO) -> list[str]:
    return list(_cut(stream))


def _cut(stream: BinaryIO) -> Iterator[str]:
    lengths, content = _receive(stream), _receive(stream)
    start = 0
    for (length,) in _LENGTH.iter_unpack(lengths):
        yield content[start : start + length].decode()
        start += length


if __name__ == "__main__":
    main()
