"""Which layouts fit a model and its sequences, told before any process starts: both settings that do not agree, and what would.

layout.tensor = 3 does not divide model.heads = 4; layout.tensor = 2 works
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from plait.spec.layout import Layout
from plait.spec.model import Model
from plait.spec.objective import SIDES_EVEN


def misfit(layout: Layout, model: Model, sequence: int) -> str | None:
    """Why a layout does not fit, and the nearest one along that axis which does; None where it fits.

    A user's own model says what it can when it is cut: of it only sequences are known here.
    """
    if model.family == "t5":
        sequence = SIDES_EVEN  # which source and target are multiples of
    for axis in Layout.INNER:
        reason = next(_reasons(axis, layout, model, sequence), None)
        if reason is not None:
            return f"{reason}; {_nearest(axis, layout, model, sequence)}"
    return None


def stages_of(layout: Layout) -> int:
    """Stages of a pipeline: two on each rank under schedules that take turns between them."""
    return layout.pipeline * (2 if layout.schedule in ("interleaved", "zero_bubble") else 1)


def place_of(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Where a rank stands along each axis of a mesh; the last axis changes fastest."""
    place = {}
    for axis in reversed(list(sizes)):
        rank, place[axis] = divmod(rank, sizes[axis])
    return {axis: place[axis] for axis in sizes}


def _nearest(axis: str, layout: Layout, model: Model, sequence: int) -> str:
    for size in range(getattr(layout, axis) - 1, 1, -1):
        smaller = layout.model_copy(update={axis: size})
        if next(_reasons(axis, smaller, model, sequence), None) is None:
            return f"layout.{axis} = {size} works"
    return f"leave layout.{axis} out"


def _reasons(axis: str, layout: Layout, model: Model, sequence: int) -> Iterator[str]:
    if getattr(layout, axis) > 1:
        yield from _RULES[axis](layout, model, sequence)


def _tensor(layout: Layout, model: Model, sequence: int) -> Iterator[str]:
    size, name = layout.tensor, f"layout.tensor = {layout.tensor}"
    cut = {} if ":" in model.family else {"heads": model.heads, "kv_heads": model.key_value_heads, "hidden": model.hidden_width}
    for setting, value in cut.items():
        if value % size:
            yield f"{name} does not divide model.{setting} = {value}"
    if (sequence // layout.context) % size and ":" not in model.family:
        each = f" / layout.context = {sequence // layout.context}" if layout.context > 1 else ""
        yield f"{name} does not divide {_positions(model, sequence)}{each}, which its ranks share between matrices"


def _context(layout: Layout, model: Model, sequence: int) -> Iterator[str]:
    size, name = layout.context, f"layout.context = {layout.context}"
    if layout.context_by == "ring":
        if sequence % (2 * size):
            yield f"{name} cuts a sequence into {2 * size} pieces, which do not divide {_positions(model, sequence)}"
        return
    if sequence % size:
        yield f"{name} does not divide {_positions(model, sequence)}"
    heads = {} if ":" in model.family else {"heads": model.heads, "kv_heads": model.key_value_heads}
    for setting, value in heads.items():
        if value % (size * layout.tensor):
            with_tensor = f" x layout.tensor = {layout.tensor}" if layout.tensor > 1 else ""
            yield f'{name}{with_tensor} does not divide model.{setting} = {value}, as context_by = "ulysses" needs ("ring" does not)'


def _pipeline(layout: Layout, model: Model, sequence: int) -> Iterator[str]:
    stages = stages_of(layout)
    name = f"layout.pipeline = {layout.pipeline}" + (f' under schedule = "{layout.schedule}"' if stages != layout.pipeline else "")
    if stages > model.all_layers:
        yield f"{name} makes {stages} stages of {_layers(model)}"
    elif layout.stages is not None and (len(layout.stages) != stages or sum(layout.stages) != model.all_layers):
        yield (
            f"layout.stages = {layout.stages} names {len(layout.stages)} stages of {sum(layout.stages)} layers, "
            f"and {name} has {stages} of {_layers(model)}"
        )


def _positions(model: Model, sequence: int) -> str:
    return f"data.sequence = {sequence}" if model.family != "t5" else f"the multiples of {sequence} that source and target have positions"


def _layers(model: Model) -> str:
    decoding = f" + model.decoder_layers = {model.all_layers - model.layers}" if model.family == "t5" else ""
    return f"model.layers = {model.layers}{decoding}"


def _expert(layout: Layout, model: Model, sequence: int) -> Iterator[str]:
    if model.family != "moe" and ":" not in model.family:
        yield f'layout.expert = {layout.expert} spreads experts, and model.family = "{model.family}" has none'
    elif model.family == "moe" and model.mixture.experts % layout.expert:
        yield f"layout.expert = {layout.expert} does not divide model.experts = {model.mixture.experts}"


def _shard(layout: Layout, model: Model, sequence: int) -> Iterator[str]:
    yield from ()


_RULES = {"tensor": _tensor, "context": _context, "pipeline": _pipeline, "expert": _expert, "shard": _shard}
