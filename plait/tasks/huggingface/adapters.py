"""Adapters as PEFT reads them: adapter_config.json and adapter_model.safetensors, beside the model that they were trained for.

plait    blocks.0.attention.qkv     A [r, in], B [q + k + v, r]      one A for all that is stacked
PEFT     q_proj, k_proj, v_proj     A [r, in], B [q, r], ...         the same A each, and of B the rows that are its own
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plait import spec
from plait.errors import CheckpointError
from plait.model.huggingface import Dialect, Shape
from plait.tasks.huggingface.stored import Values
from plait.train import tensorfile
from plait.train.tensorfile import Kind

CONFIG, WHOLE = "adapter_config.json", "adapter_model.safetensors"
_TASKS = {"t5": "SEQ_2_SEQ_LM", "bert": None}


class _Half(NamedTuple):
    """Rows [first, end) of one of plait's matrices."""

    path: str
    first: int
    end: int


def write(to: Path, trained: Values, finetune: spec.Finetune, dialect: Dialect, shape: Shape, code: str, base: str | None) -> int:
    """Both files; returns the bytes of tensors. base: the folder of the model that they were trained for, where Hugging Face's.

    Raises CheckpointError: what PEFT has no adapters for.
    """
    assert finetune.lora is not None
    halves = dict(_halves(trained, dialect, shape))
    shapes = trained.shapes
    kinds = {name: Kind(code, (half.end - half.first, shapes[half.path][1])) for name, half in halves.items()}

    def blocks(name: str) -> Iterable[np.ndarray]:
        values, stored = trained.rows(*halves[name])
        return [tensorfile.cast(values, stored, code)]

    written = tensorfile.write(to / WHOLE, kinds, blocks, {"format": "pt"})
    table = _config(finetune.lora, dialect, shape, [name for name in halves if name.endswith("lora_A.weight")], base)
    (to / CONFIG).write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return written


def _halves(trained: Values, dialect: Dialect, shape: Shape) -> Iterator[tuple[str, _Half]]:
    """PEFT's name of each matrix, and what it is of plait's."""
    weights = {weight.path: weight for weight in dialect.weights(shape)}
    shapes = trained.shapes
    if beside := sorted(path for path in shapes if ".lora." not in path):
        raise CheckpointError(
            f"--adapter: {beside[0]} was trained beside the adapters, which a folder of adapters does not hold; leave it out"
        )
    for a in sorted(path for path in shapes if path.endswith(".lora.a.weight")):
        layer = a.removesuffix(".lora.a.weight")
        for source, first in weights[f"{layer}.weight"].spans():
            name = f"base_model.model.{source.name.removesuffix('.weight')}"
            yield f"{name}.lora_A.weight", _Half(a, 0, shapes[a][0])
            yield f"{name}.lora_B.weight", _Half(f"{layer}.lora.b.weight", first, first + source.rows)


def _config(lora: spec.Lora, dialect: Dialect, shape: Shape, halves: list[str], base: str | None) -> dict[str, Any]:
    adapted = {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in halves}
    sources = [source for weight in dialect.weights(shape) for source in weight.sources]
    last = {module.rpartition(".")[2] for module in adapted}
    alike = {
        source.name.removesuffix(".weight") for source in sources if source.name.endswith(".weight") and source.name.split(".")[-2] in last
    }
    return {
        "peft_type": "LORA",
        "task_type": _TASKS.get(shape.model.family, "CAUSAL_LM"),
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(last if alike == adapted else adapted),
        "fan_in_fan_out": any(source.transposed for source in sources),
        "bias": "none",
        "inference_mode": True,
    }
