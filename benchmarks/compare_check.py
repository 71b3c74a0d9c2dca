"""Check that compare() tells differences from chance: benchmarks/results/compare.json.

Each repetition compares, over seeds of its own, `Net` with two variants: `Net` again from other first weights, which
is no better and no worse, and the recipe without augmentation, which is worse. The first should show no clear
difference, in accuracy or loss, in at least 9 of 10 repetitions, the second should show one.

    python -m benchmarks.compare_check
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import model
import utils
from benchmarks.accuracy import RUNS
from benchmarks.records import RESULTS, machine, versions, write
from compare import compare
from kit.comparisons import MEASURES

EQUAL, WORSE = "other first weights", "no augmentation"


def net_from_other_weights() -> torch.nn.Module:
    """Return `Net` with other first weights than `Net()` would have after the same seed."""
    torch.rand(())
    return model.Net()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each repetition (default 5)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000, help="so many training images, a sixth for validation")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per core)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()

    recipe = replace(utils.Recipe(), epochs=options.epochs)
    variants: dict[str, Any] = {"Net": model.Net, EQUAL: net_from_other_weights, WORSE: replace(recipe, augment=None)}
    train, validation = utils.split(utils.load_mnist()[0][: options.images], options.images // 6)
    repetitions, clear = [], {EQUAL: 0, WORSE: 0}
    for number in range(options.repetitions):
        seeds = range(200 + number * options.seeds, 200 + (number + 1) * options.seeds)
        result = compare(variants, train, validation, seeds=seeds, recipe=recipe, folder=RUNS, jobs=options.jobs)
        if len(result.runs) < len(variants) * options.seeds:
            raise SystemExit("Interrupted: the same command goes on from here.")
        print(result, flush=True)
        found = {row["variant"]: {name: row[name]["difference"] for name in MEASURES} for row in result.summary()[1:]}
        for name, differences in found.items():
            clear[name] += any(difference["clear"] for difference in differences.values())
        repetitions.append({"seeds": list(seeds), **found})
    figures: dict[str, Any] = {
        "epochs": options.epochs,
        "train_images": len(train),
        "test_images": len(validation),
        "repetitions": options.repetitions,
        "seeds": options.seeds,
        "clear": clear,
        "machine": machine(),
        "versions": versions(),
        "runs": repetitions,
    }
    write(options.results / "compare.json", figures)
    print(f"Clear differences in {options.repetitions} repetitions: {clear}")


if __name__ == "__main__":
    main()
