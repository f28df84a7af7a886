"""Cleaning and deduplication: plait's pipeline around its rules and libraries, the same work by datatrove's filters, and memory.

Our share is told within one run and process: the processor's seconds inside `Cleaner` by those of all that is done to clean and compare.
(Of two processes, one with libraries alone, it was 0.93 and 0.68 in two rounds: starting a worker takes 1.2 s, of ten that 8 MiB take,
and a busy neighbour slows one process and not the other.) datatrove is measured where it is installed (pip install datatrove); its words
are cut as ours are, since it asks spaCy for them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w
from place import Figure, Place

from plait import spec
from plait.data import sources

OURS, RATIO, MEMORY, FLAT = 0.85, 0.87, 800.0, 1.25
BYTES = {"full": 1 << 30, "quick": 1 << 26, "tiny": 1 << 20}
CLEANED = {"full": 1 << 26, "quick": 1 << 24, "tiny": 1 << 19}
_LINES = 100_000

PREPARE = """
import contextlib, json, os, sys, threading, time
from plait import spec
from plait.data import prepare

def family():
    pids = [os.getpid()]
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            pids += map(int, open(f"/proc/self/task/{task}/children").read().split())
    return pids

def held():
    pages = 0
    for pid in family():
        with contextlib.suppress(FileNotFoundError):
            pages += int(open(f"/proc/{pid}/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

memory = []

def watch():
    while True:
        memory.append([stage[0], held()])
        time.sleep(0.1)

stage = ["starting"]
threading.Thread(target=watch, daemon=True).start()
prepare.prepare(spec.load(sys.argv[1]).data, listener=lambda progress: stage.__setitem__(0, progress.stage))
print(json.dumps({"memory": memory}))
"""
WITHIN = """
import io, json, sys, types
from concurrent.futures import Future
from time import process_time
import numpy as np
from plait import spec
from plait.data import prepare, preparation, worker
from plait.data.cleaning.cleaner import Cleaner

class Here:
    # In the parent's stead: what goes through a pipe goes through a buffer.
    def __init__(self, count): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def study(self, folder, chunk, data, evaluation):
        pipe, answer = io.BytesIO(), Future()
        request = {"do": "study", "folder": str(folder), "data": data.model_dump_json(), "evaluation": str(evaluation)}
        worker.send_chunk(types.SimpleNamespace(stdin=pipe), request, chunk)
        pipe.seek(0)
        answer.set_result(worker._answer_to(json.loads(worker._receive(pipe)), pipe))
        return answer

class Studied(Exception): pass

def stop(*arguments): raise Studied

def timed(function, into):
    def call(*arguments):
        began = process_time()
        result = function(*arguments)
        into.append(process_time() - began)
        return result
    return call

data = spec.load(sys.argv[1]).data
Cleaner(data.clean, np.zeros(0, np.uint64), True)("the models are loaded by now " * 20)
within, whole, characters = [], [], []
clean = Cleaner.__call__
Cleaner.__call__ = timed(lambda cleaner, text: (characters.append(len(text)), clean(cleaner, text))[1], within)
Whole = preparation.Preparation
preparation.Workers, Whole._study, Whole._tokenizer = Here, timed(Whole._study, whole), stop
try:
    prepare.prepare(data)
except Studied:
    print(json.dumps({"within": sum(within), "whole": sum(whole), "characters": sum(characters)}))
"""
DATATROVE = """
import json, sys, time, types
import ftfy
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_quality_filter, gopher_repetition_filter
from py3langid import classify
from rensa import RMinHash
from plait import spec
from plait.data import sources
from plait.data.cleaning.words import Words
for module in (gopher_quality_filter, gopher_repetition_filter):
    module.split_into_words = lambda text, language: Words(text).all
quality, repetition = gopher_quality_filter.GopherQualityFilter(), gopher_repetition_filter.GopherRepetitionFilter()
data = spec.load(sys.argv[1]).data
texts = [document.text for file in sources.every_file(sources.resolve(data)) for document in sources.documents(file, data)]
classify("one")
began = time.process_time()
for number, text in enumerate(texts):
    text = ftfy.fix_text(text)
    classify(text[:1000])
    document = Document(text=text, id=str(number))
    if quality.filter(document) is True and repetition.filter(document) is True:
        words = Words(text).all
        sign = RMinHash(num_perm=128, seed=1)
        sign.update([" ".join(words[at : at + 5]) for at in range(len(words) - 4)])
        sign.digest()
print(json.dumps({"seconds": time.process_time() - began}))
"""


def measure(place: Place) -> list[Figure]:
    size = "tiny" if place.effort.tiny else "quick" if place.effort.rounds < 6 else "full"
    cleaned = _run_file(place, _corpus(place, CLEANED[size]), workers=1)
    rounds = [_round(place, cleaned) for _ in range(max(1, place.effort.rounds // 2))]
    figures = [
        Figure.of(
            "rules and libraries / cleaning and comparing, one core", OURS, [each["share"] for each in rounds], detail=rounds[0]["detail"]
        )
    ]
    if "datatrove" in rounds[0]:
        ratios = [each["datatrove"] for each in rounds]
        figures.append(Figure.of("cleaning / ftfy, py3langid, rensa and datatrove's rules alone", RATIO, ratios))
    return figures + _memory(place, BYTES[size])


def _round(place: Place, run_file: Path) -> dict[str, Any]:
    told: dict[str, Any] = _run(WITHIN, _afresh(place, run_file), cores=1)
    told["share"] = told["within"] / told["whole"]
    told["detail"] = f"{told['characters'] / told['whole'] / 1e6:.2f} MB of text/s"
    if importlib.util.find_spec("datatrove") is not None:
        told["datatrove"] = _run(DATATROVE, run_file, cores=1)["seconds"] / told["whole"]
    return told


def _memory(place: Place, size: int) -> list[Figure]:
    """Resident memory of the parent and two workers while a corpus is cleaned and tokenised."""
    run_file = _run_file(place, _corpus(place, size), workers=2)
    memory = _run(PREPARE, run_file, cores=2)["memory"]
    peak = max(held for _, held in memory)
    cleaning = [held for stage, held in memory if stage == "cleaning"]
    early, late = max(cleaning[: -(-len(cleaning) // 3)]), max(cleaning)
    detail = f"{size / 2**20:,.0f} MiB of text, 2 processes"
    return [
        Figure.of("MiB while preparing", MEMORY, [peak], at_least=False, detail=detail),
        Figure.of("memory of cleaning: whole / first third", FLAT, [late / early], at_least=False),
    ]


def _corpus(place: Place, size: int) -> Path:
    """Documents of so many bytes, each of lines out of a hundred thousand that are made of the corpus' words by their frequency: no two
    documents are alike, and a GiB of them is written within seconds."""
    data = spec.Data(corpus=[place.corpus])
    words = [
        word
        for file in sources.every_file(sources.resolve(data))
        for document in sources.documents(file, data)
        for word in document.text.split()
    ]
    chance = random.Random(1)
    lines = [json.dumps(" ".join(chance.choices(words, k=60)))[1:-1] for _ in range(min(_LINES, size // 1000))]
    path = place.new("corpus", ".jsonl")
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            text = "\\n".join(chance.choices(lines, k=chance.randint(3, 12)))
            written += file.write(f'{{"text": "{text}"}}\n')
    return path


def _run_file(place: Place, corpus: Path, workers: int) -> Path:
    data = {"corpus": [str(corpus)], "workers": workers, "prepared": str(place.new("prepared")), "tokenizer": {"train": 300}}
    clean = {"private": ["email", "ip", "phone"]}
    run = spec.parse({"data": {**data, "clean": clean}, "train": {"duration": "1 steps"}})
    path = place.new("cleaning", ".toml")
    path.write_text(tomli_w.dumps(run.resolved()), encoding="utf-8")
    return path


def _afresh(place: Place, run_file: Path) -> Path:
    run = spec.load(run_file, [f"data.prepared={place.new('afresh')}"])
    path = place.new("afresh", ".toml")
    path.write_text(tomli_w.dumps(run.resolved()), encoding="utf-8")
    return path


def _run(code: str, run_file: Path, cores: int) -> dict[str, Any]:
    """Runs in a process that has so many cores, and one thread each for everything that it starts."""
    mine = sorted(os.sched_getaffinity(0))[:cores]
    pinned = f"import os; os.sched_setaffinity(0, {mine})\n{code}"
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", pinned, str(run_file)], check=True, stdout=subprocess.PIPE, env=environment)
    told: dict[str, Any] = json.loads(done.stdout)
    return told
