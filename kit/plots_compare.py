"""The figure of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kit.comparisons import MEASURES, finished
from kit.plots import BLUE, GREY, INK, ORANGE, new_figure, styled, widest
from kit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def plot_comparison(variants: Sequence[str], runs: Sequence[dict[str, Any]]) -> Figure:
    """Plot the final test accuracy and loss of each variant: a dot per seed, the mean and its 95 % interval.

    variants: the names, the baseline first. runs: dictionaries as `compare` returns them; failed ones are left out.
    The dashed line is the mean of the baseline.
    """
    figure, panels = new_figure(9 + 0.07 * widest(variants), 1.5 + 0.5 * len(variants), 2, sharey=True)
    for axes, (measure, key) in zip(panels, MEASURES.items(), strict=True):
        for place, name in enumerate(variants):
            values = [run[key][-1] for run in finished(runs, name).values()]
            if values:
                _draw_row(axes, place, values, BLUE if place == 0 else ORANGE)
            else:
                axes.annotate(
                    "no finished run", (0.02, place), xycoords=("axes fraction", "data"), va="center", color=GREY
                )
        if first := finished(runs, variants[0]):
            axes.axvline(fmean(run[key][-1] for run in first.values()), color=BLUE, linestyle="--", zorder=0)
        axes.set(xlabel="test accuracy (%)" if measure == "accuracy" else "test loss", ylim=(len(variants) - 0.4, -0.6))
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(True, axis="x")
    panels[0].set_yticks(range(len(variants)), [f"{variants[0]}\n(baseline)", *variants[1:]])
    for label, look in (
        ("one seed", {"marker": "o", "color": GREY, "alpha": 0.7}),
        ("mean and its 95 % interval", {"marker": "d", "color": INK, "linestyle": "-", "markersize": 7}),
    ):
        panels[0].plot([], [], **{"linestyle": "", **look}, label=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_row(axes: Any, place: int, values: list[float], colour: str) -> None:
    """Draw the seeds on a line of their own, the mean and interval just below."""
    axes.plot(values, [place - 0.12] * len(values), "o", color=colour, alpha=0.75, markersize=5, markeredgewidth=0)
    centre, interval = fmean(values), mean_interval(values)
    if interval is not None:
        axes.plot(interval, [place + 0.14] * 2, "|-", color=colour, markersize=7, linewidth=2)
    axes.plot(centre, place + 0.14, "d", color=colour, markersize=7)
