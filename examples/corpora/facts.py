"""Writes examples/corpora/facts: short reports of who is where and has what, with questions about each.

    python -m examples.corpora.facts

Made up, by a fixed seed, from names in Jane Austen's novels: nobody's text, and nobody's rights. An answer stands in the report, so that a
model must look it up. Of a report for learning four things are asked, one after the other, of a report for testing one. What is asked hangs
on no other question, so that nothing is told by what is left; the reports of test.jsonl.gz are none of train.jsonl.gz.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent / "facts"
NAMES = ["Anne", "Emma", "Fanny", "Jane", "Elinor", "Harriet", "Frederick", "Henry", "Edward", "Charles"]
PLACES = ["Bath", "London", "Lyme", "Highbury", "Meryton", "Kellynch", "Norland", "Barton", "Mansfield", "Longbourn"]
THINGS = ["letter", "book", "horse", "parasol", "piano", "carriage", "ring", "map", "candle", "basket"]
WAYS, HELD = ("is at", "stays at", "lives at"), ("has the", "keeps the", "holds the")
TRAIN, TEST, ASKED = 12000, 200, 4


def report(chance: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A report on two or three people, and questions with their answers, each on any fact from either of its sides."""
    people = chance.choice((2, 3))
    told, asked = [], []
    for name, place, thing in zip(*(chance.sample(several, people) for several in (NAMES, PLACES, THINGS)), strict=True):
        told += [f"{name} {chance.choice(WAYS)} {place}.", f"{name} {chance.choice(HELD)} {thing}."]
        asked += [(f"Where is {name}?", place), (f"Who is at {place}?", name)]
        asked += [(f"What has {name}?", thing), (f"Who has the {thing}?", name)]
    chance.shuffle(told)
    return " ".join(told), chance.choices(asked, k=ASKED)


def conversation(text: str, asked: list[tuple[str, str]]) -> str:
    """A line of JSON. The first question stands behind the report."""
    messages = []
    for number, (question, answer) in enumerate(asked):
        messages.append({"role": "user", "content": question if number else f"{text} {question}"})
        messages.append({"role": "assistant", "content": answer})
    return json.dumps({"messages": messages}) + "\n"


def main() -> None:
    chance = random.Random(1813)
    reports = list(dict(report(chance) for _ in range(TRAIN + TEST + 100)).items())
    for name, some, count in (("train", reports[:TRAIN], ASKED), ("test", reports[TRAIN : TRAIN + TEST], 1)):
        lines = "".join(conversation(text, asked[:count]) for text, asked in some)
        (FOLDER / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
