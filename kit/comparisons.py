"""The report of a comparison: statistics of each variant as plain data, as tables and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

from kit.history import History
from kit.statistics import holm, paired_difference, sample_sd, seeds_needed

LEVEL = 0.05  # a difference is clear if its corrected p-value is below
MEASURES = {"accuracy": "test_accuracy", "loss": "test_loss"}  # the name of a measure: its list in a run
UNITS = {"accuracy": " points", "loss": ""}
DIGITS = {"accuracy": 2, "loss": 4}
Row = dict[str, Any]


def finished(runs: Sequence[dict[str, Any]], variant: str) -> dict[int, dict[str, Any]]:
    """Return seed -> run for the runs of `variant` that came to their end."""
    return {run["seed"]: run for run in runs if run["variant"] == variant and "error" not in run}


def mean_histories(variants: Sequence[str], runs: Sequence[dict[str, Any]]) -> dict[str, History]:
    """Return for each variant with finished runs the means over them, epoch by epoch."""
    histories = {}
    for name in variants:
        if done := list(finished(runs, name).values()):
            lists = {field.name: zip(*(run[field.name] for run in done), strict=True) for field in fields(History)}
            histories[name] = History(**{key: list(map(fmean, epochs)) for key, epochs in lists.items()})
    return histories


def summarize(variants: dict[str, dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the statistics of each variant, the baseline first.

    variants: name -> {"recipe": plain data, ...}. runs: dictionaries as `compare` returns them.
    """
    baseline = next(iter(variants))
    rows = [_row(name, runs) for name in variants]
    for name, row in zip(variants, rows, strict=True):
        for measure, key in MEASURES.items():
            row[measure]["comparable"] = measure == "accuracy" or _criterion(variants[name]) == _criterion(
                variants[baseline]
            )
            if name != baseline and row[measure]["comparable"]:
                row[measure]["difference"] = _difference(finished(runs, name), finished(runs, baseline), key)
    _correct([row[measure]["difference"] for row in rows for measure in MEASURES])
    return rows


def _row(name: str, runs: Sequence[dict[str, Any]]) -> Row:
    done = list(finished(runs, name).values())
    row: Row = {"variant": name, "parameters": done[0]["parameters"] if done else None, "seeds": len(done)}
    row["seconds"] = fmean(sum(run["seconds"]) for run in done) if done else None
    for measure, key in MEASURES.items():
        values = [run[key][-1] for run in done]
        row[measure] = {
            "mean": fmean(values) if values else None,
            "sd": sample_sd(values),
            "difference": None,
        }
    row["errors"] = {}
    for run in runs:
        if run["variant"] == name and "error" in run:
            row["errors"].setdefault(run["error"], []).append(run["seed"])
    return row


def _criterion(variant: dict[str, Any]) -> Any:
    return variant["recipe"]["test_criterion"] or variant["recipe"]["criterion"]


def _difference(runs: dict[int, Any], baseline: dict[int, Any], key: str) -> Row | None:
    """Return the difference over the seeds that both have."""
    seeds = [seed for seed in runs if seed in baseline]
    if not seeds:
        return None
    difference = paired_difference([runs[seed][key][-1] for seed in seeds], [baseline[s][key][-1] for s in seeds])
    return {"pairs": len(seeds), **difference._asdict(), "p_corrected": None, "clear": False, "seeds_needed": None}


def _correct(differences: list[Row | None]) -> None:
    """Add to each difference the corrected p-value, whether it is clear, and the seeds that would show it."""
    tested = [difference for difference in differences if difference and difference["p"] is not None]
    for difference, p in zip(tested, holm([difference["p"] for difference in tested]), strict=True):
        effect = difference["mean"] / difference["sd"]
        needed = None if p < LEVEL else seeds_needed(effect, alpha=LEVEL / len(tested))
        difference |= {"p_corrected": p, "clear": p < LEVEL, "seeds_needed": needed}


# -------------------------------------------------------------------------------------------------------- Tables


def tables(summary: Sequence[Row], *, markdown: bool = False) -> list[str]:
    """Return two tables, of the accuracy and of the loss."""
    heads = [
        ["accuracy, %", "mean ± sd", "difference", "95 % interval", "p", "parameters", "seeds", "s per run"],
        ["loss", "mean ± sd", "difference", "95 % interval", "p"],
    ]
    render = _markdown if markdown else _text
    return [
        render([head, *(_cells(row, measure, number == 0) for number, row in enumerate(summary))])
        for head, measure in zip(heads, MEASURES, strict=True)
    ]


def _cells(row: Row, measure: str, is_baseline: bool) -> list[str]:
    digits, figures = DIGITS[measure], row[measure]
    name = row["variant"] + (" (baseline)" if is_baseline else "")
    spread = "" if figures["sd"] is None else f" ± {figures['sd']:.{digits}f}"
    no_run = "failed" if row["errors"] else "no run"
    centre = no_run if figures["mean"] is None else f"{figures['mean']:.{digits}f}{spread}"
    change = interval = p = ""
    if difference := figures["difference"]:
        change = f"{difference['mean']:+.{digits}f}"
        if difference["p"] is not None:
            interval = f"{difference['low']:+.{digits}f} to {difference['high']:+.{digits}f}"
            p = "< 0.001" if difference["p_corrected"] < 0.001 else f"{difference['p_corrected']:.3f}"
    cells = [name, centre, change, interval, p]
    if measure == "accuracy":
        parameters, seconds = row["parameters"], row["seconds"]
        cells += ["" if parameters is None else f"{parameters:,}", str(row["seeds"])]
        cells += ["" if seconds is None else f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"]
    return cells


def _text(lines: list[list[str]]) -> str:
    """Return columns of equal width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        rows.append("  ".join(cells).rstrip())
    return "\n".join([rows[0], "-" * (sum(widths) + 2 * len(widths) - 2), *rows[1:]])


def _markdown(lines: list[list[str]]) -> str:
    rows = [[escape_markdown(cell) for cell in line] for line in lines]
    rows.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def escape_markdown(text: str) -> str:
    """Return `text` such that Markdown shows it as it is."""
    for character in ("\\", "|", "*", "_", "`", "$"):
        text = text.replace(character, "\\" + character)
    return text.replace("<", "&lt;")


# ------------------------------------------------------------------------------------------------------ In words


def verdicts(summary: Sequence[Row], missing: int = 0, drawn: int | None = None) -> list[str]:
    """Return paragraphs: what differs clearly from the baseline, what does not, what failed, how to read the tables.

    missing: runs that were not done. drawn: images that each seed drew to judge on; None if all had the same.
    """
    lines = [f"- {line}" for row in summary for line in _verdict(row)]
    baseline, differences = summary[0]["variant"], [row[name]["difference"] for row in summary for name in MEASURES]
    tested = [difference for difference in differences if difference and difference["p"] is not None]
    spread = any(row[measure]["sd"] is not None for row in summary for measure in MEASURES)
    notes = ["The last epoch of each run" + (": mean ± standard deviation over the seeds." if spread else ".")]
    if missing:
        notes.insert(0, f"{missing} of the runs are missing; the same call trains them.")
    if drawn is not None:
        notes.append(f"Each seed drew {drawn:,} images of its own to judge on.")
    if any(difference and difference["pairs"] == 1 for difference in differences):
        notes.append(
            "One seed gives no intervals: a single run does not show how much results vary from seed to seed, so its "
            "difference may be chance. Give at least 2 seeds, better 5."
        )
    if others := [row["variant"] for row in summary if not row["loss"]["comparable"]]:
        notes.append(
            f"Not compared: the loss of {', '.join(others)}, because it is measured by another criterion than that of "
            f"{baseline}. Give all recipes the same test_criterion."
        )
    if tested:
        notes.append(
            f"Differences from {baseline}, seed by seed: the mean, its 95 % interval (Student's t), and p after Holm's "
            f"correction for {len(tested)} comparisons; below {LEVEL} a difference is called clear. Numbers of seeds "
            f"are for a chance of 80 % to show a difference of the size seen here."
        )
    return ["\n".join(lines), " ".join(notes)] if lines else [" ".join(notes)]


def _verdict(row: Row) -> list[str]:
    words = [_words(measure, row[measure]["difference"]) for measure in MEASURES]
    lines = [f"{row['variant']}: {'; '.join(filter(None, words))}."] if any(words) else []
    for message, seeds in row["errors"].items():
        which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        lines.append(f"{row['variant']}: {which} failed with {message.partition(chr(10))[0]}")
    return lines


def _two_digits(value: float) -> float:
    """Return `value` rounded to the two digits that count: 0.013, 38, 1200."""
    return float(f"{value:.2g}")


def _words(measure: str, difference: Row | None) -> str:
    """What is to be said of one difference, without a full stop."""
    if difference is None or (difference["p"] is None and difference["pairs"] == 1):
        return ""
    if not math.isfinite(difference["mean"]):
        return f"{measure} is not a finite number for every seed"
    size = f"{_two_digits(abs(difference['mean'])):g}{UNITS[measure]}"
    direction = "higher" if difference["mean"] > 0 else "lower"
    value = "better" if (difference["mean"] > 0) == (measure == "accuracy") else "worse"
    if difference["mean"] == 0:
        return f"{measure} is equal " + ("for every seed" if difference["p"] is None else "on average")
    if difference["p"] is None:
        return f"{measure} is {direction} by the same {size} for every seed, which no t test can judge"
    if difference["clear"]:
        return f"{measure} is clearly {direction} ({value}), by {size}"
    if difference["seeds_needed"] is None:
        return f"{measure} shows no clear difference, and 10,000 seeds would not tell {size} from chance"
    count = int(_two_digits(difference["seeds_needed"]))
    return f"{measure} shows no clear difference: about {count:,} seeds to tell {size} from chance"
