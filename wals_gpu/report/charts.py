"""Charts as SVG: drawn by what they show, named and described for who does not see them, with their numbers below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wals_gpu.report.html import Content, Element, brief, foreign, h, table
from wals_gpu.report.style import SERIES

__all__ = ["Series", "chart", "columns_chart", "interval_mark", "key", "mark", "short", "stacked", "thinned"]

#: Size of a chart in units of its own; the browser scales it.
WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
#: Points of a curve, rows of the numbers below a chart: more nobody sees.
_POINTS, _ROWS = 160, 24
_SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring")
_DASHES = (None, "7 4", "2 4", "10 3 2 3", "5 2 1 2", "1 3")


@dataclass(frozen=True)
class Series:
    """Numbers that belong together.

    Parameters
    ----------
    name : str
    x, y : (n,) arrays
    style : int, default 0
        Colour and shape.
    kind : {"line", "dots", "points"}, default "line"
        A curve, many small dots, or points with a shape of their own.
    low, high : (n,) arrays, optional
        Intervals of `y`.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    style: int = 0
    kind: str = "line"
    low: ArrayLike | None = None
    high: ArrayLike | None = None


def short(value: Any, digits: int = 3) -> str:
    """A number as people write it: "1,234", "0.0123", "12.3 M"."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if number == int(number) and abs(number) < 1e6:
        return f"{int(number):,}".replace("-", "\u2212")
    size = abs(number)
    if size >= 1e15 or size < 1e-4:
        text = f"{number:.{digits - 1}e}"
    elif size >= 1e6:
        scale, unit = next((s, u) for s, u in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if size >= s)
        text = f"{number / scale:.{digits}g}\u00a0{unit}"
    elif size >= 1000:
        text = f"{number:,.0f}"
    else:
        text = f"{number:.{digits}g}"
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def thinned(values: ArrayLike, most: int = _POINTS) -> NDArray[np.int64]:
    """Positions of at most so many values, the first and the last among them."""
    n = len(np.asarray(values))
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64)) if n else np.arange(0)


def mark(style: int, x: float, y: float, size: float = 4.6) -> Element:
    """The shape of a series, around a point."""
    shape, s = _SHAPES[style % SERIES], size
    name = f"point s{style % SERIES}"
    if shape == "circle":
        return h("circle", cx=_n(x), cy=_n(y), r=_n(s), class_=name)
    if shape == "ring":
        return h("circle", cx=_n(x), cy=_n(y), r=_n(s - 1), class_=f"ring s{style % SERIES}")
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle": [(0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
        "cross": [
            (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2),
            (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
        ],
    }[shape]  # fmt: skip
    return h("polygon", points=" ".join(f"{_n(x + s * a)},{_n(y + s * b)}" for a, b in corners), class_=name)


def key(names: Sequence[tuple[str, int]], *, lines: bool = False) -> Element:
    """What the shapes and colours are; `lines`: of curves."""
    return h("ul", [h("li", sample(style, line=lines), foreign(brief(name))) for name, style in names], class_="key")


def sample(style: int, *, line: bool = False) -> Element:
    """A small picture of a series' shape, beside its name."""
    parts = [mark(style, 12, 7, 5)]
    if line:
        parts.insert(
            0,
            h(
                "path",
                d="M1 7H23",
                class_=f"curve s{style % SERIES}",
                stroke_dasharray=_DASHES[style % SERIES],
            ),
        )
    return h("svg", *parts, viewBox="0 0 24 14", aria_hidden="true", focusable="false")


def _n(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


# ------------------------------------------------------------------------------------------------------------ axes


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    start: float
    stop: float

    def at(self, value: ArrayLike) -> NDArray[np.float64]:
        numbers = np.asarray(value, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            numbers, low, high = np.log10(np.maximum(numbers, low)), math.log10(low), math.log10(high)
        share = (numbers - low) / (high - low)
        placed: NDArray[np.float64] = self.start + np.clip(share, -0.02, 1.02) * (self.stop - self.start)
        return placed

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = [10.0**e * m for e in range(first, last + 1) for m in ((1, 2, 5) if last - first <= 2 else (1,))]
            inside = [v for v in steps if self.low * 0.999 <= v <= self.high * 1.001]
            return inside[:: -(-len(inside) // 7)] if len(inside) > 7 else inside
        step = _nice((self.high - self.low) / 4.5)
        first = math.ceil(self.low / step - 1e-9)
        found = []
        while (first * step) <= self.high + 1e-9 * step:
            found.append(round(first * step, 12))
            first += 1
        return found


def _nice(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)


def _axis(values: Sequence[ArrayLike], log: bool, start: float, stop: float, *, from_zero: bool) -> _Axis:
    every = np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in values])
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    if not every.size:
        return _Axis(1.0 if log else 0.0, 10.0 if log else 1.0, log, start, stop)
    low, high = float(every.min()), float(every.max())
    if log:
        return _Axis(low * 0.93, max(high * 1.07, low * 1.5), True, start, stop)
    if from_zero:
        low = min(low, 0.0)
    if high == low:
        high, low = high + (abs(high) or 1.0) * 0.5, low - (0 if from_zero else (abs(low) or 1.0) * 0.5)
    room = 0.04 * (high - low)
    return _Axis(low if from_zero and low >= 0 else low - room, high + room, False, start, stop)


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str, x_texts: dict[float, str] | None) -> list[Element]:
    parts = []
    for value in y.ticks():
        at = _n(float(y.at(value)))
        parts.append(h("path", d=f"M{_LEFT} {at}H{WIDTH - _RIGHT}", class_="grid"))
        parts.append(h("text", short(value), x=_LEFT - 7, y=at, dy=".33em", text_anchor="end"))
    bottom = HEIGHT - _BOTTOM
    parts.append(h("path", d=f"M{_LEFT} {bottom}H{WIDTH - _RIGHT}", class_="axis"))
    texts = {value: short(value) for value in x.ticks()} if x_texts is None else x_texts
    for value, text in texts.items():
        at = _n(float(x.at(value)))
        parts.append(h("path", d=f"M{at} {bottom}v4", class_="axis"))
        parts.append(h("text", text, x=at, y=bottom + 18, text_anchor="middle"))
    parts.append(h("text", x_label, x=(_LEFT + WIDTH - _RIGHT) // 2, y=HEIGHT - 5, text_anchor="middle"))
    if y_label:
        parts.append(
            h("text", y_label, transform=f"translate(11 {(_TOP + bottom) // 2}) rotate(-90)", text_anchor="middle")
        )
    return parts


# ----------------------------------------------------------------------------------------------------------- charts


def chart(
    slug: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    from_zero: bool = False,
    x_texts: dict[float, str] | None = None,
    rule: float | None = None,
    floor: float | None = None,
) -> Element:
    """Curves, dots or points over two axes, as a figure.

    Parameters
    ----------
    slug : str
        For ids in the page; of no other chart.
    title, description : str
        What it shows, and what there is to see.
    series : sequence of Series
    x_label, y_label : str
    x_log : bool, default False
    from_zero : bool, default False
        Whether the y axis has 0.
    x_texts : dict of float to str, optional
        Ticks of the x axis, where these are no numbers.
    rule : float, optional
        A vertical line.
    floor : float, optional
        The lowest y that is shown; what is below lies at the edge.
    """
    ys = [one for s in series for one in (s.y, s.low, s.high) if one is not None]
    if floor is not None:
        ys = [np.maximum(np.asarray(one, dtype=np.float64), floor) for one in ys]
    x = _axis([s.x for s in series], x_log, _LEFT, WIDTH - _RIGHT, from_zero=False)
    y = _axis(ys, False, HEIGHT - _BOTTOM, _TOP, from_zero=from_zero)
    parts = _frame(x, y, x_label, y_label, x_texts)
    if rule is not None:
        parts.append(h("path", d=f"M{_n(float(x.at(rule)))} {_TOP}V{HEIGHT - _BOTTOM}", class_="rule"))
    for one in series:
        parts += _drawn(one, x, y)
    several = [(s.name, s.style) for s in series]
    legend = key(several, lines=True) if len(several) > 1 else None
    header: list[Content] = [x_label, *(foreign(brief(s.name)) for s in series)]
    return _figure(slug, title, description, parts, legend, header, _numbers(series, x_texts))


def _drawn(one: Series, x: _Axis, y: _Axis) -> list[Element]:
    xs, ys = np.asarray(one.x, dtype=np.float64), np.asarray(one.y, dtype=np.float64)
    there = np.isfinite(xs) & np.isfinite(ys)
    at = np.column_stack([x.at(xs), y.at(ys)])
    name, parts = f"s{one.style % SERIES}", []
    if one.low is not None and one.high is not None:
        ends = np.column_stack([y.at(one.low), y.at(one.high)])
        for row in np.flatnonzero(there):
            d = f"M{_n(at[row, 0])} {_n(ends[row, 0])}V{_n(ends[row, 1])}"
            parts.append(h("path", d=d, class_=f"whisker {name}"))
    at = at[there]
    if one.kind == "dots":
        d = "".join(f"M{_n(a)} {_n(b)}h0" for a, b in at)
        return [*parts, h("path", d=d, class_=f"dots {name}")]
    if one.kind == "line":
        at = at[thinned(at)]
        d = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in at)
        dash = _DASHES[one.style % SERIES]
        parts.append(h("path", d=d, class_=f"curve {name}", stroke_dasharray=dash))
        if len(at) > 40:
            at = at[thinned(at, 7)]
    return parts + [mark(one.style, a, b, 3.6 if one.kind == "line" else 4.6) for a, b in at.tolist()]


def _numbers(series: Sequence[Series], x_texts: dict[float, str] | None) -> list[list[Content]]:
    """Rows of the table below a chart: one for each x, of many some."""
    by_x: dict[float, list[str]] = {}
    for column, one in enumerate(series):
        xs, ys = np.asarray(one.x, dtype=np.float64), np.asarray(one.y, dtype=np.float64)
        for row in thinned(xs, _ROWS):
            text = short(ys[row]) if np.isfinite(ys[row]) else ""
            if one.low is not None and one.high is not None:
                text += f" [{short(np.asarray(one.low)[row])}, {short(np.asarray(one.high)[row])}]"
            by_x.setdefault(float(xs[row]), [""] * len(series))[column] = text
    names = x_texts or {}
    return [[names.get(value, short(value)), *by_x[value]] for value in sorted(by_x)]


def columns_chart(
    slug: str, title: str, description: str, names: Sequence[str], values: Sequence[float], x_label: str, y_label: str
) -> Element:
    """A histogram: a column for each name."""
    n = len(names)
    x = _Axis(-0.5, n - 0.5, False, _LEFT, WIDTH - _RIGHT)
    y = _axis([values], False, HEIGHT - _BOTTOM, _TOP, from_zero=True)
    every = -(-max(len(name) for name in names) * n * 7 // (WIDTH - _LEFT - _RIGHT)) or 1
    parts = _frame(x, y, x_label, y_label, {place: names[place] for place in range(0, n, max(every, 1))})
    width = 0.78 * (WIDTH - _LEFT - _RIGHT) / n
    for place, value in enumerate(values):
        top, bottom = float(y.at(value)), float(y.at(0))
        left = float(x.at(place)) - width / 2
        parts.append(
            h("rect", x=_n(left), y=_n(top), width=_n(width), height=_n(max(bottom - top, 0)), class_="area s0", rx=1.5)
        )
    rows: list[list[Content]] = [[name, short(value)] for name, value in zip(names, values, strict=True)]
    return _figure(slug, title, description, parts, None, [x_label, y_label], rows)


def _figure(
    slug: str,
    title: str,
    description: str,
    parts: Sequence[Element],
    legend: Element | None,
    header: Sequence[Content],
    rows: Sequence[Sequence[Content]],
) -> Element:
    svg = h(
        "svg",
        h("title", title, id=f"{slug}-title"),
        h("desc", description, id=f"{slug}-desc"),
        *parts,
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{slug}-title",
        aria_describedby=f"{slug}-desc",
    )
    caption = h("figcaption", title, h("small", description))
    numbers = h("details", h("summary", "Numbers of this chart"), table(title, header, rows))
    return h("figure", caption, svg, legend, numbers)


# ------------------------------------------------------------------------------------------------ marks in tables


def interval_mark(
    style: int, value: float, low: float | None, high: float | None, range_: tuple[float, float], zero: float | None
) -> Element:
    """A value with its interval as a small picture, for a cell of a table that has the numbers beside.

    Parameters
    ----------
    style : int
    value, low, high : float
    range_ : (float, float)
        What the width of the cell stands for.
    zero : float, optional
        Where to draw a line.
    """
    first, last = range_
    span = (last - first) or 1.0

    def at(number: float) -> float:
        return 3 + 94 * min(max((number - first) / span, 0.0), 1.0)

    parts = []
    if zero is not None:
        parts.append(h("line", x1=f"{_n(at(zero))}%", x2=f"{_n(at(zero))}%", y1="0", y2="100%", class_="zero"))
    stem = f"stem s{style % SERIES}"
    parts.append(h("line", x1=f"{at(zero or 0.0):.2f}%", x2=f"{at(value):.2f}%", y1="50%", y2="50%", class_=stem))
    if low is not None and high is not None:
        parts.append(
            h(
                "line",
                x1=f"{at(low):.2f}%",
                x2=f"{at(high):.2f}%",
                y1="50%",
                y2="50%",
                class_=f"whisker s{style % SERIES}",
            )
        )
    # A shape cannot be placed by per cent; an inner picture can.
    parts.append(h("svg", mark(style, 0, 0, 4.8), x=f"{at(value):.2f}%", y="50%", overflow="visible"))
    return h("svg", *parts, class_="interval", aria_hidden="true", focusable="false")


def stacked(shares: Sequence[float]) -> Element:
    """Up to three shares of a whole as a bar, for a cell of a table that has the numbers beside."""
    drawn, before = [], 0.0
    for part, share in enumerate(shares):
        drawn.append(
            h(
                "rect",
                x=f"{100 * before:.2f}%",
                width=f"{max(100 * share - 0.4, 0):.2f}%",
                y="18%",
                height="64%",
                class_=f"area p{part}",
            )
        )
        before += share
    return h("svg", *drawn, class_="interval", aria_hidden="true", focusable="false")
