"""Small charts as SVG text, for a page that needs nothing but itself: lines with error bars, and bars side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDE, TALL, LEFT, BELOW, ABOVE, RIGHT = 460, 250, 56, 40, 14, 12
Placing = Callable[[float], float]
COLOURS = ("#1f5fa8", "#c2571a", "#4a8f3c", "#7a4fa3")


class Spot(NamedTuple):
    """A point of a line: where, how high, and its interval."""

    x: float
    y: float
    low: float
    high: float


def lines(series: Mapping[str, Sequence[Spot]], x_label: str, y_label: str, *, log_x: bool = False, level: float | None = None) -> str:
    """Lines through points with their intervals; `level` is drawn across, dashed: the floor."""
    spots = [spot for line in series.values() for spot in line]
    across = Scale([spot.x for spot in spots], LEFT, WIDE - RIGHT, log_x)
    heights = [edge for spot in spots for edge in (spot.low, spot.high)] + ([] if level is None else [level])
    up = Scale([*heights, 0.0], TALL - BELOW, ABOVE, False)
    parts = [frame(x_label, y_label, sorted({spot.x for spot in spots}), across, ticks(heights), up)]
    if level is not None:
        y, right = up(level), WIDE - RIGHT
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{right}" y="{y - 4:.1f}" text-anchor="end" fill="#666">real data</text>')
    for (name, line), colour in zip(series.items(), COLOURS, strict=False):
        path = " ".join(f"{across(spot.x):.1f},{up(spot.y):.1f}" for spot in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"><title>{escape(name)}</title></polyline>')
        for spot in line:
            x, (y, low, high) = across(spot.x), map(up, spot[1:])
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{spot.x:g}: {spot.y:.4g}</title></circle>')
    return wrapped(parts)


def bars(groups: Mapping[str, Mapping[str, float]], y_label: str) -> str:
    """For each name (along x) a bar of each of the same few kinds, with a legend."""
    kinds = list(next(iter(groups.values())))
    up = Scale([value for group in groups.values() for value in group.values()] + [0.0], TALL - BELOW, ABOVE + 12, False)
    step = (WIDE - LEFT - RIGHT) / len(groups)
    heights = [value for group in groups.values() for value in group.values()]
    parts = [frame("", y_label, [], lambda _: 0.0, ticks(heights), up)]
    for number, (name, group) in enumerate(groups.items()):
        begin, thick = LEFT + number * step + 0.15 * step, 0.7 * step / len(kinds)
        for k, kind in enumerate(kinds):
            y = up(group[kind])
            parts.append(
                f'<rect x="{begin + k * thick:.1f}" y="{y:.1f}" width="{thick:.1f}" height="{TALL - BELOW - y:.1f}" fill="{COLOURS[k]}">'
                f"<title>{escape(name)}, {escape(kind)}: {group[kind]:.4g}</title></rect>"
            )
        parts.append(f'<text x="{begin + 0.35 * step:.1f}" y="{TALL - BELOW + 15}" text-anchor="middle">{escape(name)}</text>')
    for k, kind in enumerate(kinds):
        x = LEFT + 8 + 110 * k
        parts.append(f'<rect x="{x}" y="4" width="10" height="10" fill="{COLOURS[k]}"/><text x="{x + 14}" y="13">{escape(kind)}</text>')
    return wrapped(parts)


class Scale:
    """From values to places on the page, linear or logarithmic."""

    def __init__(self, values: Sequence[float], first: float, last: float, log: bool) -> None:
        self.log, self.first, self.last = log, first, last
        placed = [self._at(value) for value in values]
        self.low, self.high = min(placed), max(placed)
        margin = 0.05 * (self.high - self.low) or 0.5
        self.high += margin
        self.low -= margin if self.low else 0.0

    def _at(self, value: float) -> float:
        return math.log(value) if self.log else value

    def __call__(self, value: float) -> float:
        return self.first + (self._at(value) - self.low) / (self.high - self.low) * (self.last - self.first)


def ticks(values: Sequence[float]) -> list[float]:
    """About four round numbers, 0 among them, from the smallest value, or 0, to the largest."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    size = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(size / 3))
    step = next(step * factor for factor in (1, 2, 5, 10) if size / (step * factor) <= 5)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def frame(x_label: str, y_label: str, at: Sequence[float], across: Placing, heights: Sequence[float], up: Placing) -> str:
    """Axes, their numbers and names."""
    bottom, middle = TALL - BELOW, (TALL - BELOW + ABOVE) / 2
    parts = [f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#444"/>']
    for height in heights:
        y = up(height)
        parts.append(f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{height:.4g}</text>')
    for value in at:
        parts.append(f'<text x="{across(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDE) / 2:.0f}" y="{TALL - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


def wrapped(parts: Sequence[str]) -> str:
    """The picture."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {TALL}" width="{WIDE}" height="{TALL}" font-size="11" fill="#222">'
    return head + "".join(parts) + "</svg>"
