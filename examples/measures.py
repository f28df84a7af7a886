"""What the examples are measured by, each figure beside those of simple methods (baselines.py) on the same test split."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import plait
from examples import baselines
from plait import spec
from plait.data import sources
from plait.tasks.answer import Answers, answer, compare
from plait.tasks.evaluate import baselines_of, data_of, draw_confusion
from plait.tasks.generate import Sampling
from plait.tasks.neighbours import Neighbours
from plait.train.folder import read_run

VERSES = 200
"""That are written to see how many have the form."""


@dataclass(frozen=True)
class Figure:
    """One measure of a model. format: how its values are written. beside: the same of other methods, by their names."""

    name: str
    format: str
    model: float
    others: dict[str, float]

    @property
    def value(self) -> str:
        return format(self.model, self.format)

    @property
    def shown(self) -> str:
        return f"{self.value}; {self.beside}"

    @property
    def beside(self) -> str:
        return "; ".join(f"{name} {value:{self.format}}" for name, value in self.others.items())


def generator(folder: Path) -> list[Figure]:
    """Bits a byte of text that the model never saw."""
    train, test = texts(folder, "train"), texts(folder, "test")
    others = _bits(train, test, range(1, 11), sum(len(text.encode()) for text in test))
    return [Figure("bits a byte", ".2f", _bits_per_byte(folder), others)]


def composer(folder: Path) -> list[Figure]:
    """Bits a character, and of the verses that it writes how many have the form of a quatrain, rhyme, and were not copied."""
    train, test = texts(folder, "train"), texts(folder, "test")
    letters = "".join(test)
    bits = _bits_per_byte(folder) * len(letters.encode()) / len(letters)
    others = _bits(train, test, range(1, 6), len(letters))
    trained = plait.load(folder)
    sampling = Sampling(tokens=96, temperature=0.8, seed=1)
    written = {"model": [each.text for each in plait.generate(trained.module, trained.tokenizer, [""] * VERSES, sampling)]}
    for order in (3, 5):
        chance, simple = random.Random(1), baselines.NGram(train, order)
        written[f"{order}-gram"] = [simple.write(chance) for _ in range(VERSES)]
    written["poets"] = test
    return [Figure("bits a character", ".2f", bits, others), *form(written, train)]


def form(written: dict[str, list[str]], train: Sequence[str]) -> list[Figure]:
    known = {line for poem in train for line in lines(poem)}
    rhymes = {frozenset(lines(poem)[place][-1] for place in (1, 3)) for poem in train if is_quatrain(poem)}
    found: dict[str, dict[str, float]] = {"quatrains": {}, "that rhyme": {}, "lines copied": {}}
    for name, poems in written.items():
        formed = [lines(poem) for poem in poems if is_quatrain(poem)]
        every = [line for poem in poems for line in lines(poem)]
        found["quatrains"][name] = len(formed) / len(poems)
        found["that rhyme"][name] = sum(frozenset((poem[1][-1], poem[3][-1])) in rhymes for poem in formed) / len(poems)
        found["lines copied"][name] = sum(line in known for line in every) / max(1, len(every))
    return [Figure(name, ".0%", values.pop("model"), values) for name, values in found.items()]


def is_quatrain(poem: str) -> bool:
    """Four lines of five, or four of seven characters, in two sentences."""
    return re.fullmatch(r"\w+，\w+。\n\w+，\w+。", poem) is not None and [len(line) for line in lines(poem)] in ([5] * 4, [7] * 4)


def lines(poem: str) -> list[str]:
    return re.findall(r"\w+", poem)


def answerer(folder: Path) -> list[Figure]:
    """Exact match and F1, as SQuAD's, on questions about reports that the model never saw."""
    test = Path("examples/corpora/facts/test.jsonl.gz")
    answers = answer(folder, test)
    exact, f1 = _nearest_answers(answers, folder)
    return [
        Figure("exact match", ".0%", answers.exact, {"commonest answer": answers.baseline_exact, "nearest question's": exact}),
        Figure("F1", ".0%", answers.f1, {"commonest answer": answers.baseline_f1, "nearest question's": f1}),
    ]


def _nearest_answers(answers: Answers, folder: Path) -> tuple[float, float]:
    """(exact match, F1) of answering what is right for the training question that is most like the one asked."""
    learned = _questions(read_run(folder).data)
    nearest = Neighbours([question for question, _ in learned])
    scores = [compare(learned[nearest.nearest(each.question)][1], each.right) for each in answers.told]
    return float(np.mean([exact for exact, _ in scores])), float(np.mean([f1 for _, f1 in scores]))


def classifier(folder: Path) -> list[Figure]:
    """Accuracy and macro F1; what was taken for what is drawn as confusion.svg."""
    score, rivals = plait.evaluate(folder, "test"), baselines_of(folder, ["test"])
    assert score.accuracy is not None
    assert score.f1 is not None
    draw_confusion(score, folder / "confusion.svg")
    return [
        Figure("accuracy", ".1%", score.accuracy, {each.name: each.accuracy for each in rivals}),
        Figure("macro F1", ".1%", score.f1, {each.name: each.f1 for each in rivals}),
    ]


def translator(folder: Path) -> list[Figure]:
    """BLEU and chrF of the test split's translations, by beam search."""
    (each,) = plait.evaluate(folder, "test").translations
    rivals = {"copying the source": each.copied, "nearest source's": each.nearest}
    return [
        Figure("BLEU", ".1f", each.model.bleu, {name: scores.bleu for name, scores in rivals.items()}),
        Figure("chrF", ".1f", each.model.chrf, {name: scores.chrf for name, scores in rivals.items()}),
    ]


def _questions(data: spec.Data) -> list[tuple[str, str]]:
    """Every question on a report, behind the report, and its answer."""
    found = []
    for document in (each for file in sources.every_file(sources.resolve(data)) for each in sources.documents(file, data)):
        said = [message["content"] for message in json.loads(document.text)]
        report, _, said[0] = said[0].rpartition(". ")
        found += [(f"{report}. {question}", answer) for question, answer in zip(said[::2], said[1::2], strict=True)]
    return found


def texts(folder: Path, split: str) -> list[str]:
    """The documents of a split of what a run was trained on."""
    run = read_run(folder)
    prepared = data_of(folder, run)
    tokenizer = prepared.tokenizer()
    files = prepared.split(split, run.data.sequence).sources
    return [tokenizer.decode(document[1:]) for file in files for document in np.split(file.tokens, file.starts[1:])]


def _bits(train: Sequence[str], test: Sequence[str], orders: range, size: int) -> dict[str, float]:
    """What simple methods need for the test documents, divided by their size."""
    bits, order = baselines.ngram_bits(train, test, orders)
    return {f"{order}-gram": bits / size, "xz": baselines.xz_bits(train, test) / size}


def _bits_per_byte(folder: Path) -> float:
    """The loss of the test split, as bits a byte of its text."""
    prepared = data_of(folder, read_run(folder))
    size = sum(part.text_bytes for part in prepared.manifest.splits["test"])
    return plait.evaluate(folder, "test").loss / math.log(2) * prepared.tokens("test") / size
