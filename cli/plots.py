"""Plots as SVG, and the trees of elements that pages are made of. Text is escaped when a tree is written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.etree.ElementTree import Element

WIDTH, HEIGHT = 760, 320
"""Of a plot, in pixels."""

LEFT, RIGHT, TOP, BOTTOM = 72, 48, 12, 44
"""The margins around what is plotted: for the axes' labels, and for the names at the ends of curves."""

NAME_WIDTH, NAME_HEIGHT = 34, 11
"""How much room a series' name takes, in pixels."""

SHARE_ROW = 18
"""The height of a row of shares, in pixels."""

MOST_POINTS = 200
"""A curve is drawn through so many of its points at most."""

Point = TypeVar("Point")


@dataclass(frozen=True)
class Series:
    """Points of one plot that belong together: a curve, or a single bar."""

    name: str
    """What stands beside it."""
    title: str
    """What is said of it under the pointer."""
    group: str
    """Series of one group have one colour."""
    points: Sequence[tuple[float, float]]


def element(tag: str, *children: str | Element, **attributes: object) -> Element:
    """An element of a page. `_` in the name of an attribute stands for `-`; one behind it is left out."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return made


def colours(groups: Iterable[str]) -> dict[str, str]:
    """The class that gives each group its colour."""
    return {name: f"colour-{number % 6}" for number, name in enumerate(dict.fromkeys(groups))}


def legend(groups: Mapping[str, str]) -> Element:
    """What the colours stand for."""
    items = [element("li", element("span", class_=f"key {colour}"), name) for name, colour in groups.items()]
    return element("ul", *items, class_="legend")


def curves(title: str, across: str, up: str, series: Sequence[Series], groups: Mapping[str, str]) -> Element:
    """Curves over a logarithmic axis, from points with positive first numbers, each marked at its end.

    Where names would overlap, the earlier series have none.
    """
    all_points = [point for each in series for point in each.points]
    lowest = max(min((x for x, _y in all_points), default=1), 1)
    highest = max([lowest * 2, *(x for x, _y in all_points)])
    ticks = _round_ticks(max((y for _x, y in all_points), default=0))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        share = math.log(max(point[0], lowest) / lowest) / math.log(highest / lowest)
        return LEFT + (WIDTH - LEFT - RIGHT) * share, _y_of(point[1], ticks[-1])

    plot = _plot(title, across, up, ticks)
    for tick in _logarithmic_ticks(lowest, highest):
        plot.append(_label(f"{tick:,}", place((tick, 0))[0], HEIGHT - BOTTOM + 16, "middle"))
    named: list[tuple[float, float]] = []
    for each in reversed(series):
        places = [place(point) for point in _thinned(each.points)]
        if not places:
            continue
        end_x, end_y = places[-1]
        curve = element(
            "g",
            element("title", each.title),
            element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_="curve"),
            element("circle", cx=f"{end_x:.1f}", cy=f"{end_y:.1f}", r=3, class_="mark"),
            class_=groups[each.group],
        )
        if all(abs(end_x - x) > NAME_WIDTH or abs(end_y - y) > NAME_HEIGHT for x, y in named):
            named.append((end_x, end_y))
            curve.append(_label(each.name, end_x + 6, end_y + 4, "start"))
        plot.append(curve)
    return plot


def bars(title: str, across: str, up: str, series: Sequence[Series], groups: Mapping[str, str]) -> Element:
    """A bar for each series, which has one point, with its name below; names that would overlap are left out."""
    ticks = _round_ticks(max((y for each in series for _x, y in each.points), default=0))
    plot = _plot(title, across, up, ticks)
    room = (WIDTH - LEFT - RIGHT) / max(len(series), 1)
    wide = min(room * 0.8, 40)
    every = math.ceil(NAME_WIDTH / room)
    for number, each in enumerate(series):
        ((_x, value),) = each.points
        top, middle = _y_of(value, ticks[-1]), LEFT + room * (number + 0.5)
        bar = element(
            "rect",
            element("title", each.title),
            x=f"{middle - wide / 2:.1f}",
            y=f"{top:.1f}",
            width=f"{wide:.1f}",
            height=f"{HEIGHT - BOTTOM - top:.1f}",
            class_=f"bar {groups[each.group]}",
        )
        plot.append(bar)
        if (len(series) - 1 - number) % every == 0:
            plot.append(_label(each.name, middle, HEIGHT - BOTTOM + 16, "middle"))
    return plot


def shares(title: str, rows: Sequence[tuple[str, float, str]]) -> Element:
    """A bar for each row: its name, a share from 0 to 1, and what stands behind it."""
    height, start, room = SHARE_ROW * len(rows) + 4, 160, 340
    plot = _svg(title, height)
    for number, (name, share, text) in enumerate(rows):
        top = number * SHARE_ROW
        plot.append(_label(name, start - 8, top + 13, "end"))
        plot.append(element("rect", x=start, y=top + 3, width=room, height=12, class_="track"))
        plot.append(element("rect", x=start, y=top + 3, width=f"{room * share:.1f}", height=12, class_="bar colour-0"))
        plot.append(_label(text, start + room + 8, top + 13, "start"))
    return plot


def text_bars(points: Sequence[tuple[int, int]], most_rows: int, width: int) -> list[tuple[int, int, str]]:
    """A plot in plain characters: of some of the points, both numbers and a bar for the second."""
    highest = max((y for _x, y in points), default=0)
    return [(x, y, "#" * round(width * y / max(highest, 1))) for x, y in _thinned(points, most_rows)]


def _thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Some of the points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _svg(title: str, height: int) -> Element:
    return element("svg", element("title", title), viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=title)


def _plot(title: str, across: str, up: str, ticks: Sequence[float]) -> Element:
    """A plot that has its axes, and lines at the ticks of the upright one."""
    plot = _svg(title, HEIGHT)
    for tick in ticks:
        y = f"{_y_of(tick, ticks[-1]):.1f}"
        plot.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid" if tick else "axis"))
        plot.append(_label(f"{tick:,.0f}", LEFT - 8, float(y) + 4, "end"))
    plot.append(_label(across, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "middle"))
    upright = _label(up, 0, 0, "middle")
    upright.set("transform", f"translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)")
    plot.append(upright)
    return plot


def _y_of(value: float, highest: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / highest


def _label(text: str, x: float, y: float, anchor: str) -> Element:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _round_ticks(highest: float) -> list[float]:
    """Four or five round numbers from 0 to one that isn't less than the highest."""
    rough = max(highest, 1) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough), 1.0)
    return [step * number for number in range(math.ceil(max(highest, 1) / step) + 1)]


def _logarithmic_ticks(lowest: float, highest: float) -> list[int]:
    """Round numbers within a range: powers of ten, and unless it is wide, their doubles and fives."""
    factors = (1, 2, 5) if highest / lowest < 1000 else (1,)
    decades = range(math.floor(math.log10(lowest)), math.floor(math.log10(highest)) + 1)
    return [factor * 10**decade for decade in decades for factor in factors if lowest <= factor * 10**decade <= highest]
