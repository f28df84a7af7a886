"""A contender: plait's loader alone, reading batch after batch as the loop does."""

from __future__ import annotations

import itertools
import json
import sys

from contest import Ticker

import plait
from plait import spec
from plait.data.batches import Batches
from plait.ledger.messages import Part
from plait.train.loop import Loader


def main(run_file: str, ticks: str) -> None:
    run = spec.load(run_file)
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    assert isinstance(run.train.micro_batch, int)
    loader = Loader(batches, run.train.micro_batch)
    tick = Ticker(ticks)
    for hundred in itertools.count():
        tokens = 0
        for step in range(100 * hundred + 1, 100 * hundred + 101):
            whole = [[0, batches.size(step)]]
            part = Part(step, whole, whole)
            loader.divisor(part)
            tokens += sum(micro_batch.tokens_BL.size for micro_batch in loader.read(part))
        tick(tokens)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
