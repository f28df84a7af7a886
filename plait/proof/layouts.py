"""Promise 1, proved on your machine: the curve of one process, and that of each layout beside it.

    reference          one process, fp64
    noise floor        the same, micro-batches cut otherwise: its own sums, re-associated
    layout 1, 2, ...   the same run spread over processes of this host

Three differences are taken, each relative: the largest of the losses and of the gradient norms over all steps, and in the end of the
parameters: the norm of the difference over the norm of what training changed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.data.tokens import Prepared
from plait.errors import PlaitError, RunFileError, UserError
from plait.ledger import journal
from plait.model.build import build
from plait.tasks.pretrain import prepare, train
from plait.train import manifest
from plait.train.base import settle
from plait.train.checkpoint import load
from plait.watch.listener import Listener

STEPS = 10
Layout = dict[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """The design's: relative, in fp64, over any length."""

    loss: float = 1e-9
    grad_norm: float = 1e-7
    params: float = 1e-6


@dataclass(frozen=True)
class Compared:
    """How far a run is from the reference. why: what kept it from ending; the differences are then infinite."""

    layout: Layout
    loss: float
    grad_norm: float
    params: float
    ok: bool
    why: str | None = None


@dataclass(frozen=True)
class Report:
    tolerance: Tolerance
    floor: Compared
    layouts: list[Compared]
    left_out: dict[str, str]
    """layouts that the model does not fit, and why"""

    @property
    def ok(self) -> bool:
        return all(compared.ok for compared in self.layouts)

    def as_dict(self) -> dict[str, Any]:
        """JSON's form; numbers that are not finite are null."""
        plain = {
            "tolerance": asdict(self.tolerance),
            "floor": _row(self.floor),
            "layouts": [_row(compared) for compared in self.layouts],
        }
        return {**plain, "left_out": self.left_out, "ok": self.ok}


def verify_layouts(
    run: spec.Run,
    layouts: Sequence[Layout] | None = None,
    steps: int = STEPS,
    told: Callable[[Compared], None] = lambda _: None,
    nursery: Nursery | None = None,
) -> Report:
    """Train `steps` steps of a run in one process and under each layout, and compare. told: of the floor and each layout, as they end.

    layouts: settings of [layout] each; when left out, every axis alone and products that the model fits.
    Raises UserError: a layout that is given and does not fit.
    """
    run = settle(run)
    chosen, left_out = _chosen(run, layouts)
    proven = for_proof(run, steps)
    with tempfile.TemporaryDirectory(prefix="plait-proof-") as folder, ExitStack() as stack:
        prover = Prover(proven, prepare(proven), Path(folder), nursery or stack.enter_context(Nursery(many=True)))
        floor = prover.compare({}, micro_batch=_other_micro_batch(proven))
        told(floor)
        compared = []
        for layout in chosen:
            compared.append(prover.compare(layout))
            told(compared[-1])
    return Report(prover.tolerance, floor, compared, left_out)


def defaults(run: spec.Run) -> Iterator[Layout]:
    """Each axis at 2, at 4 where that means something, products of two and three, and replicas over some."""
    yield from ({axis: 2} for axis in ("tensor", "shard", "context", "pipeline", "expert", "replicas"))
    yield from ({"shard": 2, "zero": 1}, {"context": 2, "context_by": "ulysses"})
    yield from ({axis: 4} for axis in ("tensor", "shard", "context", "pipeline", "expert"))
    yield from ({"tensor": 2, "pipeline": 2}, {"shard": 2, "tensor": 2}, {"pipeline": 2, "shard": 2}, {"context": 2, "tensor": 2})
    yield from ({"expert": 2, "shard": 2}, {"pipeline": 2, "shard": 2, "tensor": 2})
    yield from ({"replicas": 2, "tensor": 2}, {"replicas": 2, "pipeline": 2})


def parse_layout(text: str) -> Layout:
    """ "tensor=2,pipeline=2,schedule=gpipe" as settings. Raises RunFileError."""
    layout: Layout = {}
    for entry in text.split(","):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or name not in spec.Layout.model_fields:
            raise RunFileError(f"{text!r} is no layout; write axis=size, for example tensor=2,pipeline=2")
        layout[name] = int(value) if value.isdigit() else value
    return layout


def named(layout: Layout) -> str:
    return " ".join(f"{name}={value}" for name, value in layout.items()) or "noise floor"


class Prover:
    """Holds the reference; `compare` trains another way and says how far it went from it."""

    def __init__(self, run: spec.Run, prepared: Prepared, folder: Path, nursery: Nursery) -> None:
        self.tolerance = Tolerance()
        self._run, self._folder, self._nursery = run, folder, nursery
        self._moved: list[Path] = []
        self._start = self._initial(prepared)
        self._curve, self._end = self._train({}, {})

    def compare(
        self,
        layout: Layout,
        sections: dict[str, dict[str, Any]] | None = None,
        faults: Sequence[dict[str, Any]] = (),
        listeners: Sequence[Listener] = (),
        **changes: Any,
    ) -> Compared:
        """sections: settings besides. faults: failures on purpose. listeners: told of its events. changes: of [train]."""
        try:
            curve, end = self._train(layout, {**(sections or {}), "train": changes}, faults, listeners)
        except UserError:
            raise
        except PlaitError as error:
            return Compared(layout, math.inf, math.inf, math.inf, ok=False, why=str(error))
        loss = _furthest([(one.loss, other.loss) for one, other in zip(self._curve, curve, strict=True)])
        grad_norm = _furthest([(one.grad_norm, other.grad_norm) for one, other in zip(self._curve, curve, strict=True)])
        params = self._distance(self._end, end) / self._distance(self._end, self._start)
        most = self.tolerance
        return Compared(layout, loss, grad_norm, params, loss <= most.loss and grad_norm <= most.grad_norm and params <= most.params)

    @property
    def last(self) -> Path:
        """The folder of the last training."""
        return self._moved[-1]

    def _train(
        self,
        layout: Layout,
        sections: dict[str, dict[str, Any]],
        faults: Sequence[dict[str, Any]] = (),
        listeners: Sequence[Listener] = (),
    ) -> tuple[list[events.Step], dict[str, Tensor]]:
        """The curve, and the parameters at its end."""
        run = _changed(self._run, {"layout": layout, **sections})
        out = self._folder / f"run-{len(self._moved)}"
        self._moved.append(out)
        train(run, out, listeners=listeners, nursery=self._nursery, quiet=True, faults=faults)
        steps = events.committed(journal.read(out / "events.jsonl"))
        newest = manifest.latest(out / "checkpoints")
        assert newest is not None
        end = {name: torch.empty_like(value) for name, value in self._start.items()}
        load(newest, end, only="model.")
        return steps, end

    def _initial(self, prepared: Prepared) -> dict[str, Tensor]:
        run = self._run
        module = build(run.model, run.model.rows(prepared.vocabulary), run.data.sequence, run.train.seed, dtype=torch.float64)
        self._without_gradient: dict[str, tuple[int, int]] = getattr(module, "without_gradient", {})
        tied = set(module.state_dict()) - {path for path, _ in module.named_parameters()} - {path for path, _ in module.named_buffers()}
        return {f"model.{path}": value.clone() for path, value in module.state_dict().items() if path not in tied}

    def _distance(self, one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        """The norm of the difference over all values whose true gradient is not zero: those mean nothing."""
        return math.sqrt(math.fsum(float(self._squares(name, (one[name] - other[name]).double())) for name in one))

    def _squares(self, name: str, difference: Tensor) -> Tensor:
        for pattern, (first, end) in self._without_gradient.items():
            if fnmatchcase(name.removeprefix("model."), pattern):
                difference[first:end] = 0.0
        return difference.square().sum()


def _chosen(run: spec.Run, layouts: Sequence[Layout] | None) -> tuple[list[Layout], dict[str, str]]:
    if layouts is not None:
        for layout in layouts:
            _changed(run, {"layout": layout})
        return list(layouts), {}
    chosen, left_out = [], {}
    for layout in defaults(run):
        try:
            _changed(run, {"layout": layout})
            chosen.append(layout)
        except RunFileError as error:
            left_out[named(layout)] = str(error).removeprefix("run: ")
    return chosen, left_out


def for_proof(run: spec.Run, steps: int) -> spec.Run:
    """The same training, short and in fp64, in one process, and told to nobody."""
    table = run.resolved()
    table["train"] |= {"duration": f"{steps} steps", "precision": "fp64"}
    table["train"].pop("evaluate_every", None)
    if table["train"]["micro_batch"] == "auto":
        table["train"]["micro_batch"] = max(1, run.train.largest_batch // 4)
    for section in ("layout", "balance", "elastic", "alerts", "watch"):
        table.pop(section, None)
    if run.prune is not None:  # within the few steps
        table["prune"] |= {"begin": "1 steps"} | ({} if run.prune.pattern == "2:4" else {"end": f"{steps} steps", "every": "1 steps"})
    table["checkpoint"] = {}
    table["watch"] = {"tensorboard": False}
    return spec.parse(table)


def _changed(run: spec.Run, changes: dict[str, dict[str, Any]]) -> spec.Run:
    table = run.resolved()
    if "layout" in changes:
        table.pop("balance", None)
    for section, settings in changes.items():
        table[section] = {**table.get(section, {}), **settings} if section != "layout" else settings
    return spec.parse(table)


def _other_micro_batch(run: spec.Run) -> int:
    assert run.train.micro_batch != "auto"
    return 1 if run.train.micro_batch > 1 else min(2, run.train.largest_batch)


def _furthest(pairs: list[tuple[float, float]]) -> float:
    return max(abs(one - other) / abs(one) if one else abs(other) for one, other in pairs)


def _row(compared: Compared) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(compared).items()}
