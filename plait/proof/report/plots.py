"""Plots as SVG that stands in a page: text stays text, colours and widths are the page's own.

A series has a class, `s0` to `s6`, which the page's style gives a colour in light and in dark, and a dash that tells it apart
without one. Sizes are in units of the view box, which a page shows at about one pixel each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from plait.proof.report.markup import text

Point = tuple[float, float]
Show = Callable[[float], str]
WIDTH = 520
"""Of a plot; two stand beside each other."""
CHARACTER = 6.6
"""The width of one, at 12 pixels."""
BOLD = 7.8
"""Of one in a curve's name."""
_LEFT, _TOP, _LINE = 54, 10, 15


@dataclass(frozen=True)
class Look:
    """colour: 0 to 6, and 0 is the reference's. dash: SVG's; "" is a whole line."""

    colour: int
    dash: str = ""

    @property
    def stroke(self) -> str:
        return f'class="line s{self.colour}"' + (f' stroke-dasharray="{self.dash}"' if self.dash else "")


@dataclass(frozen=True)
class Series:
    """A line by points from left to right; NaN breaks it. wide: drawn broad and pale, for others to lie on."""

    name: str
    look: Look
    points: Sequence[Point]
    wide: bool = False


@dataclass(frozen=True)
class Bar:
    """label: what stands behind it."""

    name: str
    look: Look
    value: float
    label: str


@dataclass(frozen=True)
class Quantiles:
    """Drawn as a line from the middle one to the largest, with a mark at each."""

    name: str
    look: Look
    p50: float
    p95: float
    longest: float


class Scale:
    """From values to places along an axis."""

    def __init__(self, low: float, high: float, first: float, last: float, log: bool = False) -> None:
        self.low, self.high = low, high
        self._log = log
        self._from, self._to = (math.log10(low), math.log10(high)) if log else (low, high)
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        value = math.log10(max(value, self.low)) if self._log else value
        return self._first + (value - self._from) / (self._to - self._from) * (self._last - self._first)

    def ticks(self, about: int = 5) -> list[float]:
        if self._log:
            return [10.0**power for power in range(math.ceil(self._from - 1e-9), math.floor(self._to + 1e-9) + 1)]
        return ticks(self.low, self.high, about)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Series], name: str, x_label: str, y_label: str, y_range: Point, x_show: Show, y_show: Show, height: int = 320
) -> str:
    """Curves from x = 0 on, each named where it ends: beside the plot, or below it where they end at different places."""
    ends = {each.name: end for each in series if (end := _end(each)) is not None}
    x_high = max((x for x, _ in ends.values()), default=1.0) or 1.0
    together = all(x > 0.98 * x_high for x, _ in ends.values())
    right = WIDTH - (14 + BOLD * max((len(name) for name in ends), default=0) if together else 14)
    rows = [] if together else _rows(ends, Scale(0, x_high, _LEFT, right), right)
    bottom = height - 38
    floor = bottom - _LINE * (max(rows, default=-1) + 1) - (4 if rows else 0)
    x, y = Scale(0, x_high, _LEFT, right), Scale(*y_range, floor, _TOP)
    clip = f"clip-{name}"
    drawn = [
        f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP - 4}" width="{right - _LEFT + 4:.0f}" height="{bottom - _TOP + 4}"/></clipPath>',
        *_grid(x, y, bottom, right, x_show, y_show),
        f'<text class="axis" x="{(_LEFT + right) / 2:.0f}" y="{height - 4}" text-anchor="middle">{text(x_label)}</text>',
        *(f'<g clip-path="url(#{clip})">{_path(each, x, y)}</g>' for each in series),
        *(_names_beside(series, ends, x, y, height) if together else _names_below(series, ends, rows, x, y, floor, right)),
    ]
    return _svg(name, height, f"{y_label} over {x_label}", [f'<text class="axis" x="0" y="{_TOP + 2}">{text(y_label)}</text>', *drawn])


def bars(rows: Sequence[Bar], name: str, what: str) -> str:
    """Lengths from zero, with the name before and the figure behind."""
    left = 12 + CHARACTER * max(len(row.name) for row in rows)
    behind = 10 + CHARACTER * max(len(row.label) for row in rows)
    scale = Scale(0, max(*(row.value for row in rows), 1e-300), left, WIDTH - behind)
    drawn = []
    for number, row in enumerate(rows):
        middle = 12 + 24 * number
        drawn += [
            f'<text x="{left - 8:.0f}" y="{middle + 4}" text-anchor="end">{text(row.name)}</text>',
            f'<rect class="fill s{row.look.colour}{" pale" if row.look.dash else ""}" x="{left:.1f}" y="{middle - 8}" '
            f'width="{max(scale(row.value) - left, 1):.1f}" height="16"/>',
            f'<text class="figure" x="{max(scale(row.value), left + 1) + 6:.1f}" y="{middle + 4}">{text(row.label)}</text>',
        ]
    return _svg(name, 24 * len(rows) + 4, what, drawn)


def quantiles(rows: Sequence[Quantiles], name: str, x_label: str, show: Show) -> str:
    """p50 as a disc, p95 as a bar, the longest as a ring, along a logarithmic axis."""
    known = [value for row in rows for value in (row.p50, row.p95, row.longest) if value > 0]
    low, high = 10.0 ** math.floor(math.log10(min(known))), 10.0 ** math.ceil(math.log10(max(known)))
    left = 12 + CHARACTER * max(len(row.name) for row in rows)
    bottom = 24 * len(rows) + 4
    x = Scale(low, high if high > low else 10 * low, left, WIDTH - 16, log=True)
    drawn = [
        part
        for tick in x.ticks()
        for part in (
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom}"/>',
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{text(show(tick))}</text>',
        )
    ]
    for number, row in enumerate(rows):
        middle, colour = 12 + 24 * number, f"s{row.look.colour}"
        p50, p95, longest = x(row.p50), x(row.p95), x(row.longest)
        drawn += [
            f'<text x="{left - 8:.0f}" y="{middle + 4}" text-anchor="end">{text(row.name)}</text>',
            f'<line {row.look.stroke} x1="{p50:.1f}" x2="{longest:.1f}" y1="{middle}" y2="{middle}"/>',
            f'<circle class="fill {colour}" cx="{p50:.1f}" cy="{middle}" r="4.5"/>',
            f'<line class="line {colour}" x1="{p95:.1f}" x2="{p95:.1f}" y1="{middle - 7}" y2="{middle + 7}"/>',
            f'<circle class="ring {colour}" cx="{longest:.1f}" cy="{middle}" r="4"/>',
        ]
    drawn.append(f'<text class="axis" x="{(left + WIDTH) / 2:.0f}" y="{bottom + 32}" text-anchor="middle">{text(x_label)}</text>')
    return _svg(name, bottom + 36, x_label, drawn)


def histogram(counts: dict[int, int], look: Look, name: str, x_label: str) -> str:
    """Shares by whole number from 0 on."""
    last, whole = max(*counts, 4), sum(counts.values())
    width, height, bottom = 250, 150, 112
    slot = (width - 8) / (last + 1)
    tallest = max(counts.values())
    drawn = [f'<line class="grid" x1="4" x2="{width - 4}" y1="{bottom}" y2="{bottom}"/>']
    every = math.ceil((last + 1) / 10)
    for number in range(last + 1):
        centre, count = 4 + slot * (number + 0.5), counts.get(number, 0)
        top = bottom - 86 * count / tallest
        if number % every == 0:
            drawn.append(f'<text class="tick" x="{centre:.1f}" y="{bottom + 15}" text-anchor="middle">{number}</text>')
        if count:
            drawn.append(
                f'<rect class="fill s{look.colour}" x="{centre - slot * 0.4:.1f}" y="{top:.1f}" '
                f'width="{slot * 0.8:.1f}" height="{bottom - top:.1f}"/>'
            )
        if count and slot > 30:
            drawn.append(f'<text class="figure" x="{centre:.1f}" y="{top - 5:.1f}" text-anchor="middle">{_percent(count / whole)}</text>')
    drawn.append(f'<text class="axis" x="{width // 2}" y="{height - 4}" text-anchor="middle">{text(x_label)}</text>')
    return _svg(name, height, x_label, drawn, width)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Centred means over so many values, fewer at both ends; of none but NaN, NaN."""
    known = np.isfinite(values)
    filled, ones = np.where(known, values, 0.0), np.ones(min(window, len(values)))
    counts = np.convolve(known.astype(float), ones, "same")
    means: list[float] = np.where(counts > 0.5, np.convolve(filled, ones, "same") / np.maximum(counts, 1), np.nan).tolist()
    return means


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """As many as can be seen, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[index] for index in np.linspace(0, len(points) - 1, most).round().astype(int)]


def _svg(name: str, height: int, what: str, drawn: Sequence[str], width: int = WIDTH) -> str:
    head = f'<svg id="{name}" viewBox="0 0 {width} {height}" role="img" aria-label="{text(what)}" xmlns="http://www.w3.org/2000/svg">'
    return "\n".join([head, *drawn, "</svg>"])


def _grid(x: Scale, y: Scale, bottom: float, right: float, x_show: Show, y_show: Show) -> list[str]:
    across = [
        f'<line class="grid" x1="{_LEFT}" x2="{right:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{text(y_show(tick))}</text>'
        for tick in y.ticks()
        if y(tick) > _TOP + 12
    ]
    along = [
        f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{text(x_show(tick))}</text>' for tick in x.ticks()
    ]
    return [*across, f'<line class="base" x1="{_LEFT}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>', *along]


def _path(series: Series, x: Scale, y: Scale) -> str:
    drawn, pen = [], "M"
    for at, value in series.points:
        if math.isfinite(value):
            drawn.append(f"{pen}{x(at):.1f} {y(value):.1f}")
        pen = "L" if math.isfinite(value) else "M"
    wide = series.look.stroke.replace('class="line', 'class="line wide') if series.wide else series.look.stroke
    return f'<path {wide} d="{"".join(drawn)}"/>'


def _end(series: Series) -> Point | None:
    return next((point for point in reversed(series.points) if math.isfinite(point[1])), None)


def _names_beside(series: Sequence[Series], ends: dict[str, Point], x: Scale, y: Scale, height: int) -> list[str]:
    """In the order of the curves' ends, pushed apart, each led to from its curve."""
    named = sorted((each for each in series if each.name in ends), key=lambda each: y(ends[each.name][1]))
    places = _apart([min(max(y(ends[each.name][1]), _TOP), height - 38) for each in named], _LINE, _TOP + 4, height - 38)
    return [
        f'<path class="lead s{each.look.colour}" d="M{x(ends[each.name][0]) + 1:.1f} {min(y(ends[each.name][1]), height - 38):.1f}'
        f'L{x(ends[each.name][0]) + 9:.1f} {place:.1f}"/>'
        f'<text class="name s{each.look.colour}" x="{x(ends[each.name][0]) + 12:.1f}" y="{place + 4:.1f}">{text(each.name)}</text>'
        for each, place in zip(named, places, strict=True)
    ]


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Rising places near those wanted, `gap` apart at least, within [low, high] as far as there is room."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else max(place, low))
    over = max(0.0, (places[-1] if places else 0.0) - high)
    places = [place - over for place in places]
    for index in range(len(places) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - gap)
    return _centred(places, list(wanted), gap, low)


def _centred(places: list[float], wanted: list[float], gap: float, low: float) -> list[float]:
    """Each cluster of touching names moved up, as far as it may, to stand around what it names."""
    edges = [0, *(index + 1 for index, (one, other) in enumerate(pairwise(places)) if other - one > gap + 1e-6), len(places)]
    for first, end in pairwise(edges):
        off = sum(places[index] - wanted[index] for index in range(first, end)) / max(1, end - first)
        room = places[first] - (places[first - 1] + gap if first else low)
        for index in range(first, end):
            places[index] -= min(max(off, 0.0), max(room, 0.0))
    return places


def _rows(ends: dict[str, Point], x: Scale, right: float) -> list[int]:
    """For each name a row below the curves, the first in which no other stands in its way."""
    taken: list[list[Point]] = []
    rows = []
    for name, (at, _) in ends.items():
        first, last = _span(name, x(at), right)
        row = next((row for row, spans in enumerate(taken) if all(last < other[0] or first > other[1] for other in spans)), len(taken))
        taken += [[]] if row == len(taken) else []
        taken[row].append((first, last))
        rows.append(row)
    return rows


def _span(name: str, middle: float, right: float) -> Point:
    """Where a name begins and ends that stands around its place, within the plot."""
    half = BOLD * len(name) / 2 + 5
    middle = min(max(middle, _LEFT + half), right - half + 12)
    return middle - half, middle + half


def _names_below(
    series: Sequence[Series], ends: dict[str, Point], rows: list[int], x: Scale, y: Scale, floor: float, right: float
) -> list[str]:
    looks = {each.name: each.look for each in series}
    drawn = []
    for (name, (at, value)), row in zip(ends.items(), rows, strict=True):
        colour, base = f"s{looks[name].colour}", floor + _LINE * (row + 1)
        middle = sum(_span(name, x(at), right)) / 2
        drawn += [
            f'<path class="lead {colour}" d="M{x(at):.1f} {y(value):.1f}V{base - 10:.1f}"/>',
            f'<circle class="fill {colour}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="3"/>',
            f'<text class="name {colour}" x="{middle:.1f}" y="{base:.1f}" text-anchor="middle">{text(name)}</text>',
        ]
    return drawn


def _percent(share: float) -> str:
    return "<1%" if share < 0.01 else f"{share:.0%}"
