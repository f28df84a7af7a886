"""Draws one_curve.svg: one run file in fp64 with 1, 2 and 3 replicas, one of the runs killed and resumed.

    .venv/bin/python docs/pictures/one_curve.py      what runs/one_curve does not hold yet is trained first, in some minutes

Upper panel: the loss of each committed step, out of the runs' events.jsonl. Lower panel: how far each run is from the first.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from plait import events, spec
from plait.errors import WorkerFailed
from plait.ledger import journal
from plait.tasks.pretrain import train
from plait.testing.failures import SignalAt

HERE = Path(__file__).parent
RUNS = Path("runs/one_curve")
PICTURE = HERE / "one_curve.svg"
KILLED_AT, STEPS = 170, 300
RUN_FILE = "examples/austen.toml"
SETTINGS = [
    "train.precision=fp64",
    "model.dropout=0.1",
    "model.layers=3",
    "model.width=96",
    "data.sequence=64",
    "train.batch=16",
    "train.micro_batch=8",
    f"train.duration={STEPS} steps",
    "train.evaluate_every=1000 steps",
    "train.log_every=50 steps",
    "checkpoint.every=50 steps",
    "watch.tensorboard=false",
]
INK, STRANDS = "#7d8590", ("#7cc4f0", "#fb8500", "#a23bd6")
WIDTHS = (8.5, 4.2, 1.4)


def main() -> None:
    names = ["1 replica", "2 replicas, shares 3 : 1", f"3 replicas, one killed at step {KILLED_AT}; resumed with 2"]
    _train("alone", ["layout.replicas=1"])
    _train("two", ["layout.replicas=2", "balance.capacity=[3, 1]"])
    with contextlib.suppress(WorkerFailed):
        _train("killed", ["layout.replicas=3"], SignalAt(KILLED_AT, replica=1))
    _train("killed", ["layout.replicas=2"])
    curves = [events.committed(journal.read(RUNS / name / "events.jsonl")) for name in ("alone", "two", "killed")]
    print(f"{PICTURE}: at most {draw(dict(zip(names, curves, strict=True))):.1e} apart")


def draw(curves: dict[str, list[events.Step]]) -> float:
    """Writes the picture; returns the largest relative difference in loss between the first curve and another."""
    plt.rcParams |= {"font.size": 11, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK}
    plt.rcParams |= {"ytick.color": INK, "svg.hashsalt": "plait", "font.family": "DejaVu Sans"}
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained")
    _draw_losses(upper, curves)
    largest = _draw_differences(lower, curves)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=INK, alpha=0.22, linewidth=0.7)
    figure.savefig(PICTURE, transparent=True, metadata={"Date": None})
    return largest


def _train(name: str, settings: list[str], *listeners: SignalAt) -> None:
    train(spec.load(RUN_FILE, [*SETTINGS, *settings]), RUNS / name, listeners=listeners)


def _draw_losses(axes: Axes, curves: dict[str, list[events.Step]]) -> None:
    for (name, steps), colour, width in zip(curves.items(), STRANDS, WIDTHS, strict=True):
        axes.plot(_steps(steps), [step.loss for step in steps], color=colour, linewidth=width, label=name, solid_capstyle="round")
    killed = next(step.loss for step in next(iter(curves.values())) if step.step == KILLED_AT)
    axes.annotate(
        "SIGKILL",
        (KILLED_AT, killed),
        (KILLED_AT, killed + 0.8),
        ha="center",
        arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkB": 14},
    )
    axes.set_ylabel("loss, nats a token")
    axes.legend(frameon=False, loc="upper right", labelcolor=INK)


def _draw_differences(axes: Axes, curves: dict[str, list[events.Step]]) -> float:
    first, *others = curves.values()
    largest = 0.0
    for steps, colour, size in zip(others, STRANDS[1:], (4.0, 2.0), strict=True):
        apart = [abs(one.loss - other.loss) / abs(one.loss) for one, other in zip(first, steps, strict=True)]
        axes.plot(_steps(steps), [value or None for value in apart], "o", color=colour, markersize=size)  # equal ones have no logarithm
        largest = max(largest, *apart)
    axes.set_yscale("log")
    axes.set_ylim(1e-17, 1e-8)
    axes.set_yticks([1e-16, 1e-12, 1e-8])
    axes.axhline(1e-9, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(STEPS, 6e-10, "tolerance of the proof, 1e-9", ha="right", va="top")
    axes.text(1, 1e-13, f"largest: {largest:.1e}", ha="left", va="bottom")
    axes.set_ylabel("relative\ndifference")
    axes.set_xlabel("step")
    axes.margins(x=0.01)
    return largest


def _steps(steps: list[events.Step]) -> list[int]:
    return [step.step for step in steps]


if __name__ == "__main__":
    main()
