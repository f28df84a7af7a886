"""The learning rate of each step.

        lr ┤    ╭───────╮                  warm-up rises in a straight line to lr at step `warmup`;
           │   ╱         ╲                 then one of
           │  ╱           ╲                  constant  stays
           │ ╱             ╲                 cosine    half a cosine down to floor * lr
     floor ┤╱               ╰─               linear    a straight line down to floor * lr
           └┬───┬────────────┬→ step         wsd       stays, then falls in a straight line over the last `decay` steps
            1   warmup       steps

The rate is a function of the step alone: a resumed run needs no state of it. This file does not import torch.
"""

from __future__ import annotations

import math

from plait import spec


def rate(schedule: spec.Schedule, lr: float, step: int, steps: int, warmup: int, decay: int) -> float:
    """The learning rate of `step`, counted from 1, in a run of `steps`.

    `warmup` and `decay` are in steps; `decay` matters to "wsd" alone. The last step has floor * lr, unless the warm-up fills the
    whole run or the run is one step long: then nothing is left to fall. Steps after the last keep its rate.
    Sources: cosine, Loshchilov and Hutter 2017 (SGDR), section 3; wsd, Hu et al. 2024 (MiniCPM), section 4.
    """
    if step < warmup:
        return lr * step / warmup
    peak = max(warmup, 1)
    if schedule.name == "constant":
        return lr
    if schedule.name == "wsd":
        peak = max(peak, steps - decay)
    fallen = _share(step, peak, steps)
    left = 0.5 * (1 + math.cos(math.pi * fallen)) if schedule.name == "cosine" else 1 - fallen
    return lr * (schedule.floor + (1 - schedule.floor) * left)


def _share(step: int, first: int, last: int) -> float:
    """How much of the way from `first` to `last` is behind, in [0, 1]."""
    return min(max(step - first, 0) / (last - first), 1.0) if last > first else 0.0
