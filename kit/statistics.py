"""Is the difference between two trainings more than chance? Statistics of runs that are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy
from scipy import special  # scipy.stats takes a second to import, in every process


class Difference(NamedTuple):
    """A mean paired difference with its spread, 95 % confidence interval and p-value.

    sd, low, high and p are None for one pair, if all differences are equal, and if any value is NaN or infinite.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None


def sample_sd(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample, with n - 1 in the denominator, or None for fewer than two values."""
    if len(values) < 2:
        return None
    with numpy.errstate(invalid="ignore"):  # infinite values, as losses may be, have none: NaN
        return float(numpy.std(values, ddof=1))


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean (Student, 1908), or None for fewer than two values."""
    sd = sample_sd(values)
    if sd is None:
        return None
    half = float(special.stdtrit(len(values) - 1, 0.975)) * sd / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Compare `values` with `baseline`, pair by pair, by a two-sided paired t test (Student, 1908)."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    centre, sd = fmean(differences), sample_sd(differences)
    largest = max(map(abs, [*values, *baseline]))  # its rounding makes equal differences look a little unequal
    if sd is None or not sd > 1e-12 * largest:
        return Difference(centre, None, None, None, None)
    low, high = mean_interval(differences) or (centre, centre)
    t = centre / (sd / math.sqrt(len(differences)))
    return Difference(centre, sd, low, high, float(2 * special.stdtr(len(differences) - 1, -abs(t))))


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
    too_few, enough = 1, 2
    while _power(enough, effect, alpha) < power:  # upwards: SciPy fails for some large numbers of pairs
        if enough == most:
            return None
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if _power(middle, effect, alpha) >= power else (enough, middle)
    return enough


def _power(pairs: int, effect: float, alpha: float) -> float:
    """Return the chance that a two-sided paired t test of `pairs` pairs shows `effect`, in its own direction."""
    critical = special.stdtrit(pairs - 1, 1 - alpha / 2)
    return 1 - float(special.nctdtr(pairs - 1, abs(effect) * math.sqrt(pairs), critical))
