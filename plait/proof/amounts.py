"""Figures as people read them."""

from __future__ import annotations

import math

from plait.proof.comparison import Spread


def seconds(value: float) -> str:
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    return f"{value:,.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def milliseconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms" if value >= 0.01 else f"{1e3 * value:.2f} ms"


def power_of_ten(value: float) -> str:
    """Of seconds: 0.01 is "10 ms"."""
    return f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms" if value >= 1e-3 else f"{1e6 * value:g} µs"


def size(value: float) -> str:
    """Of bytes."""
    for unit, whole in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= whole:
            return f"{value / whole:,.1f} {unit}"
    return f"{value:,.0f} B"


def rate(value: float) -> str:
    return f"{size(value)}/s"


def percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"


def loss(value: float) -> str:
    return f"{value:.4f}"


def accuracy(value: float) -> str:
    return f"{100 * value:.2f}%"


def perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def count(value: float) -> str:
    for unit, whole in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= whole:
            return f"{value / whole:g}{unit}"
    return f"{value:g}"


def tick(value: float, y_range: tuple[float, float]) -> str:
    """As many decimals as tell ticks apart."""
    decimals = max(0, 1 - math.floor(math.log10(y_range[1] - y_range[0])))
    return f"{value:.{min(decimals, 9)}f}".replace("-", "−")


def difference(spread: Spread, scale: float, decimals: int) -> str:
    deviation = "" if spread.deviation is None else f" ± {scale * spread.deviation:.{decimals}f}"
    return f"{scale * spread.mean:+.{decimals}f}{deviation}".replace("-", "−")


def ratio(spread: Spread) -> str:
    """ "0.74×", and of what is much less the fraction: "1/48"."""
    if 0 < spread.mean < 0.1:
        return f"1/{1 / spread.mean:.0f}"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.2f}"
    return f"{spread.mean:.2f}{deviation}×"
