"""The figure of a training, or of several, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kit.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, new_figure, round_ticks, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTS = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "learning_rate")
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, INK)
Curves = dict[str, list[float]]  # the name of a list of a History: its values, one for each epoch


@styled
def plot_history(history: Any, *, target: float | None = None) -> Figure:
    """Plot loss, accuracy (percent) and learning rate over the epochs, in three panels.

    history: the History that fit returns, or any object with the same lists, one entry per epoch; NaN leaves a gap.
        A dictionary of name -> history lays several over one another.
    target: an accuracy in percent, drawn as a line. The accuracy axis is zoomed to the later epochs and the
    target; the loss axis is logarithmic if the losses span more than a factor of four.
    """
    if target is not None and not 0 <= target <= 100:
        raise ValueError(f"target is {target}, expected a percentage from 0 to 100, such as 99.4")
    several = isinstance(history, Mapping)
    if several and not history:
        raise ValueError("history is empty, expected a dictionary of name -> history")
    curves = {name: _curves(one) for name, one in history.items()} if several else {"": _curves(history)}
    figure, (loss, accuracy, rate) = new_figure(10, 3.4, 3)
    for number, (name, lists) in enumerate(curves.items()):
        _draw(number, str(name), lists, loss, accuracy, rate)
    if several:
        accuracy.plot([], [], "--", color=GREY, label="training")
    if target is not None:
        accuracy.axhline(target, color=RED, linestyle=":", label=f"target, {target:g} %")
    _scale_loss(loss, curves)
    _scale_accuracy(accuracy, curves, target)
    for axes, title in zip((loss, accuracy, rate), _titles(curves), strict=True):
        axes.set_title(title)
    epochs = max(len(lists["test_loss"]) for lists in curves.values())
    for axes, label in ((loss, "loss (mean per image)"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.set(xlim=(0.5, epochs + 0.5), xticks=range(1, epochs + 1, math.ceil(epochs / 8)))
        axes.grid(True)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _curves(history: Any) -> Curves:
    if missing := [name for name in LISTS if not hasattr(history, name)]:
        raise TypeError(f"history has no {', '.join(missing)}: pass the History that fit returns")
    lists = {name: [float(value) for value in getattr(history, name)] for name in LISTS}
    lengths = {name: len(values) for name, values in lists.items()}
    if not lengths["test_loss"] or len(set(lengths.values())) > 1:
        raise ValueError(f"history has lists of {lengths} entries, expected the same and at least 1: train first")
    return lists


def _draw(number: int, name: str, lists: Curves, loss: Any, accuracy: Any, rate: Any) -> None:
    """Draw one history: alone in two colours, among others in one colour, its training dashed."""
    steps, colour = range(1, len(lists["test_loss"]) + 1), COLOURS[number % len(COLOURS)]
    train = {"color": colour if name else ORANGE, "label": None if name else "train"}
    for axes, part in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(steps, lists[f"train_{part}"], "--" if name else "o--", **train, markerfacecolor="white")
        axes.plot(steps, lists[f"test_{part}"], "o-", color=colour, label=name or "test")
    rate.plot(steps, lists["learning_rate"], "o-", color=colour if name else INK)


def _scale_loss(axes: Any, curves: dict[str, Curves]) -> None:
    losses = _finite(value for lists in curves.values() for value in lists["train_loss"] + lists["test_loss"])
    if losses and 0 < 4 * min(losses) < max(losses):
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_yticks(round_ticks(min(losses) / 1.5, max(losses) * 1.5))
        axes.yaxis.set_major_formatter("{x:g}")


def _scale_accuracy(axes: Any, curves: dict[str, Curves], target: float | None) -> None:
    late, every = [] if target is None else [target], []
    for lists in curves.values():
        tests = lists["test_accuracy"]
        late += [*tests[len(tests) // 4 :], lists["train_accuracy"][-1]]
        every += tests + lists["train_accuracy"]
    if late := _finite(late):
        high = max(_finite([*late, *every]))
        margin = max(0.1 * (high - min(late)), 0.05)
        axes.set_ylim(min(late) - margin, min(high + margin, 100 + margin / 5))


def _titles(curves: dict[str, Curves]) -> tuple[str, str, str]:
    if len(curves) > 1:
        return "loss", "accuracy", "learning rate"
    ((_, lists),) = curves.items()
    best = max(_finite(lists["test_accuracy"]), default=math.nan)
    return (
        f"test loss: last {lists['test_loss'][-1]:.4f}",
        f"test: last {lists['test_accuracy'][-1]:.2f} %, best {best:.2f} %",
        f"learning rate: highest {max(lists['learning_rate']):.2g}",
    )


def _finite(values: Any) -> list[float]:
    return [value for value in values if math.isfinite(value)]
