"""plait shrink: a trained model made smaller, and what that saves and costs.

    DIR ── importance ─► fewer layers, heads, neurons ─► zeros ─► int8 ─► OUT, a run's folder
                         trains on by [finetune]         [prune]    is used as it is

Each move may be left out. The folder it writes is a whole model's, of the checkpoint's step, without optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import spec
from plait.data.batches import EvaluationBatches
from plait.errors import UserError
from plait.model import int8, narrow, sparse
from plait.model.moe import mixtures
from plait.replica.assemble import assemble, kept_paths
from plait.tasks import whole
from plait.tasks.evaluate import data_of, micro_batch_of
from plait.tasks.trained import Trained, load
from plait.train.folder import check_floats, read_about

IMPORTANCE = ("taylor", "magnitude")
PATTERNS = ("free", "2:4")
SIZES = {
    "layers": "--layers",
    "decoder_layers": "--decoder-layers",
    "heads": "--heads",
    "hidden": "--hidden",
    "expert_hidden": "--expert-hidden",
}
"""Settings of [model] that can become smaller, and the options that say so."""


@dataclass(frozen=True)
class Wish:
    """What is to become of a model. sizes: new values of SIZES. importance: by what is chosen; sequences: of the training split, that
    "taylor" looks at. sparsity, pattern: weights that become zero at once. rounded: int8.MODES."""

    sizes: dict[str, int]
    importance: str = "taylor"
    sequences: int = 64
    sparsity: float | None = None
    pattern: str = "free"
    rounded: str | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--importance", self.importance, IMPORTANCE),
            ("--pattern", self.pattern, PATTERNS),
            ("--int8", self.rounded or int8.MODES[0], int8.MODES),
        ):
            if value not in known:
                raise UserError(f"{option} {value}: is none of {', '.join(known)}")
        if self.pattern == "2:4" and self.sparsity is not None:
            raise UserError("--pattern 2:4 makes half of each matrix zero; leave --sparsity out")

    @property
    def empty(self) -> bool:
        return not (self.sizes or self.sparsity is not None or self.pattern != "free" or self.rounded)


def shrink(folder: str | Path, out: str | Path, wish: Wish, device: spec.Device = "auto") -> Path:
    """Write the newest checkpoint of a run, made smaller, as a run's folder; returns the checkpoint's.

    Raises UserError: sizes that cannot be, a model whose parts plait does not know; CheckpointError: no data to learn importance from, no
    place to write.
    """
    check_floats(Path(folder), "are not made smaller once more")
    trained = load(folder, device)
    model = trained.run.model
    if model.family not in spec.Model.FAMILIES:
        known = ", ".join(spec.Model.FAMILIES)
        raise UserError(f'{folder}: plait does not know the parts of model.family = "{model.family}"; plait shrink is for {known}')
    if trained.run.adapted:
        raise UserError(f"{folder}: holds adapters; merge them first: plait merge {folder} --out ...")
    run, values = trained.run, _values(trained)
    if wish.sizes:
        smaller = resized(model, wish.sizes)
        kept = narrow.choose(model, smaller, _scores(trained, wish, values))
        values = narrow.cut_out(model, values, kept)
        run = _of(run, _counted(smaller, kept.layers))
    _zero(values, wish)
    if wish.rounded:
        values = _rounded(run, trained, values, wish.rounded)
    return whole.write(trained, run.model_copy(update={"finetune": None}), Path(out), values, wish.rounded)


def resized(model: spec.Model, sizes: dict[str, int]) -> spec.Model:
    """The settings of a smaller model. Raises UserError: larger than it was, or no whole number of key heads."""
    had = {
        "layers": model.layers,
        "decoder_layers": model.all_layers - model.layers,
        "heads": model.heads,
        "hidden": 0 if model.family == "moe" and not model.dense_layers else model.hidden_width,
        "expert_hidden": model.mixture.hidden if model.family == "moe" else 0,
    }
    for name, size in sizes.items():
        if not had[name]:
            instead = "; its experts have --expert-hidden" if name == "hidden" else ""
            raise UserError(f'{SIZES[name]}: model.family = "{model.family}" has no {name}{instead}')
        if not 1 <= size <= had[name]:
            raise UserError(f"{SIZES[name]} {size}: the model has {name} = {had[name]}; choose from 1 to {had[name]}")
    table = model.model_dump(exclude_none=True) | _sides(model, sizes)
    if (heads := sizes.get("heads")) is not None:
        table |= _heads(model, heads)
    table |= {name: sizes[name] for name in ("hidden", "expert_hidden") if name in sizes}
    table.pop("recompute_layers", None)
    return spec.Model.model_validate(table)


def _sides(model: spec.Model, sizes: dict[str, int]) -> dict[str, Any]:
    """Layers. How wide what is left out was, its settings tell no more once another size is there: all are written down."""
    table: dict[str, Any] = {"layers": sizes.get("layers", model.layers), "hidden": model.hidden_width, "head_size": model.head_width}
    if model.family == "t5":
        table["decoder_layers"] = sizes.get("decoder_layers", model.all_layers - model.layers)
    if model.family == "moe":
        table |= {"expert_hidden": model.mixture.hidden, "dense_layers": min(model.dense_layers or 0, table["layers"] - 1)}
    return table


def _counted(model: spec.Model, layers: list[int]) -> spec.Model:
    """The first layers of a mixture's model are plain ones, and how many of them have stayed, is known now."""
    if not model.dense_layers:
        return model
    dense = sum(layer < model.dense_layers for layer in layers)
    return model.model_copy(update={"dense_layers": dense})


def _heads(model: spec.Model, heads: int) -> dict[str, Any]:
    shared = model.heads // model.key_value_heads
    if heads % shared:
        works = [size for size in (heads - heads % shared, heads + shared - heads % shared) if size]
        raise UserError(f"--heads {heads}: {shared} query heads share a key head, and go together; use {' or '.join(map(str, works))}")
    return {"heads": heads} | ({} if model.kv_heads is None else {"kv_heads": heads // shared})


def _values(trained: Trained) -> dict[str, Tensor]:
    """Parameters and kept buffers by path, apart from the model's own."""
    state = trained.module.state_dict()
    return {path: state[path].detach().clone() for path in sorted(kept_paths(trained.module))}


def _of(run: spec.Run, model: spec.Model) -> spec.Run:
    """The run with another model; how it was spread may not fit any more."""
    table = {name: section for name, section in run.resolved().items() if name not in ("layout", "balance", "elastic", "finetune", "prune")}
    return spec.parse(table | {"model": model.model_dump(mode="json", exclude_none=True)}).model_copy(update={"alerts": run.alerts})


def _scores(trained: Trained, wish: Wish, values: dict[str, Tensor]) -> narrow.Scores:
    model = trained.run.model
    if wish.importance == "magnitude":
        return narrow.by_magnitude(model, values)
    taylor = narrow.Taylor(model)
    parameters = dict(trained.module.named_parameters())
    for gradients in _gradients(trained, parameters, wish.sequences):
        taylor.add(values, gradients)
    return taylor.scores()


def _gradients(trained: Trained, parameters: dict[str, torch.nn.Parameter], sequences: int) -> Iterable[dict[str, Tensor]]:
    """Of the loss of each micro-batch, of sequences spread evenly over the training split, without dropout."""
    batches = EvaluationBatches(data_of(trained.folder, trained.run).split("train", trained.run.data.sequence), sequences)
    size = micro_batch_of(trained)
    for mixture in mixtures(trained.module):
        mixture.router.begin(0.0)  # the loss alone, not what balances experts
    for first in range(0, batches.size, size):
        trained.module.zero_grad()
        trained.compute.loss(batches.read(first, min(first + size, batches.size)), learning=False).backward()
        yield {path: torch.zeros_like(value) if value.grad is None else value.grad for path, value in parameters.items()}


def _zero(values: dict[str, Tensor], wish: Wish) -> None:
    """Make weights zero, in place: those that [prune] would by its usual patterns."""
    if wish.sparsity is None and wish.pattern == "free":
        return
    prune = spec.Prune(sparsity=wish.sparsity or 0.0)
    for path, value in values.items():
        if prune.fits(path, value.ndim):
            if wish.pattern == "2:4" and value.shape[-1] % 4:
                raise UserError(f"--pattern 2:4: {path} has rows of {value.shape[-1]}, which are no whole number of fours")
            chosen = sparse.two_of_four(value) if wish.pattern == "2:4" else sparse.smallest([value], [int(prune.final * value.numel())])[0]
            value.masked_fill_(chosen, 0.0)


def _rounded(run: spec.Run, trained: Trained, values: dict[str, Tensor], mode: Any) -> dict[str, Tensor]:
    """What a checkpoint of the same model has once its weights are int8."""
    vocabulary = read_about(trained.folder)["identity"]["data.vocabulary"]
    module = assemble(run.model_copy(update={"finetune": None}), vocabulary, torch.device("cpu")).module
    module.load_state_dict(values, strict=False)  # but for what is tied
    int8.round_weights(module, mode)
    state = module.state_dict()
    return {path: state[path] for path in kept_paths(module)}
