"""Preparing a corpus against the tokenizers library's encode_batch alone: the same texts and tokenizer, each on one and the same core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tomli_w
from place import Figure, Place

import plait
from plait import spec
from plait.data import sources

GOAL = 0.8
PREPARE = """
import json, sys, time, plait
from plait import spec
run = spec.load(sys.argv[1])
began = time.perf_counter()
prepared = plait.prepare(run)
seconds = time.perf_counter() - began
print(json.dumps([sum(prepared.tokens(split) for split in ("train", "validation", "test")), seconds]))
"""
ENCODE = """
import json, pathlib, sys, time
from tokenizers import Tokenizer
texts = pathlib.Path(sys.argv[1]).read_text().split("\\f")
tokenizer = Tokenizer.from_file(sys.argv[2])
began = time.perf_counter()
tokens = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts))
print(json.dumps([tokens, time.perf_counter() - began]))
"""


COPIES = 4
"""Of the corpus, so that starting a process weighs as little as it does with a real corpus."""


def measure(place: Place) -> list[Figure]:
    run = spec.load(place.run_file({}))
    first = plait.prepare(run)
    corpus = _texts(place, run.data)
    rates = [
        (_prepared(place, corpus, first.tokenizer_file), _rate(ENCODE, str(corpus), str(first.tokenizer_file)))
        for _ in range(place.effort.rounds)
    ]
    detail = f"{max(one for one, _ in rates):,.0f} tokens/s, {corpus.stat().st_size / 2**20:.0f} MiB of text"
    return [Figure.of("preparing / tokenizers alone, one core", GOAL, [one / other for one, other in rates], detail=detail)]


def _texts(place: Place, data: spec.Data) -> Path:
    """The corpus as one plain file: documents with a form feed between them."""
    texts = [document.text for file in sources.every_file(sources.resolve(data)) for document in sources.documents(file, data)]
    path = place.new("corpus", ".txt")
    path.write_text("\f".join(texts * COPIES), encoding="utf-8")
    return path


def _prepared(place: Place, corpus: Path, tokenizer: Path) -> float:
    data = {"corpus": [str(corpus)], "tokenizer": {"file": str(tokenizer)}, "workers": 1, "prepared": str(place.new("afresh"))}
    run = spec.parse({"data": data, "train": {"duration": "1 steps"}})
    path = place.new("preparing", ".toml")
    path.write_text(tomli_w.dumps(run.resolved()))
    return _rate(PREPARE, str(path))


def _rate(code: str, *arguments: str) -> float:
    """Tokens a second, in a process that has one core and one thread for everything that it starts."""
    core = min(os.sched_getaffinity(0))
    pinned = f"import os; os.sched_setaffinity(0, {{{core}}})\n{code}"
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", pinned, *arguments], check=True, stdout=subprocess.PIPE, env=environment)
    tokens, seconds = json.loads(done.stdout)
    return tokens / seconds
