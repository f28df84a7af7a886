"""Questions of a file, answered by a trained model, and compared with the answers that stand there.

Exact match and F1 are those of SQuAD (Rajpurkar et al. 2016): case, punctuation, articles and white space are passed over; F1 is that of
the words that an answer shares with the right one; of several right answers the best counts.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from plait import spec
from plait.data import sources
from plait.data.chat import Message
from plait.errors import DataError, UserError
from plait.model.encoder import Encoder
from plait.tasks.classify import needs_head
from plait.tasks.generate import Sampling, generate
from plait.tasks.spans import Span, find
from plait.tasks.trained import Trained, load


@dataclass(frozen=True)
class Answered:
    """One question: what was asked, what is right, and what the model says."""

    question: str
    right: list[str]
    said: str
    exact: float
    f1: float


@dataclass(frozen=True)
class Answers:
    """Means over all questions. baseline: exact match and F1 of always giving the commonest right answer."""

    step: int
    questions: int
    exact: float
    f1: float
    baseline_exact: float
    baseline_f1: float
    told: list[Answered]

    def as_dict(self) -> dict[str, Any]:
        """Without the single answers."""
        return {name: value for name, value in asdict(self).items() if name != "told"}


def answer(
    folder: str | Path,
    file: str | Path,
    *,
    limit: int | None = None,
    batch: int = 16,
    tokens: int = 64,
    none: float | None = None,
    device: spec.Device = "auto",
    told: Callable[[Answered], None] = lambda each: None,
) -> Answers:
    """Answer the questions of a file: of conversations, each with what is said before its last answer; or of passages, by spans of them.

    limit: questions, all when left out. none: as `spans.find`'s. Raises UserError: no run there, a file that holds no questions.
    """
    trained = load(folder, device)
    if trained.run.data.objective.kind == "answer":
        return _by_spans(trained, Path(file), limit, none, told)
    if none is not None:
        raise UserError(f"--none is for spans of passages, and {folder} writes its answers; leave it out")
    template = trained.template
    asked = _asked(Path(file), trained.run.data.chat or spec.Chat(), limit)
    settings = trained.answering(Sampling(tokens=tokens, temperature=0))
    answered: list[Answered] = []
    for first in range(0, len(asked), batch):
        some = asked[first : first + batch]
        prompts = [template.prompt(messages) for messages, _ in some]
        for (messages, right), completion in zip(some, generate(trained.module, trained.tokenizer, prompts, settings), strict=True):
            said = completion.text.strip()
            answered.append(Answered(messages[-1]["content"], right, said, *compare(said, right)))
            told(answered[-1])
    return _summed(trained.step, answered)


def reply(trained: Trained, question: str, passage: str | None, *, none: float | None = None, tokens: int = 64) -> Span:
    """One question answered. Raises UserError: an encoder without a passage."""
    if trained.run.data.objective.kind == "answer" or isinstance(trained.module, Encoder):
        if passage is None:
            needs_head(trained, "answer")
            raise UserError("--passage is missing: the answer is a span of it")
        return find(trained, [(question, passage)], none=none)[0]
    if none is not None:
        raise UserError(f"--none is for spans of passages, and {trained.folder} writes its answers; leave it out")
    messages = [{"role": "user", "content": question if passage is None else f"{passage}\n{question}"}]
    settings = trained.answering(Sampling(tokens=tokens, temperature=0))
    [written] = generate(trained.module, trained.tokenizer, [trained.template.prompt(messages)], settings)
    return Span(question, written.text.strip(), 0, 0, 0.0)


def compare(said: str, right: list[str]) -> tuple[float, float]:
    """(exact match, F1), the best over the right answers."""
    scores = [(float(_words(said) == _words(each)), _f1(_words(said), _words(each))) for each in right]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _by_spans(trained: Trained, file: Path, limit: int | None, none: float | None, told: Callable[[Answered], None]) -> Answers:
    asked = list(islice(_rows(file, trained.run.data), limit))
    if not asked:
        raise DataError(f"{file}: holds no question")
    answered = []
    for span, (question, _, right) in zip(find(trained, [each[:2] for each in asked], none=none), asked, strict=True):
        answered.append(Answered(question, right, span.answer, *compare(span.answer, right)))
        told(answered[-1])
    return _summed(trained.step, answered)


def _rows(file: Path, data: spec.Data) -> Iterator[tuple[str, str, list[str]]]:
    """(question, passage, right answers; an empty one where the passage does not tell). Raises DataError."""
    data = data.model_copy(update={"corpus": [str(file)], "split": spec.Splits(), "numeric": []})
    for source in sources.every_file(sources.resolve(data)):
        for document in sources.documents(source, data):
            question, passage, _, right = json.loads(document.text)
            yield question, passage, [each for each in right if _words(each)] or [""]  # as SQuAD's script leaves such out


def _summed(step: int, answered: list[Answered]) -> Answers:
    commonest = Counter(each.right[0] for each in answered).most_common(1)[0][0]
    always = [compare(commonest, each.right) for each in answered]
    return Answers(
        step,
        len(answered),
        exact=_mean([each.exact for each in answered]),
        f1=_mean([each.f1 for each in answered]),
        baseline_exact=_mean([exact for exact, _ in always]),
        baseline_f1=_mean([f1 for _, f1 in always]),
        told=answered,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _asked(file: Path, settings: spec.Chat, limit: int | None) -> list[tuple[list[Message], list[str]]]:
    """Conversations up to their last answer, and what is right there."""
    data = spec.Data(corpus=[str(file)], chat=settings)
    found = [document for each in sources.every_file(sources.resolve(data)) for document in sources.documents(each, data)][:limit]
    if not found:
        raise DataError(f"{file}: holds no question")
    conversations: list[list[Message]] = [json.loads(document.text) for document in found]
    return [(messages[:-1], [messages[-1]["content"]]) for messages in conversations]


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def _words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()
