"""Geometry of the sweep page's pictures: scales, ticks and marks in px, nothing of files or HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from raydrd.report.curve import Tick, nice_ticks
from raydrd.report.trials import fence

LETTER = 6.4  # px of a letter at the charts' 12 px
CLASSES = 5  # colours of a line, from the lowest metric to the highest


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    title: str
    point: int | None = None  # number of the point, which the page marks in all its pictures at once
    kind: str = ""


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]
    title: str = ""
    point: int | None = None
    kind: str = ""

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)

    @property
    def heights(self) -> str:
        return " ".join(f"{y:.1f}" for _, y in self.points)


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    whole: str = ""  # what was cut
    kind: str = ""
    anchor: str = "start"


@dataclass(frozen=True)
class Plot:
    """A picture in a box `left..right`, `top..bottom`; lines without a point are a grid or a help."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    label: str
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """From values to px. `log` needs both ends above 0; a value outside stays at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, own = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, own = math.log(low), math.log(high), math.log(own)
        share = (own - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[Tick]:
        values = log_ticks(self.low, self.high, count) if self.log else nice_ticks(self.low, self.high, count)
        return [Tick(self.at(value), text) for value, text in zip(values, tick_texts(values), strict=True)]


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.0) -> Scale:
    """The scale that holds all values, with a share of their range to spare on both sides; log only above 0."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log and low > 0:
        spare = (high / low) ** margin if high > low else 1.5
        return Scale(low / spare, high * spare, start, end, log=True)
    spare = margin * (high - low) if high > low else abs(high) * 0.05 or 0.05
    return Scale(low - spare, high + spare, start, end)


def metric_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """The scale of a dev metric. A few values far below the rest do not flatten it: they lie at its edge."""
    least = fence(values)
    return scale([v for v in values if v >= least], start, end, margin=0.06)


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten within [low, high], with their halves and fifths where there is room; at most `count`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
        found = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(found) <= count:
            break
    found = found[:: math.ceil(len(found) / count)] if len(found) > count else found
    return found if len(found) > 1 else [low, high]


def tick_texts(values: Sequence[float]) -> list[str]:
    """`0.55`, `0.60`: the same decimals for all; large and small numbers in three figures."""
    big = max((abs(v) for v in values), default=0.0)
    steps = [abs(b - a) for a, b in zip(values, values[1:], strict=False) if b != a]
    if not 1e-3 <= big < 1e6 or (steps and min(steps) < 1e-4 * big):
        return [plain(v) for v in values]
    digits = min(6, max(0, math.ceil(-math.log10(min(steps)) - 1e-9))) if steps else 3
    uneven = steps and max(steps) > 1.5 * min(steps)
    return [plain(v) if uneven else f"{v:,.{digits}f}".replace("-", "−") for v in values]


def plain(value: float) -> str:
    """Three figures: `0.05`, `3.1e−5`, `12,000`."""
    if value and not 1e-3 <= abs(value) < 1e6:
        digits, power = f"{value:.2e}".split("e")
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return f"{digits}e{int(power)}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def cut(text: str, room: float) -> str:
    """The text, or its beginning, in `room` px."""
    letters = max(1, int(room / LETTER))
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def cut_front(text: str, room: float) -> str:
    """As `cut`, but the end stays: that of a dotted name says most."""
    letters = max(1, int(room / LETTER))
    return text if len(text) <= letters else f"…{text[len(text) - letters + 1 :].lstrip()}"


def words(x: float, y: float, text: str, room: float, *, anchor: str = "start", kind: str = "", front: bool = False) -> Text:
    """A text in `room` px; what was cut is said on hovering."""
    shown = (cut_front if front else cut)(text, room)
    return Text(x, y, shown, text if shown != text else "", kind, anchor)


def colour(value: float, low: float, high: float) -> int:
    """The class of a value, 0 (lowest) to 4."""
    share = (value - low) / (high - low) if high > low else 1.0
    return min(CLASSES - 1, max(0, int(share * CLASSES)))


def apart(heights: Sequence[float], *, least: float, top: float, bottom: float) -> list[float]:
    """The heights moved so that texts there do not overlap: at least `least` px apart, in the order they had."""
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    placed = [min(max(heights[n], top), bottom) for n in order]
    for n in range(1, len(placed)):
        placed[n] = max(placed[n], placed[n - 1] + least)
    over = placed[-1] - bottom if placed else 0.0
    if over > 0:
        placed[-1] -= over
        for n in range(len(placed) - 2, -1, -1):
            placed[n] = min(placed[n], placed[n + 1] - least)
    found = [0.0] * len(heights)
    for n, height in zip(order, placed, strict=True):
        found[n] = round(height, 1)
    return found


def spread(count: int, room: float, most: float) -> list[float]:
    """Offsets that lay `count` marks side by side around 0, at most `most` px apart and within `room` px in all."""
    step = min(most, room / max(1, count - 1))
    return [round((n - (count - 1) / 2) * step, 2) for n in range(count)]
