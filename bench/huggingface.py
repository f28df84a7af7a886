"""Import and export of 1 GB against copying the same files and bringing them to disk; and the memory that they take.

Each is a process of its own that begins with what it reads in the page cache and nothing left to write. A disk may write its first gigabyte
faster than the next ones: who comes first changes from round to round, and all orders come equally often. Memory is the process's peak, all
that was imported included, less the largest tensor's share that it may hold.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from place import Figure, Place

from plait import spec
from plait.data import bpe
from plait.model.huggingface import Shape, dialect_of
from plait.train import tensorfile
from plait.train.huggingface.folder import CONFIG, WHOLE
from plait.train.tensorfile import Kind

SPEED = 0.5
MEMORY = 1.0
"""Of 1.3 x the largest tensor + 400 MB."""
LARGE = {"llama": {"layers": 16, "width": 1024, "heads": 16, "kv_heads": 8}, "gpt2": {"layers": 16, "width": 1024, "heads": 16}}
ORDERS = list(itertools.permutations(("copy", "import", "export")))
SMALL = {"layers": 2, "width": 64, "heads": 4}
TIMED = """
import json, os, sys, time
what, source, target = sys.argv[1:]
if what == "copy":
    import shutil
    from pathlib import Path
    def work():
        shutil.copytree(source, target)
        for path in Path(target).rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
elif what == "import":
    from plait.tasks.huggingface.importing import import_model as move
    work = lambda: move(source, target)
else:
    from plait.tasks.huggingface.exporting import export_model as move
    work = lambda: move(source, target)
began = time.perf_counter()
work()
took = time.perf_counter() - began
(peak,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")]  # ru_maxrss has the parent
print(json.dumps([took, peak * 1024]))
"""


def measure(place: Place) -> list[Figure]:
    figures = []
    for family, settings in LARGE.items():
        model = spec.Model(family=family, **(SMALL if place.effort.tiny else settings))
        folder = place.new(family)
        size, largest = _save(folder, Shape(model, 300 if place.effort.tiny else 32_000, 64 if place.effort.tiny else 1024))
        figures += _against_copying(place, family, folder, size, largest)
    return figures


def _against_copying(place: Place, family: str, folder: Path, size: int, largest: int) -> list[Figure]:
    """Three processes a round."""
    imported = place.new("imported")
    _timed("import", folder, imported)
    sources = {"copy": folder, "import": folder, "export": imported}
    rounds = [_round(place, sources, order) for order in (ORDERS[:1] if place.effort.tiny else ORDERS)]
    shutil.rmtree(imported)
    speeds = {what: [size / done[what][0] / 1e9 for done in rounds] for what in sources}
    memory = [peak / (1.3 * largest + 400e6) for done in rounds for what, (_, peak) in done.items() if what != "copy"]
    copying = f"copying {min(speeds['copy']):.2f} to {max(speeds['copy']):.2f} GB/s"
    detail = f"{size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB; {copying}"
    return [
        Figure.of(f"import / copying, speed, {family}", SPEED, _ratios(speeds["import"], speeds["copy"]), detail=detail),
        Figure.of(f"export / copying, speed, {family}", SPEED, _ratios(speeds["export"], speeds["copy"])),
        Figure.of(f"peak memory of both / (1.3 x largest tensor + 400 MB), {family}", MEMORY, memory, at_least=False),
    ]


def _round(place: Place, sources: dict[str, Path], order: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Seconds and peak memory of each, done in this order."""
    done = {}
    for what in order:
        target = place.new(what)
        os.sync()
        done[what] = _timed(what, sources[what], target)
        shutil.rmtree(target)
    return done


def _ratios(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _save(folder: Path, shape: Shape) -> tuple[int, int]:
    """A model's folder of theirs with random values. Returns bytes of all tensors and of the largest."""
    folder.mkdir()
    dialect = dialect_of(shape)
    kinds = {source.name: Kind("F32", source.shape) for weight in dialect.weights(shape) for source in weight.sources}
    chance = np.random.default_rng(0)
    tensorfile.write(folder / WHOLE, kinds, lambda name: [chance.standard_normal(kinds[name].shape, np.float32)], {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({"model_type": dialect.kind, **dialect.write(shape)}))
    (folder / "tokenizer.json").write_text(bpe.train(["the cat sat on the mat"], 257))
    sizes = [kind.bytes for kind in kinds.values()]
    return sum(sizes), max(sizes)


def _timed(what: str, source: Path, target: Path) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", TIMED, what, str(source), str(target)], check=True, stdout=subprocess.PIPE)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak
