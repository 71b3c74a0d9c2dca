"""Train a network from many seeds and write every epoch of every run to benchmarks/results/accuracy-*.json.

The settings are those of `utils.Recipe`, chosen on validation images (ablation.py). Here the network trains on all
training images, and the test accuracy of the FINAL epoch counts. Seeds that the file holds are not trained again;
a file with other settings is refused.

    python -m benchmarks.accuracy Net --seeds 20-39 --results runs/again     # repeat what a file holds
    python -m benchmarks.accuracy Net --seeds 0-9 --epochs 5 --variant 5-epochs
    python -m benchmarks.accuracy Net --seeds 20-39 --subsample 0.3 --variant subsample
    python -m benchmarks.accuracy Net --seeds 0-4 --dataset fashion-mnist --variant fashion
    python -m benchmarks.accuracy Net --seeds 0-9 --dask first-host:8786     # on a cluster
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
from torch import nn

import model
import utils
from benchmarks.records import RESULTS, ROOT, layers, write
from compare import Comparison, compare
from kit.settings import as_plain, differences

RUNS = ROOT / "runs" / "benchmarks"  # every finished run at once, so that nothing is lost; git ignores it
Variant = tuple[Callable[[], nn.Module], utils.Recipe]
# To train on, and to test on; a number is as many of the training images, which each seed draws for itself.
Data = tuple[utils.ImageData, utils.ImageData | int]
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
DIGITS = {"train_loss": 5, "train_accuracy": 3, "test_loss": 5, "test_accuracy": 2, "seconds": 2}


def load(dataset: str) -> tuple[utils.ImageData, utils.ImageData]:
    """Return "mnist" or "fashion-mnist" (Xiao et al., 2017) as (train, test); the latter may be downloaded."""
    if dataset == "mnist":
        return utils.load_mnist()
    folder = FASHION
    if not folder.exists():
        from torchvision.datasets import FashionMNIST

        FashionMNIST(ROOT / "data", download=True)
        folder = ROOT / "data" / "FashionMNIST"
    train, test = utils.load_idx(folder)
    return replace(train, source=dataset), replace(test, source=dataset)


def new_head(variants: dict[str, Variant], train: utils.ImageData, test: utils.ImageData | int) -> dict[str, Any]:
    """Return what must be equal for all runs of a result file; of a variant, what differs from the first."""
    (make_network, recipe), *_ = variants.values()
    network = make_network()
    settings = {
        name: {"network": as_plain(make), "layers": layers(make())} | as_plain(own)
        for name, (make, own) in variants.items()
    }
    config = settings[next(iter(variants))]
    images: dict[str, Any]
    if isinstance(test, int):
        images = {"train_images": len(train) - test, "test_images": test, "split": "by seed"}
    else:
        images = {"train_images": len(train), "test_images": len(test), "split": None}
    return {
        "network": type(network).__name__,
        "dataset": train.source,
        "parameters": model.count_parameters(network),
        "epochs": recipe.epochs,
        **images,
        "config": config | {"device": utils.get_device().type},
        "variants": {
            name: {key: value for key, value in own.items() if value != config[key]} for name, own in settings.items()
        },
    }


def read_result(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the result in `path`, or one without runs; end the program if its settings differ from `head`."""
    if not path.exists():
        return head | {"runs": []}
    result = json.loads(path.read_text(encoding="utf-8"))
    saved, now = ({key: part.get(key) for key in head} for part in (result, head))
    if isinstance(saved["variants"], dict):  # a variant that only one of them has is no difference
        now["variants"] = saved["variants"] | head["variants"]
        saved["variants"] = head["variants"] | saved["variants"]
    if lines := differences(saved, now):
        sys.exit(
            f"{path} holds runs with other settings. Write to another file, or delete this one to measure everything "
            "again. What differs:\n" + "\n".join(lines)
        )
    return result | now


def measure(path: Path, variants: dict[str, Variant], data: Data, options: argparse.Namespace) -> None:
    """Train the seeds and variants that `path` lacks, add them to it, and print how the variants compare."""
    result = read_result(path, new_head(variants, *data))
    runs = {(run["variant"], run["seed"]): run for run in result["runs"]}
    missing: dict[tuple[int, ...], dict[str, Variant]] = {}  # the variants that lack the same seeds, together
    for name, variant in variants.items():
        if seeds := tuple(seed for seed in options.seeds if (name, seed) not in runs):
            missing.setdefault(seeds, {})[name] = variant
    if not missing:
        print(f"{path} holds all of these runs, so none is trained. To repeat them, give --results another folder.")
    done = []
    with joblib.parallel_config("dask", scheduler_host=options.dask) if options.dask else nullcontext():
        for seeds, chosen in missing.items():
            runs_of_these = compare(chosen, *data, seeds=seeds, folder=RUNS, jobs=options.jobs).runs
            done += runs_of_these
            if len(runs_of_these) < len(chosen) * len(seeds):  # after Ctrl-C
                break
    failed = [run for run in done if "error" in run]
    runs |= {(run["variant"], run["seed"]): rounded(run) for run in done if "error" not in run}
    order = list(result["variants"])
    ordered = [runs[key] for key in sorted(runs, key=lambda key: (order.index(key[0]), key[1]))]
    if not ordered:  # stopped, or all failed: nothing that a table could show
        sys.exit("\n".join(failure(run) for run in failed) or "No run is finished: the same command trains them.")
    versions = {"torch": sorted({run["torch"] for run in ordered})}
    write(path, result | {"versions": versions, "runs": ordered})
    if len(variants) > 1:
        described = {name: {"recipe": as_plain(recipe)} for name, (_, recipe) in variants.items()}
        shown = [run for run in ordered if run["variant"] in variants]
        print(Comparison(described, sorted({run["seed"] for run in shown}), {}, shown))
    if failed:
        sys.exit("\n".join(failure(run) for run in failed))


def failure(run: dict[str, Any]) -> str:
    return f"{run['variant']}, seed {run['seed']}, failed: {run['error']}"


def rounded(run: dict[str, Any]) -> dict[str, Any]:
    """Return `run` with as many digits as matter."""
    return run | {name: [round(value, digits) for value in run[name]] for name, digits in DIGITS.items()}


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that `text` names: "0-3,7" -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def new_parser(description: str | None, seeds: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that the benchmarks of accuracy share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default=seeds, help=f"such as 0-9 or 3,5,8 (default {seeds})")
    parser.add_argument("--epochs", type=int, default=utils.Recipe().epochs)
    parser.add_argument("--jobs", type=int, help="runs at a time, each on one thread (default: one per core)")
    parser.add_argument("--dask", metavar="HOST:PORT", help="the scheduler of a Dask cluster to run on")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    return parser


def main() -> None:
    parser = new_parser(__doc__, "0-9")
    parser.add_argument("network", choices=["Net", "Nano", "Attempt2"], help="a class of model.py")
    parser.add_argument("--dataset", choices=["mnist", "fashion-mnist"], default="mnist")
    parser.add_argument("--subsample", type=float, default=utils.Recipe().subsample, help="as in Recipe (default 1)")
    parser.add_argument("--variant", default="", help="ends the file's name, for settings that are not the default")
    options = parser.parse_args()
    name = f"accuracy-{options.network.lower()}" + (f"-{options.variant}" if options.variant else "")
    recipe = replace(utils.Recipe(), epochs=options.epochs, subsample=options.subsample)
    variants = {options.network: (getattr(model, options.network), recipe)}
    measure(options.results / f"{name}.json", variants, load(options.dataset), options)


if __name__ == "__main__":
    main()
