"""Writes examples/corpora/facts: short reports of who is where and has what, with a question about each.

    python -m examples.corpora.facts

Made up, by a fixed seed, from names in Jane Austen's novels: nobody's text, and nobody's rights. An answer stands in the report, so that a
model must look it up; who guesses the commonest answer is right once in ten. The reports of test.jsonl.gz are none of train.jsonl.gz.
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
WAYS = ("{name} is at {place}.", "{name} has gone to {place}.", "{place} is where {name} stays.")
HELD = ("{name} has the {thing}.", "The {thing} is {name}'s.")


def conversation(chance: random.Random) -> dict[str, str]:
    """A report on three people, and a question about one of them."""
    names, places, things = (chance.sample(several, 3) for several in (NAMES, PLACES, THINGS))
    told = [chance.choice(WAYS).format(name=name, place=place) for name, place in zip(names, places, strict=True)]
    told += [chance.choice(HELD).format(name=name, thing=thing) for name, thing in zip(names, things, strict=True)]
    chance.shuffle(told)
    asked = chance.randrange(3)
    question, answer = chance.choice(
        [
            (f"Where is {names[asked]}?", places[asked]),
            (f"What does {names[asked]} have?", things[asked]),
            (f"Who has the {things[asked]}?", names[asked]),
        ]
    )
    return {"prompt": f"{' '.join(told)} {question}", "answer": answer}


def main() -> None:
    chance = random.Random(1813)
    written = list({row["prompt"]: row for row in (conversation(chance) for _ in range(6300))}.values())
    for name, rows in (("train", written[:6000]), ("test", written[6000:6200])):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (FOLDER / f"{name}.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()
