"""Import and export of 1 GB against copying the same files and bringing them to disk; and the memory that they take.

Each is a process of its own that begins with what it reads in the page cache. Memory is the process's peak, all that was imported included,
less the largest tensor's share that it may hold.
"""

from __future__ import annotations

import json
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
SMALL = {"layers": 2, "width": 64, "heads": 4}
TIMED = """
import json, os, resource, sys, time
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
print(json.dumps([time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
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
    """Three processes a round; what an import made is exported."""
    imports, exports, memory = [], [], []
    for _ in range(place.effort.rounds):
        copied, ours, back = (place.new(name) for name in ("copied", "ours", "back"))
        copying, _ = _timed("copy", folder, copied)
        importing, peak_in = _timed("import", folder, ours)
        exporting, peak_out = _timed("export", ours, back)
        imports.append(copying / importing)
        exports.append(copying / exporting)
        memory += [peak / (1.3 * largest + 400e6) for peak in (peak_in, peak_out)]
        for used in (copied, ours, back):
            subprocess.run(["rm", "-rf", str(used)], check=True)
    detail = f"{size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB; copying {size / copying / 1e9:.2f} GB/s"
    return [
        Figure.of(f"import / copying, speed, {family}", SPEED, imports, detail=detail),
        Figure.of(f"export / copying, speed, {family}", SPEED, exports),
        Figure.of(f"peak memory of both / (1.3 x largest tensor + 400 MB), {family}", MEMORY, memory, at_least=False),
    ]


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
