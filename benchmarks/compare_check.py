"""Check that compare() tells differences from chance: benchmarks/results/compare.json.

First two variants that are equally good, `Net` and `Net` from other first weights, are compared again and again, each
time over seeds of their own: about 1 of 20 repetitions should call them different, in accuracy or in loss. These
runs are short and see few images, since chance does not depend on that. Then the recipe is compared with itself without
augmentation: it should find a difference. Each seed judges on validation images of its own.

    python -m benchmarks.compare_check
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import model
import utils
from benchmarks.accuracy import RUNS
from benchmarks.records import RESULTS, commit, machine, versions, write
from compare import compare
from kit.comparisons import MEASURES
from kit.settings import as_plain


def net_from_other_weights() -> torch.nn.Module:
    """Return `Net` with other first weights than `Net()` would have after the same seed."""
    torch.rand(())
    return model.Net()


def find_difference(
    other: Any, images: utils.ImageData, seeds: Sequence[int], epochs: int, jobs: int | None
) -> dict[str, Any]:
    """Compare `Net` with the variant `other`, a sixth of `images` for validation; return the differences."""
    variants, recipe = {"Net": model.Net, "other": other}, replace(utils.Recipe(), epochs=epochs)
    result = compare(variants, images, len(images) // 6, seeds=seeds, recipe=recipe, folder=RUNS, jobs=jobs)
    if len(result.runs) < 2 * len(seeds):
        raise SystemExit("Interrupted: the same command goes on from here.")
    print(result, flush=True)
    row = result.summary()[1]
    differences = {name: row[name]["difference"] for name in MEASURES}
    return {
        "seeds": list(seeds),
        "epochs": epochs,
        "train_images": result.data["train_images"],
        "test_images": result.data["test_images"],
        "clear": any(difference["clear"] for difference in differences.values()),
        **differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=90, help="comparisons of equal variants (default 90)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each of them (default 5)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each of them (default 5)")
    parser.add_argument("--images", type=int, default=6_000, help="their training images, a sixth for validation")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per core)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()

    images = utils.load_mnist()[0]
    some = images[: options.images]
    first = [200 + number * options.seeds for number in range(options.repetitions)]
    equal = [
        find_difference(net_from_other_weights, some, range(seed, seed + options.seeds), options.epochs, options.jobs)
        for seed in first
    ]
    unaugmented = utils.Recipe(augment=None)
    worse = find_difference(unaugmented, images, range(100, 106), unaugmented.epochs, options.jobs)
    origin = {"machine": machine(), "versions": versions(), "commit": commit(), "config": as_plain(utils.Recipe())}
    result = origin | {"equal": equal, "no augmentation": worse}
    write(options.results / "compare.json", result)
    called = sum(comparison["clear"] for comparison in equal)
    print(f"Equal variants called different: {called} of {len(equal)}. No augmentation: clear is {worse['clear']}.")


if __name__ == "__main__":
    main()
