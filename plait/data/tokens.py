"""Token files as they are read: one source's tokens in one split, splits, and a prepared corpus as a whole.

Tokens are memory-mapped: opening costs nothing, whatever the size. Torch is not needed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from plait import spec
from plait.data import chat, kept, records, samples, tokenizer
from plait.data.augment import Augmentation
from plait.data.manifest import (
    Manifest,
    check_content,
    check_size,
    counts_name,
    learned_name,
    numbers_name,
    read_manifest,
    starts_name,
    tokens_name,
    told_name,
)
from plait.data.objective import Telling, build
from plait.data.splits import SPLITS
from plait.errors import DataError
from plait.store.cache import CachedFile

_HEADER = 256  # bytes, enough for that of a .npy file with one dim


class TokenFile:
    """One source's tokens in one split. tokens: uint16 or uint32, memory-mapped; starts: int64, where each document begins. learned: bool,
    of conversations, which tokens are learned."""

    far = False

    def __init__(self, path: Path, tokens: np.ndarray, starts: np.ndarray, learned: np.ndarray | None = None) -> None:
        self.path = path
        self.learned = learned
        self.starts = starts
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> np.ndarray:
        return self._tokens

    def rows(self, firsts_B: np.ndarray, length: int) -> np.ndarray:
        """tokens_BL: `length` tokens from each of some places on."""
        found: np.ndarray = sliding_window_view(self._tokens, length)[firsts_B]
        return found

    def ahead(self, firsts_B: np.ndarray, length: int) -> None:
        """These rows will be read soon."""


class FarTokenFile(TokenFile):
    """One that is kept in a store, read through the cache: a .npy file, whose header says where tokens begin."""

    far = True

    def __init__(self, path: Path, file: CachedFile, starts: np.ndarray, learned: np.ndarray | None = None) -> None:
        header = io.BytesIO(file.read(np.zeros(1, np.int64), min(_HEADER, file.size)).tobytes())
        np.lib.format.read_magic(header)
        (self._length,), _, self._dtype = np.lib.format.read_array_header_1_0(header)
        self._begin, self._file = header.tell(), file
        super().__init__(path, np.zeros(0, self._dtype), starts, learned)

    def __len__(self) -> int:
        return int(self._length)

    @property
    def tokens(self) -> np.ndarray:
        """All of them, read through the cache."""
        return self.rows(np.zeros(1, np.int64), len(self)).reshape(-1)

    def rows(self, firsts_B: np.ndarray, length: int) -> np.ndarray:
        size = self._dtype.itemsize
        read: np.ndarray = self._file.read(self._begin + firsts_B * size, length * size).view(self._dtype)
        return read

    def ahead(self, firsts_B: np.ndarray, length: int) -> None:
        self._file.ahead(self._begin + firsts_B * self._dtype.itemsize, length * self._dtype.itemsize)


@dataclass(frozen=True)
class Split:
    """A split cut into sequences; the last one of a source may be short. packed: a sequence holds as many conversations as fit, not one."""

    name: str
    sources: list[TokenFile]
    weights: list[float]
    sequence: int
    document_mask: bool
    masking: Telling | None = None
    augmentation: Augmentation | None = None
    """Of the training split, and for training alone: `EvaluationBatches` reads what was prepared."""
    packed: bool = False
    names: list[str] = field(default_factory=list)
    """Of the sources."""
    told: samples.Told | None = None
    """Of samples with labels, what is told of them."""

    @property
    def tokens(self) -> int:
        return sum(len(source) for source in self.sources)


class Prepared:
    """A corpus ready for training: a folder with a manifest."""

    def __init__(self, folder: Path, manifest: Manifest, data: spec.Data | None = None) -> None:
        self.folder = folder
        self.fingerprint = manifest.fingerprint
        self.vocabulary = manifest.vocabulary
        self._manifest = manifest
        self._data = data

    @classmethod
    def open(cls, folder: Path, data: spec.Data | None = None) -> Prepared:
        """Open what was prepared; `data` gives what is not in the files (weights, document_mask), and `split` needs it.

        Raises DataError: no manifest, or a file whose size is not what the manifest says.
        """
        if data is not None:
            kept.ensure(data, folder)
        manifest = read_manifest(folder)
        for name, file in (manifest.files | manifest.about).items():
            if not kept.by_block(data, folder, name):
                check_size(folder, name, file)
        return cls(folder, manifest, data)

    def verify(self) -> None:
        """Read every file whole, but those of which each block is checked as it is fetched. Raises DataError naming the one whose checksum
        is not the manifest's."""
        check_content(self.folder, self._manifest, lambda name: kept.by_block(self._data, self.folder, name))

    @property
    def data(self) -> spec.Data | None:
        """What was asked for, where that was told."""
        return self._data

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / self._manifest.tokenizer.file

    @property
    def whole(self) -> bool:
        """Whether documents, conversations or pairs, stand in rows as a whole."""
        return self.template_file is not None or (self._data is not None and self._data.translates)

    @property
    def sequence(self) -> int | None:
        """The tokens of a row that the run file asks for, where it was opened by one."""
        return None if self._data is None else self._data.sequence

    @property
    def template_file(self) -> Path | None:
        """The template of conversations, where documents are such."""
        return self.folder / chat.FILE if chat.FILE in self._manifest.files else None

    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.load(self.tokenizer_file, self._manifest.tokenizer.pattern)

    def split(self, name: str, sequence: int) -> Split:
        """The "train", "validation" or "test" split in sequences of so many tokens.

        Raises DataError: no document in it, or a corpus shorter than one sequence.
        """
        if self._data is None:
            raise ValueError("the weights of sources stand in the run file: Prepared.open(folder, run.data).split(...)")
        self._check_split(name, sequence)
        kept.ensure(self._data, self.folder)
        filled = [index for index, part in enumerate(self._manifest.splits[name]) if part.documents]
        weights, names = self._weights(), names_of(self._data)
        packed = self._data.chat is not None and self._data.chat.pack
        return Split(
            name,
            [self._token_file(name, index) for index in filled],
            [weights[index] for index in filled],
            sequence,
            document_mask=self._data.document_mask or packed,
            masking=self._masking(sequence),
            augmentation=self._augmentation(name),
            packed=packed,
            names=[names[index] for index in filled],
            told=samples.told(self, self._data, name, filled, sequence),
        )

    def told(self, split: str, source: int = 0) -> np.ndarray:
        """What is told of a source's documents in a split, as they were prepared: labels are numbers in the manifest's list."""
        return _load(self.folder / told_name(split, source))

    def objective(self) -> spec.Objective:
        """The objective with all that is known by the rows: labels, what they weigh, how numbers are scaled. Raises as `split`."""
        assert self._data is not None
        return samples.settled(self._data, self._manifest)

    def _weights(self) -> list[float]:
        """By which sources are drawn: weight * tokens^(1/temperature), of the training split, to a thousandth of the whole."""
        assert self._data is not None
        weights, heat = weights_of(self._data), self._data.temperature
        if heat is None:
            return weights
        sizes = [weight * part.tokens ** (1 / heat) for weight, part in zip(weights, self._manifest.splits["train"], strict=True)]
        return [max(0.001, round(size / sum(sizes), 3)) for size in sizes]

    def _augmentation(self, split: str) -> Augmentation | None:
        assert self._data is not None
        return Augmentation(self._data.augment, self.tokenizer()) if split == "train" and self._data.augment.any else None

    def _masking(self, sequence: int) -> Telling | None:
        assert self._data is not None
        objective = self._data.objective
        return None if objective.kind == "causal" or self._data.chat is not None else build(objective, self.tokenizer(), sequence)

    def tokens(self, split: str) -> int:
        return sum(part.tokens for part in self._manifest.splits[split])

    def documents(self, split: str) -> int:
        return sum(part.documents for part in self._manifest.splits[split])

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def records(self) -> np.ndarray:
        """What became of each document, rows of records.RECORD. Raises DataError: prepared before records were kept."""
        if self._manifest.lineage is None:
            raise DataError(f"{self.folder}: was prepared by a plait that kept no records of documents; remove it and prepare again")
        return _load(self.folder / records.DOCUMENTS)

    def numbers(self, split: str, source: int = 0) -> np.ndarray:
        """The scaled numeric fields of a source's documents in a split, float64 [documents, fields], in the order of the tokens."""
        return _load(self.folder / numbers_name(split, source))

    def bytes_per_token(self) -> float:
        """Bytes of text that one token stands for, over all splits: what the tokenizer compresses."""
        parts = [part for split in self._manifest.splits.values() for part in split]
        return sum(part.text_bytes for part in parts) / sum(part.tokens for part in parts)

    def unigram_entropy(self, split: str = "train") -> float:
        """Nats per token of `split` when each token is told by its frequency in the training split alone.

        What a model must beat to have learned anything of order. A token that training never saw counts as seen once.
        """
        seen = self._counts("train")
        if split != "train":
            seen = np.maximum(seen, 1)
        counts = self._counts(split)
        present = counts > 0
        log_shares = np.log(seen[present] / seen.sum())
        return float(-(counts[present] * log_shares).sum() / counts.sum())

    def _counts(self, split: str) -> np.ndarray:
        parts = range(len(self._manifest.splits[split]))
        total: np.ndarray = sum((_load(self.folder / counts_name(split, index)) for index in parts), np.zeros(self.vocabulary, np.int64))
        return total

    def _check_split(self, name: str, sequence: int) -> None:
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}; the splits are {', '.join(SPLITS)}")
        if not self.documents(name):
            whole = sum(self.documents(split) for split in SPLITS)
            raise DataError(
                f"the {name} split is empty: the corpus has {whole} document{'s' * (whole != 1)}, and splits are told by a hash of each "
                f"one's content; cut it into more documents (data.separator) or give the split a larger share (data.split.{name})"
            )
        labelled = self._data is not None and self._data.objective.labelled
        if name == "train" and self.tokens(name) <= sequence and not (self.whole or labelled):
            raise DataError(
                f"the corpus is shorter than one sequence: {self.tokens(name)} tokens to train on, and data.sequence = {sequence} "
                f"needs {sequence + 1}; add text or lower data.sequence"
            )

    def _token_file(self, split: str, index: int) -> TokenFile:
        name, learned = tokens_name(split, index), learned_name(split, index)
        starts = _load(self.folder / starts_name(split, index))
        marks = _load(self.folder / learned) if learned in self._manifest.files else None
        if self._data is not None and kept.by_block(self._data, self.folder, name):
            return FarTokenFile(self.folder / name, kept.cached(self._data, self.folder, name), starts, marks)
        return TokenFile(self.folder / name, _load(self.folder / name), starts, marks)


def weights_of(data: spec.Data) -> list[float]:
    """The weight of each source, in the order of `sources.resolve`: plain paths together first, then each table."""
    plain = [1.0] if any(isinstance(entry, str) for entry in data.corpus) else []
    return plain + [entry.weight for entry in data.corpus if isinstance(entry, spec.Source)]


def names_of(data: spec.Data) -> list[str]:
    """What each source is called, in the same order."""
    plain = ["corpus"] if any(isinstance(entry, str) for entry in data.corpus) else []
    return plain + [entry.name or entry.path for entry in data.corpus if isinstance(entry, spec.Source)]


def _load(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
