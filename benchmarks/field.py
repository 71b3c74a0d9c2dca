"""The figure of the field: the accuracy of this kit's networks and of published ones, against their parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kit.plots import BLUE, GREY, RED, new_figure, round_ticks, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox


FAMILY = "family"
KINDS = ("ours", "published", FAMILY)


@styled
def plot_field(entries: Sequence[dict[str, Any]], *, limit: int = 8000, target: float = 99.4) -> Figure:
    """Plot accuracy against parameters: these networks with their spread, among published results.

    entries: dicts of name, parameters, accuracy (percent, the mean), spread (standard deviation or None) and kind:
        "ours" or "published", each with its name beside it, or "family", without a name and joined by a line.
    limit, target: a number of parameters and a percentage, drawn as lines.
    Raises ValueError for an entry that lacks a key or holds another value.
    """
    _check_entries(entries)
    family = sorted((entry for entry in entries if entry["kind"] == FAMILY), key=lambda entry: entry["parameters"])
    entries = [*(entry for entry in entries if entry["kind"] != FAMILY), *family]
    figure, axes = new_figure(9, 5.5)
    for kind, label, style in (
        (
            FAMILY,
            "Net at each size that no smaller one beats",
            {"fmt": "o-", "color": BLUE, "capsize": 2, "markersize": 4},
        ),
        ("ours", "this kit, mean ± standard deviation over seeds", {"fmt": "o", "color": BLUE, "capsize": 3}),
        (
            "published",
            "published: single run, or best of several",
            {"fmt": "o", "color": RED, "markerfacecolor": "white"},
        ),
    ):
        if chosen := [entry for entry in entries if entry["kind"] == kind]:
            x, y = [entry["parameters"] for entry in chosen], [entry["accuracy"] for entry in chosen]
            spread = [entry.get("spread") or 0 for entry in chosen] if kind != "published" else None
            axes.errorbar(x, y, spread, label=label, **{"markersize": 7, **style})
    _scale_sizes(axes, [limit, *(entry["parameters"] for entry in entries)])
    axes.margins(y=0.12)
    axes.axvline(limit, color=GREY, linestyle="--", label=f"limit, {limit:,} parameters")
    axes.axhline(target, color=GREY, linestyle=":", label=f"target, {target:g} %")
    axes.set(xlabel="parameters", ylabel="test accuracy (%)")
    axes.grid(True)
    figure.legend(loc="outside upper center", ncols=2)
    figure.draw_without_rendering()  # settles the layout, so that names can be measured where they will stand
    figure.set_layout_engine("none")
    _place_names(axes, entries, limit, target)
    return figure


def _check_entries(entries: Sequence[dict[str, Any]]) -> None:
    if not entries:
        raise ValueError("entries is empty, expected dicts of name, parameters, accuracy, spread and kind")
    for entry in entries:
        if missing := {"name", "parameters", "accuracy", "kind"} - set(entry):
            raise ValueError(f"entries: {entry} lacks {', '.join(sorted(missing))}; add it")
        if not all(isinstance(entry[name], int | float) for name in ("parameters", "accuracy")):
            raise ValueError(f"entries: {entry} has parameters or accuracy that are no number")
        if entry["kind"] not in KINDS:
            raise ValueError(f"entries: {entry['name']} has kind {entry['kind']!r}, expected one of {', '.join(KINDS)}")
        if not (entry["parameters"] > 0 and 0 <= entry["accuracy"] <= 100):
            raise ValueError(f"entries: {entry}, expected parameters above 0 and an accuracy from 0 to 100 percent")


def _scale_sizes(axes: Any, sizes: Sequence[int]) -> None:
    """A linear axis from 0; a logarithmic one if the sizes span more than a factor of thirty."""
    axes.set_xlim(0, 1.15 * max(sizes))
    if max(sizes) > 30 * min(sizes):
        axes.set(xscale="log", xlim=(min(sizes) / 1.6, max(sizes) * 1.6))
        axes.minorticks_off()
        axes.set_xticks(round_ticks(min(sizes) / 1.6, max(sizes) * 1.6))
    axes.xaxis.set_major_formatter("{x:,.0f}")


# ---- Names ----

NEAR = 13  # pixels from the middle of a dot: a name no further away may do without a line to it
TOUCHED = 1000  # the cost of touching something, far above that of any distance
# Right, left, above and below come first, then what lies between.
ANGLES = sorted(range(0, 360, 15), key=lambda degrees: (degrees % 90 > 0, degrees % 180 > 0))


class _Place(NamedTuple):
    """Where a name may stand: its box, the point of it next to the dot, and whether a line joins the two."""

    box: Bbox
    edge: tuple[float, float]
    dot: tuple[float, float]
    joined: bool


def _place_names(axes: Any, entries: Sequence[dict[str, Any]], limit: int, target: float) -> None:
    """Write each name beside its dot, or joined to it by a line, where it touches no line, dot or other name.

    Each name has many places around its dot. Entries without a name come last.
    """
    from matplotlib.path import Path

    points = [(entry["parameters"], entry["accuracy"]) for entry in entries]
    dots = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    bars = [_bar(axes, entry, dot) for entry, dot in zip(entries, dots, strict=True)]
    lines = _lines(axes, limit, target)
    curve = Path([dot for entry, dot in zip(entries, dots, strict=True) if entry["kind"] == FAMILY] or dots[:1])
    named = [(entry, point) for entry, point in zip(entries, points, strict=True) if entry["kind"] != FAMILY]
    texts = [_text(axes, entry["name"], point) for entry, point in named]
    options: list[list[tuple[float, _Place]]] = []
    for at, text in enumerate(texts):
        others = [bar for bar, dot in zip(bars, dots, strict=True) if dot != dots[at]]
        around = _places(text.get_window_extent(), dots[at], dots)
        costs = [(_own_cost(place, bars[at], others, lines, curve, axes.bbox), place) for place in around]
        options.append(sorted(costs, key=lambda pair: pair[0]))
    crowded = sorted(range(len(texts)), key=lambda at: sum(math.dist(dots[at], dot) for dot in dots))
    for text, place in zip(texts, _choose(options, crowded), strict=True):
        _move(text, place)


def _choose(options: list[list[tuple[float, _Place]]], order: list[int]) -> list[_Place]:
    """Return the place of each name, given its own (cost, place) pairs, the cheapest first.

    Each name in turn takes its best place beside the others', three times over. Who comes first matters, so `order`
    is tried from each of its names on until nothing touches.
    """
    found: list[tuple[float, list[_Place]]] = []
    for first in range(len(order)):
        chosen: dict[int, tuple[float, _Place]] = {}
        for at in (order[first:] + order[:first]) * 3:
            names = [place for number, (_, place) in chosen.items() if number != at]
            chosen[at] = _best(options[at], names)
        found.append((sum(cost for cost, _ in chosen.values()), [chosen[at][1] for at in sorted(chosen)]))
        if all(cost < TOUCHED for cost, _ in chosen.values()):
            break
    return min(found, key=lambda pair: pair[0])[1] if found else []


def _best(options: list[tuple[float, _Place]], names: Sequence[_Place]) -> tuple[float, _Place]:
    """Return the cheapest of `options`, with its cost beside the other names."""
    best = (math.inf, options[0][1])
    for cost, place in options:
        if cost >= best[0]:  # and so are all that follow
            break
        best = min(best, (cost + TOUCHED * _touched(place, names), place), key=lambda pair: pair[0])
    return best


def _bar(axes: Any, entry: dict[str, Any], dot: tuple[float, float]) -> Bbox:
    """What a dot and its error bar cover."""
    from matplotlib.transforms import Bbox

    top = axes.transData.transform((entry["parameters"], entry["accuracy"] + (entry.get("spread") or 0)))[1]
    reach = max(top - dot[1], 4) + 2
    return Bbox.from_extents(dot[0] - 6, dot[1] - reach, dot[0] + 6, dot[1] + reach)


def _lines(axes: Any, limit: int, target: float) -> list[Bbox]:
    """What the two lines cover."""
    from matplotlib.transforms import Bbox

    (x, y), frame = axes.transData.transform((limit, target)), axes.bbox
    return [Bbox.from_extents(x - 2, frame.y0, x + 2, frame.y1), Bbox.from_extents(frame.x0, y - 2, frame.x1, y + 2)]


def _text(axes: Any, name: str, point: tuple[float, float]) -> Any:
    look = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # covers the grid behind it
    arrow = {"arrowstyle": "-", "color": GREY, "shrinkA": 0, "shrinkB": 5, "relpos": (0.5, 0.5)}
    centred: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    return axes.annotate(name, point, (0, 0), **centred, bbox=look, arrowprops=arrow, zorder=1.9)  # below the dots


def _places(size: Bbox, dot: tuple[float, float], dots: Sequence[tuple[float, float]]) -> list[_Place]:
    """Places for a name of that size all around its dot."""
    from matplotlib.transforms import Bbox

    places = []
    for far in (10, 18, 26, 36, 48, 62, 80, 100, 125):
        for degrees in ANGLES:
            across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            x, y = dot[0] + across * (far + size.width / 2), dot[1] + up * (far + size.height / 2)
            box = Bbox.from_bounds(x - size.width / 2, y - size.height / 2, size.width, size.height)
            gap = math.dist(_edge(box, dot), dot)
            alone = all(math.dist(_edge(box, other), other) > 2.5 * gap for other in dots if other != dot)
            places.append(_Place(box, _edge(box, dot), dot, gap > NEAR or not alone))
    return places


def _own_cost(
    place: _Place, own: Bbox, others: Sequence[Bbox], lines: Sequence[Bbox], curve: Path, frame: Bbox
) -> float:
    """How far the name stands from its dot, and much more for each dot or line that it touches."""
    from matplotlib.path import Path

    box = place.box.padded(3)
    touched = sum(box.overlaps(thing) for thing in (own, *others, *lines)) + curve.intersects_bbox(box, filled=False)
    touched += not (frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1)
    gap = math.dist(place.edge, place.dot)
    cost = max(gap, NEAR)
    if place.joined:
        leader = Path([place.edge, place.dot])
        touched += sum(leader.intersects_bbox(other) for other in others)
        crossed = sum(leader.intersects_bbox(line) for line in lines) + leader.intersects_path(curve, filled=False)
        cost += 15 + 40 * crossed
        cost += 100 * (gap < 16)  # too short to be seen
    return cost + TOUCHED * touched


def _touched(place: _Place, others: Sequence[_Place]) -> int:
    """How many of the other names and their lines this name, or the line to its dot, touches."""
    from matplotlib.path import Path

    box, leader = place.box.padded(3), Path([place.edge, place.dot])
    touched = 0
    for other in others:
        theirs = Path([other.edge, other.dot])
        touched += box.overlaps(other.box) or (other.joined and theirs.intersects_bbox(box))
        touched += place.joined and leader.intersects_bbox(other.box.padded(3))
        touched += place.joined and other.joined and leader.intersects_path(theirs)
    return touched


def _edge(box: Bbox, point: tuple[float, float]) -> tuple[float, float]:
    """The point of `box` that is nearest to `point`."""
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _move(text: Any, place: _Place) -> None:
    """Move `text` to its place; the line to its dot starts at the nearest point of its box."""
    box, points = place.box, 72 / text.figure.dpi
    text.set_position(
        (points * ((box.x0 + box.x1) / 2 - place.dot[0]), points * ((box.y0 + box.y1) / 2 - place.dot[1]))
    )
    text._arrow_relpos = ((place.edge[0] - box.x0) / box.width, (place.edge[1] - box.y0) / box.height)
    text.arrow_patch.set_visible(place.joined)
