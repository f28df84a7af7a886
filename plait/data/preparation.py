"""One corpus on its way to a folder: read, studied if that is asked for, tokenised, written.

    files ─ documents ─┬──────────────────────────────────────────────┬─ tokenizer ─ pieces ─ token files, documents.npy, manifest.json
                       └─ cleaned in chunks ─ compared with each other ┘
                          (cleaning/study.py)

Whatever stands in the folder's `.making` is done already: each file there is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from plait import spec
from plait.data import (
    beside,
    binary,
    broken,
    chat,
    chunks,
    labels,
    manifest,
    pieces,
    records,
    sources,
    splits,
    tokenizer,
    vocabulary,
)
from plait.data.broken import Aside
from plait.data.chunks import Chunk, Taken
from plait.data.cleaning import cleaner, study
from plait.data.progress import Listener, Progress, Stage
from plait.data.sources import Document, Source, SourceFile
from plait.data.splits import SPLITS
from plait.data.tokenizer import Tokenizer
from plait.data.worker import Read, Workers
from plait.errors import DataError
from plait.store import durable

TRAINING_BYTES = 1 << 30  # a tokenizer learns no more from more text than this
EVALUATION = "evaluation.npy"
Answer = TypeVar("Answer")


class Preparation:
    """From sources to a folder of token files; cut off, it goes on where it was."""

    def __init__(self, data: spec.Data, found: list[Source], folder: Path, listener: Listener) -> None:
        self._data = data
        self._sources = found
        self._folder = folder
        self._making = folder.with_name(f"{folder.name}.making")
        self._pieces = self._making / "pieces"
        self._listener = listener
        self._total = sources.size(found)
        self._documents = 0
        self._tokens = 0
        self._loaded: Tokenizer | None = None

    def run(self, unchanged: Callable[[], bool]) -> None:
        """unchanged: whether the sources are what the folder's name says, asked once they have been read. Raises DataError."""
        self._pieces.mkdir(parents=True, exist_ok=True)
        for cut_short in self._making.glob("**/*.part"):
            cut_short.unlink()
        if not (self._making / manifest.MANIFEST).exists():
            if self._data.studied:
                cleaner.check_installed(self._data.clean, study.similarity(self._data) is not None)
            with Workers(self._processes()) as workers:
                if self._data.studied:
                    self._study(workers)
                stored = self._tokenizer(workers)
                numbers = self._tokenise(workers, stored)
            if not unchanged():
                shutil.rmtree(self._making)
                raise DataError("data.corpus: a file changed while it was being prepared; run again once it is at rest")
            self._write(stored, numbers)
        shutil.rmtree(self._pieces)
        (self._making / broken.ACCOUNT).unlink(missing_ok=True)
        durable.rename(self._making, self._folder)

    def _processes(self) -> int:
        """No more than there is work for: a worker takes longer to start than a small chunk to tokenise."""
        cores = self._data.workers or len(os.sched_getaffinity(0))
        return max(1, min(cores, math.ceil(self._total / chunks.SMALLEST)))

    # --- documents -------------------------------------------------------------------------------------------------

    def _read(self, aside: Aside) -> Iterator[Taken]:
        """Every document of the corpus with its record, and the split that content or a field tell."""
        read = 0
        number = 0

        def on_read(count: int) -> None:
            nonlocal read
            read += count

        for index, source in enumerate(self._sources):
            for file in source.files:
                if file.format == "bin":
                    yield from self._of_tokens(index, number, file, read, aside)
                    read += file.path.stat().st_size
                else:
                    for document in sources.documents(file, self._data, on_read, aside):
                        yield self._taken(index, number, document, read, file.split)
                number += 1

    def _of_tokens(self, source: int, number: int, file: SourceFile, read: int, aside: Aside) -> Iterator[Taken]:
        """The documents of a file that another program has tokenised."""
        engine = self._engine()
        size = engine.vocabulary
        for document in binary.documents(file.path, engine.end_of_text, size):
            if isinstance(document, broken.Unusable):
                aside(document)
                continue
            record = records.blank(1)[0]
            identity = records.identity_of(document.ids.tobytes())
            record["id"], record["place"], record["file"], record["source"] = identity, document.place, number, source
            record["split"] = self._split(identity, source, {}, file.split)
            yield Taken(source, "", record, {}, read, document.ids)

    def _engine(self) -> Tokenizer:
        assert self._data.tokenizer.file is not None
        if self._loaded is None:
            self._loaded = tokenizer.load(Path(self._data.tokenizer.file), self._data.tokenizer.pattern)
        return self._loaded

    def _split(self, content: int, source: int, fields: dict[str, Any], told: str | None) -> int:
        if told is not None:
            return splits.SPLITS.index(told)
        if self._data.studied and self._data.split.by is None:
            return splits.UNTOLD
        return splits.of(content, self._sources[source].name, fields, self._data.split)

    def _taken(self, source: int, file: int, document: Document, read: int, told: str | None) -> Taken:
        record = records.blank(1)[0]
        identity = records.identity(document.text)
        length = len(document.text)
        record["id"], record["place"], record["file"], record["source"] = identity, document.place, file, source
        record["before"] = record["after"] = length
        record["split"] = self._split(records.identity(document.key or document.text), source, document.fields, told)
        return Taken(source, document.text, record, document.fields, read)

    def _chunks(self) -> Iterator[Chunk]:
        """What is tokenised: the corpus in chunks, or the chunks as they were studied."""
        if self._data.studied:
            yield from self._studied()
            return
        with broken.Account(self._making, self._data.broken) as aside:
            yield from chunks.cut(self._read(aside), self._total, self._data.numbers)

    def _studied(self) -> Iterator[Chunk]:
        decided = np.load(self._pieces / study.DECIDED, mmap_mode="r", allow_pickle=False)
        first = 0
        for number in range(len(list(self._pieces.glob("*.study.npz")))):
            studied = study.read(self._pieces, number)
            rows = np.array(decided[first : first + len(studied.records)])
            first += len(rows)
            stayed = (rows["reason"] == records.KEPT)[studied.records["reason"] == records.KEPT]
            texts = [text for text, stays in zip(studied.texts, stayed, strict=True) if stays]
            fields = [each for each, stays in zip(studied.fields, stayed, strict=True) if stays]
            source = int(rows["source"][0])
            read = self._total * first // max(1, len(decided))
            yield Chunk(number, source, texts, read, rows, fields, chunks.numbers_of(fields, self._data.numbers))

    # --- cleaning --------------------------------------------------------------------------------------------------

    def _study(self, workers: Workers) -> None:
        if (self._pieces / study.DECIDED).exists():
            return
        self._tell("cleaning", 0)
        evaluation = self._evaluation()
        numbers: list[list[int]] = [[] for _ in self._sources]
        with broken.Account(self._making, self._data.broken) as aside:
            self._in_parallel(
                _noted(chunks.cut(self._read(aside), self._total, self._data.numbers), numbers),
                lambda chunk: study.path_of(self._pieces, chunk.number).exists(),
                lambda chunk: workers.study(self._pieces, chunk, self._data, evaluation),
                lambda chunk, answer: self._tell("cleaning", chunk.read),
            )
        if not any(numbers):
            raise self._empty()
        self._tell("comparing", self._total)
        study.decide(self._pieces, [number for mine in numbers for number in mine], self._data)

    def _evaluation(self) -> Path:
        """The word sequences of the evaluation sets, in a file for workers."""
        path = self._pieces / EVALUATION
        clean = self._data.clean
        if clean is not None and clean.against and not path.exists():
            texts = [document.text for file in sources.files(clean.against) for document in sources.documents(file, self._data_of_texts())]
            pieces.store(path, cleaner.evaluation_grams(texts, clean.against_words))
        return path

    def _data_of_texts(self) -> spec.Data:
        """Settings to read texts by, of which nothing else is asked."""
        return self._data.model_copy(update={"split": spec.Splits(), "numeric": [], "objective": spec.Objective()})

    def _in_parallel(
        self,
        cut: Iterator[Chunk],
        stands: Callable[[Chunk], bool],
        start: Callable[[Chunk], Future[Answer]],
        settle: Callable[[Chunk, Answer | None], None],
    ) -> None:
        """Work on chunks, a few at a time; those that stand already are settled at once, without an answer, before any other."""
        waiting: deque[tuple[Chunk, Future[Answer]]] = deque()

        def settle_first() -> None:
            chunk, future = waiting.popleft()
            settle(chunk, future.result())

        for chunk in cut:
            if stands(chunk):
                settle(chunk, None)
                continue
            waiting.append((chunk, start(chunk)))
            if len(waiting) > 2 * self._processes():
                settle_first()
        while waiting:
            settle_first()

    # --- tokens ----------------------------------------------------------------------------------------------------

    def _tokenizer(self, workers: Workers) -> Path:
        """The tokenizer's file in the folder: copied there, or trained on the training split."""
        asked = self._data.tokenizer
        if asked.file is not None:
            source = Path(asked.file)
            stored = self._making / f"tokenizer{source.suffix}"
            tokenizer.load(source, asked.pattern)
            with durable.writing(stored) as file:
                file.write(source.read_bytes())
            return stored
        stored = self._making / "tokenizer.json"
        if not stored.exists():
            assert asked.train is not None
            trained = workers.train(self._training_texts(), asked.train, vocabulary.special_tokens(self._data.objective))
            with durable.writing(stored) as file:
                file.write(trained.encode())
        return stored

    def _training_texts(self) -> Iterator[list[str]]:
        """Documents of the training split; of a very large corpus an even sample."""
        share = min(1.0, TRAINING_BYTES / max(1, self._total))
        held, texts, taken, empty = 0, [], 0.0, True
        for document, split, read in self._texts():
            empty = False
            text = self._spoken(document)
            if split != splits.TRAIN:
                continue
            taken += share
            if taken < 1:
                continue
            taken -= 1
            texts.append(text)
            held += len(text)
            if held >= chunks.SMALLEST:
                self._tell("training the tokenizer", read)
                yield texts
                held, texts = 0, []
        if empty:
            raise self._empty()
        if texts:
            yield texts

    def _texts(self) -> Iterator[tuple[str, int, int]]:
        """The texts that stay, each with its split and how far the corpus was read."""
        if not self._data.studied:
            yield from ((each.text, int(each.record["split"]), each.read) for each in self._read(Aside(self._data.broken)))
            return
        for chunk in self._studied():
            homes = chunk.records["split"][chunk.records["reason"] == records.KEPT].tolist()
            yield from ((text, home, chunk.read) for text, home in zip(chunk.texts, homes, strict=True))

    def _tokenise(self, workers: Workers, stored: Path) -> list[list[int]]:
        """All pieces, those that stand already left alone; returns their numbers by source."""
        numbers: list[list[int]] = [[] for _ in self._sources]

        def settle(chunk: Chunk, done: pieces.Done | None) -> None:
            done = done or pieces.done(self._pieces, chunk.number)
            assert done is not None, chunk.number
            self._documents += done.documents
            self._tokens += done.tokens
            self._tell("tokenising", chunk.read)

        pattern, read = self._data.tokenizer.pattern, self._read_as()
        self._in_parallel(
            _noted(self._chunks(), numbers),
            lambda chunk: pieces.path_of(self._pieces, chunk.number).exists(),
            lambda chunk: workers.write(self._pieces, chunk, stored, pattern, read) if chunk.ids is None else self._written(chunk),
            settle,
        )
        if not self._documents:
            raise self._empty()
        return numbers

    def _read_as(self) -> Read:
        """How documents are read that are no plain texts."""
        if self._data.chat is None and (self._data.translates or self._data.objective.labelled):
            return self._data.objective
        return self._talk()

    def _written(self, chunk: Chunk) -> Future[pieces.Done]:
        """A piece of tokens, which need no worker."""
        future: Future[pieces.Done] = Future()
        future.set_result(pieces.write(self._pieces, chunk, self._engine()))
        return future

    def _empty(self) -> DataError:
        paths = [str(path) for path in sources.paths(self._sources)]
        more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        dropped = " that data.clean keeps; lower data.clean.limits" if self._data.clean else ""
        return DataError(f"data.corpus: is empty: no text in {', '.join(paths[:4])}{more}{dropped}")

    # --- what is written -------------------------------------------------------------------------------------------

    def _write(self, stored: Path, numbers: list[list[int]]) -> None:
        """Token files, and the manifest after them."""
        self._tell("writing", self._total)
        engine = tokenizer.load(stored, self._data.tokenizer.pattern)
        files = {stored.name: beside.stored(stored)}
        parts: dict[str, list[manifest.Part]] = {split: [] for split in SPLITS}
        for split, mine in parts.items():
            for index, each in enumerate(numbers):
                marked = self._data.chat is not None or self._data.translates
                part, written = pieces.join(self._pieces, each, split, index, self._making, engine.vocabulary, marked)
                mine.append(part)
                files |= written
        files |= self._template()
        every, written = beside.labels(self._data, self._pieces, numbers, self._making, self._sources)
        files |= written
        scales, written = beside.numbers(self._data, self._pieces, numbers, self._making)
        about, told = beside.about(self._data, self._pieces, numbers, self._making, self._sources)
        said = manifest.Manifest(
            format=manifest.FORMAT,
            request=self._folder.name,
            vocabulary=engine.vocabulary,
            end_of_text=engine.end_of_text,
            tokenizer=manifest.StoredTokenizer(file=stored.name, pattern=self._data.tokenizer.pattern, fingerprint=engine.fingerprint),
            splits=parts,
            files=files | written,
            numeric=scales,
            labels=every,
            lineage=told,
            about=about,
        )
        with durable.writing(self._making / manifest.MANIFEST) as file:
            file.write(said.model_dump_json(indent=1).encode())
        durable.sync_folder(self._making)

    def _talk(self) -> tuple[spec.Chat, str] | None:
        """How conversations are read, where documents are such."""
        settings = self._data.chat
        return None if settings is None else (settings, chat.template_of(settings))

    def _spoken(self, document: str) -> str:
        """What a tokenizer learns of a document: of a conversation, what is said; of a pair, both sides."""
        if labels.has_parts(self._data.objective):
            return labels.spoken(document, self._data.objective)
        said = [] if self._data.chat is None else [message["content"] for message in json.loads(document)]
        return "\n".join(said or json.loads(document)) if said or self._data.translates else document

    def _template(self) -> dict[str, manifest.StoredFile]:
        """The template's file, which goes where the model goes."""
        talk = self._talk()
        if talk is None:
            return {}
        with durable.writing(self._making / chat.FILE) as file:
            file.write(talk[1].encode())
        return {chat.FILE: beside.stored(self._making / chat.FILE)}

    def _tell(self, stage: Stage, read: int) -> None:
        self._listener(Progress(min(read, self._total), self._total, self._documents, self._tokens, stage))


def _noted(cut: Iterable[Chunk], numbers: list[list[int]]) -> Iterator[Chunk]:
    """The chunks, their numbers noted by source in the order of the corpus, in whichever order they are done."""
    for chunk in cut:
        numbers[chunk.source].append(chunk.number)
        yield chunk
