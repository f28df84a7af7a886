"""Draws elastic.svg: a run of three replicas of which one is killed, out of its journal.

.venv/bin/python docs/pictures/elastic.py      what runs/elastic does not hold yet is trained first, in a minute
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from plait import events, spec
from plait.ledger import journal
from plait.tasks.pretrain import train
from plait.testing.failures import SignalAt

HERE = Path(__file__).parent
RUN = Path("runs/elastic")
PICTURE = HERE / "elastic.svg"
KILLED_AT, KILLED, STEPS = 14, 1, 26
SETTINGS = [
    "layout.replicas=3",
    "train.precision=fp32",
    "train.batch=12",
    "train.micro_batch=2",
    "data.sequence=64",
    f"train.duration={STEPS} steps",
    "train.evaluate_every=1000 steps",
    "checkpoint.every=1000 steps",
    "watch.tensorboard=false",
]
INK, STRANDS = "#7d8590", ("#7cc4f0", "#fb8500", "#a23bd6")


def main() -> None:
    train(spec.load("examples/austen.toml", SETTINGS), RUN, listeners=[SignalAt(KILLED_AT, replica=KILLED)])
    draw(journal.read(RUN / "events.jsonl"))
    print(PICTURE)


def draw(history: list[events.Event]) -> None:
    lost = next(event for event in history if isinstance(event, events.Lost))
    steps = [event for event in history if isinstance(event, events.Step) and event.time - lost.time > -0.35]
    steps = [step for step in steps if len(step.shares) < 3 or step.step < KILLED_AT + 8]
    plt.rcParams |= {"font.size": 11, "text.color": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    plt.rcParams |= {"axes.labelcolor": INK, "svg.hashsalt": "plait", "font.family": "DejaVu Sans"}
    figure, axes = plt.subplots(figsize=(9, 2.9), layout="constrained")
    for step in steps:
        _draw_step(axes, step, lost.time)
    _mark(axes, history, lost)
    axes.set_yticks(range(3), [f"replica {replica}" for replica in range(3)])
    axes.set_xlabel("seconds since the kill")
    axes.set_ylim(2.5, -1.0)
    axes.set_xlim(-0.4, max(step.time for step in steps) - lost.time + 0.02)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.savefig(PICTURE, transparent=True, metadata={"Date": None})


def _draw_step(axes: Axes, step: events.Step, zero: float) -> None:
    """A bar for each replica's part: solid for a share, outlined for a unit without one."""
    begin = step.time - zero - step.seconds
    for replica, ranges in step.shares.items():
        samples = sum(end - first for first, end in ranges)
        colour = STRANDS[int(replica)]
        face = colour if samples else "none"
        axes.barh(int(replica), step.seconds * 0.94, left=begin, height=0.56, color=face, edgecolor=colour, linewidth=1.2)
        if samples:
            axes.text(begin + step.seconds * 0.47, int(replica), str(samples), ha="center", va="center", color="white", fontsize=8)
    axes.text(begin + step.seconds * 0.47, -0.52, str(step.step), ha="center", va="center", fontsize=8)


def _mark(axes: Axes, history: list[events.Event], lost: events.Lost) -> None:
    axes.plot(0, lost.replica, "x", color="#d1242f", markersize=10, markeredgewidth=2.5)
    axes.text(0, lost.replica + 0.42, "SIGKILL", fontsize=9, ha="center", va="center", color="#d1242f")
    for event in history:
        at = event.time - lost.time
        if isinstance(event, events.Joined) and at > 0:
            axes.text(at, event.replica - 0.42, "joins", fontsize=9, ha="center", va="center", color=INK)
        if isinstance(event, events.Regrouped):
            axes.axvline(at, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(at, -0.86, f"generation {event.generation}", fontsize=8, ha="center", va="center")


if __name__ == "__main__":
    main()
