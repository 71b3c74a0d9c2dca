"""Is the difference between two trainings more than chance? Statistics of runs that are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats


class Difference(NamedTuple):
    """A mean paired difference with its spread, 95 % confidence interval and p-value.

    sd, low, high and p are None where the values show no spread: for one pair, or if all differences are equal.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean (Student, 1908), or None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Compare `values` with `baseline`, pair by pair, by a two-sided paired t test (Student, 1908)."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    centre = fmean(differences)
    sd = stdev(differences) if len(differences) > 1 else 0.0
    if sd <= 1e-12 * abs(centre):  # rounding makes equal differences look a little unequal
        return Difference(centre, None, None, None, None)
    low, high = mean_interval(differences) or (centre, centre)
    t = centre / (sd / math.sqrt(len(differences)))
    return Difference(centre, sd, low, high, float(2 * stats.t.sf(abs(t), len(differences) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return `p_values` corrected for multiple comparisons (Holm, 1979), in the same order."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def seeds_needed(effect: float, *, alpha: float = 0.05, power: float = 0.8, most: int = 10_000) -> int | None:
    """Return how many pairs a two-sided paired t test needs to show an effect with the given power.

    effect: the mean difference divided by the standard deviation of the differences (Cohen's d_z, 1988).
    Returns None if more than `most` pairs are needed.
    """
    if _power(most, effect, alpha) < power:
        return None
    enough, too_few = most, 1
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if _power(middle, effect, alpha) >= power else (enough, middle)
    return enough


def _power(pairs: int, effect: float, alpha: float) -> float:
    """Return the chance that a two-sided paired t test of `pairs` pairs shows `effect`, in its own direction."""
    critical = stats.t.isf(alpha / 2, pairs - 1)
    return float(stats.nct.sf(critical, pairs - 1, abs(effect) * math.sqrt(pairs)))
