"""MFU of GPT-2 124M on one GPU, in bf16, compiled.

    MFU = tokens a second * (6 N + 12 layers width sequence) / peak        N: parameters that multiply, the head included

Peak: 989 TFLOP/s on an H100 (SXM, dense bf16). The vocabulary is 50,304, GPT-2's 50,257 filled up to a multiple of 128; what
the tokens mean does not matter for speed, so they are numbers written as words.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import tomli_w
import torch
from contest import PlaitTraining, rate
from place import Figure, Place

import plait
from plait import spec
from plait.plan import counts, hardware

GOAL = 0.45
VOCABULARY = 50_304
MODEL = {"family": "gpt2", "layers": 12, "width": 768, "heads": 12}
BATCH = 32
SEQUENCE = 1024


def measure(place: Place) -> list[Figure]:
    if not torch.cuda.is_available():
        return []
    run_file = _run_file(place)
    run = spec.load(run_file)
    peak = hardware.peak_flops(torch.cuda.get_device_name(), "bf16")
    if peak is None:
        return []
    flops = counts.flops_per_token(run.model, VOCABULARY, SEQUENCE)
    with PlaitTraining(run_file, place.new("out")) as training:
        training.run(20)
        rates = [rate(training.run(4, place.effort.seconds)[0]) for _ in range(place.effort.rounds)]
    shares = [tokens * flops / peak for tokens in rates]
    return [Figure.of("MFU, GPT-2 124M, bf16, compiled, one GPU", GOAL, shares, detail=f"{max(rates):,.0f} tokens/s")]


def _run_file(place: Place) -> Path:
    table = {
        "model": MODEL,
        "data": {
            "corpus": [str(_corpus(place))],
            "tokenizer": {"file": str(_tokenizer(place))},
            "sequence": SEQUENCE,
            "prepared": str(place.prepared),
        },
        "train": {"duration": "1M steps", "batch": BATCH, "micro_batch": BATCH, "precision": "bf16", "compile": True},
    }
    path = place.new("run", ".toml")
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    plait.prepare(spec.load(path))
    return path


def _tokenizer(place: Place) -> Path:
    """A word for each number."""
    vocabulary = {"<|endoftext|>": 0} | {str(number): number for number in range(1, VOCABULARY)}
    special = {"id": 0, "content": "<|endoftext|>", "special": True}
    whole = {
        "version": "1.0",
        "added_tokens": [{**special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|endoftext|>"},
    }
    path = place.new("tokenizer", ".json")
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def _corpus(place: Place) -> Path:
    chance = random.Random(0)
    documents = (" ".join(str(chance.randrange(1, VOCABULARY)) for _ in range(1000)) for _ in range(2000))
    path = place.new("numbers", ".txt")
    path.write_text("\f".join(documents), encoding="utf-8")
    return path
