"""The figure of the field: every name touches nothing and shows which dot it belongs to."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from benchmarks import tables
from benchmarks.field import plot_field

OURS = [("Net", 7602, 99.59, 0.065), ("Nano", 2854, 99.47, 0.051), ("Attempt2", 5550, 99.47, 0.05)]
PUBLISHED = [(7496, 99.56), (6750, 99.5), (7878, 99.47), (6022, 99.43), (5550, 99.07)]
FAMILY = [(7602, 99.59), (580, 98.6), (2854, 99.47), (1400, 99.2), (5000, 99.55)]
CROWD = [(7758, 99.63), (7758, 99.61), (7432, 99.51), (6174, 99.47), (6342, 99.45), (5196, 99.4), (1936, 99.1)]


def family() -> list[dict[str, Any]]:
    keys = {"name": "", "spread": 0.05, "kind": "family"}
    return [keys | {"parameters": parameters, "accuracy": accuracy} for parameters, accuracy in FAMILY]


def field(*published: tuple[int, float]) -> list[dict[str, Any]]:
    entries = [
        {"name": name, "parameters": parameters, "accuracy": accuracy, "spread": spread, "kind": "ours"}
        for name, parameters, accuracy, spread in OURS
    ]
    return entries + [
        {"name": f"{accuracy:.2f}", "parameters": parameters, "accuracy": accuracy, "spread": None, "kind": "published"}
        for parameters, accuracy in published
    ]


def test_points_spreads_and_lines_are_those_given():
    figure = plot_field(field(*PUBLISHED), limit=8000, target=99.4)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [entry["name"] for entry in field(*PUBLISHED)]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("single run" in text for text in legend) and "limit, 8,000 parameters" in legend
    ours, published = axes.containers
    assert list(ours.lines[0].get_ydata()) == [99.59, 99.47, 99.47] and ours.has_yerr
    assert published.lines[0].get_markerfacecolor() == "white" and not published.has_yerr
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines["limit, 8,000 parameters"].get_xdata()) == {8000}
    assert set(lines["target, 99.4 %"].get_ydata()) == {99.4}
    assert axes.get_xscale() == "linear"
    assert plot_field(field((10**6, 99.2))).axes[0].get_xscale() == "log"


def test_a_family_is_a_line_without_names_from_its_smallest_network():
    axes = plot_field([*family(), *field(*PUBLISHED)]).axes[0]
    (line,) = [container.lines[0] for container in axes.containers if "no smaller one" in container.get_label()]
    assert list(line.get_xdata()) == sorted(parameters for parameters, _ in FAMILY) and line.get_linestyle() == "-"
    assert [text.get_text() for text in axes.texts] == [entry["name"] for entry in field(*PUBLISHED)]


@pytest.mark.parametrize(
    "entries",
    [field(*PUBLISHED), field(*PUBLISHED, *CROWD), [*field(*PUBLISHED, *CROWD), *family()], tables.field_entries()],
    ids=["few", "a crowd", "a family", "the result files"],
)
def test_every_name_touches_nothing_and_shows_its_dot(entries):
    axes = plot_field(entries).axes[0]
    dots = axes.transData.transform([(entry["parameters"], entry["accuracy"]) for entry in entries])
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    things = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    for entry, (x, _) in zip(entries, dots, strict=True):
        if entry["spread"]:
            low, high = (axes.transData.transform((0, entry["accuracy"] + way * entry["spread"]))[1] for way in (-1, 1))
            things.append(Bbox.from_extents(x - 4, low, x + 4, high))
    (x, y), frame = axes.transData.transform((8000, 99.4)), axes.get_window_extent()
    things += [Bbox.from_extents(x, frame.y0, x + 1, frame.y1), Bbox.from_extents(frame.x0, y, frame.x1, y + 1)]
    curve = [dots[at] for at, entry in enumerate(entries) if entry["kind"] == "family"]
    curve.sort(key=lambda dot: dot[0])
    for at, box in enumerate(boxes):
        assert not (curve and Path(curve).intersects_bbox(box, filled=False)), entries[at]["name"]
        assert not any(box.overlaps(other) for other in (*things, *boxes[:at])), entries[at]["name"]
        assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
        gaps = [gap(box, dot) for dot in dots]
        arrow = axes.texts[at].arrow_patch
        if arrow.get_visible():  # the line ends at the dot, and starts at the name
            start, *_, end = arrow.get_path().vertices
            assert math.dist(end, dots[at]) < 10 and gap(box, start) < 4
        else:  # near its dot, and far from the others
            others = [
                gaps[other] for other, dot in enumerate(dots) if tuple(dot) != tuple(dots[at])
            ]  # the family has Net, too
            assert gaps[at] < 15 and min(others) > 2 * gaps[at], entries[at]["name"]


def gap(box: Bbox, point) -> float:
    return math.hypot(max(box.x0 - point[0], point[0] - box.x1, 0), max(box.y0 - point[1], point[1] - box.y1, 0))


def test_it_can_be_saved_whatever_the_names():
    plot_field([field()[0] | {"name": "$x^$"}]).savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "entries is empty"),
        ([{"name": "Net"}], "lacks accuracy"),
        ([field()[0] | {"kind": "theirs"}], "'theirs'"),
        ([field()[0] | {"accuracy": math.nan}], "nan"),
        ([field()[0] | {"parameters": 0}], "above 0"),
    ],
)
def test_entries_that_do_not_fit_are_refused_by_name(entries, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        plot_field(entries)
