"""Train a network over many seeds and write every epoch of every run to benchmarks/results/accuracy-*.json.

The settings are the kit's default recipe, chosen on a validation split of the training images (ablation.py); here
it trains on all 60,000 images, and what counts is the test accuracy of the FINAL epoch. A seed that is in the
file already is not run again, so the same command goes on where it was stopped:

    python benchmarks/accuracy.py Net --seeds 0-9
    python benchmarks/accuracy.py Net --seeds 0-9 --epochs 5 --variant 5-epochs
    python benchmarks/accuracy.py Net --seeds 0-4 --dataset fashion-mnist --variant fashion
    torchrun --nproc-per-node 2 benchmarks/accuracy.py Net --seeds 0-9      # any number of processes and hosts
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import timedelta
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

import torch
from tqdm import tqdm

import model
import utils
from kit.runtime import write_atomically

RESULTS = ROOT / "benchmarks" / "results"
BATCH_SIZE = 128
PLAIN_EPOCHS = 1


@lru_cache(maxsize=1)
def images(dataset: str = "mnist", *, validation: bool = False) -> tuple[utils.ImageData, utils.ImageData]:
    """Training and test images of `dataset` or, with `validation`, 55,000 and 5,000 of the training images."""
    train, test = utils.load_mnist() if dataset == "mnist" else fashion_mnist()
    if train.source == "sample":
        raise SystemExit("The benchmarks need the whole of MNIST: connect once, or set MNIST_ROOT.")
    return utils.split(train, 5000, seed=0) if validation else (train, test)


def fashion_mnist() -> tuple[utils.ImageData, utils.ImageData]:
    """Fashion-MNIST (Xiao et al., 2017): Debian's package dataset-fashion-mnist if it is installed, else a download."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.exists():
        from torchvision.datasets import FashionMNIST

        train = utils.as_tensors(FashionMNIST("data", train=True, download=True))
        return train, utils.as_tensors(FashionMNIST("data", train=False, download=True), statistics_of=train)
    train, test = (
        utils.ImageData(
            utils.read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None],
            utils.read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long(),
            source="fashion-mnist",
        )
        for part in ("train", "t10k")
    )
    return train, dataclasses.replace(test, mean=train.mean, std=train.std)


def train_one_seed(
    network: Callable[[], torch.nn.Module],
    seed: int,
    *,
    epochs: int = 15,
    batch_size: int = BATCH_SIZE,
    threads: int = 1,
    dataset: str = "mnist",
    validation: bool = False,
    augment: utils.Augment | None = utils.Augment(),  # noqa: B008 (frozen)
    plain_epochs: int = PLAIN_EPOCHS,
    recipe: Callable[..., dict[str, Any]] = utils.recipe,
    **arguments: Any,
) -> dict[str, Any]:
    """Train `network()` from `seed` with the default recipe, unless the arguments say else; one run's figures.

    The last `plain_epochs` are not augmented. "views_accuracy" is that of the trained network's ShiftedViews.
    Everything in and out is plain, so any engine that runs functions elsewhere can run this one. `arguments` go
    to `fit`.
    """
    torch.set_num_threads(threads)
    train, test = images(dataset, validation=validation)
    utils.seed_everything(seed)
    device = utils.get_device()
    net = network().to(device)
    train_batches = utils.Batches(
        train,
        batch_size,
        augment=augment,
        augment_epochs=epochs - plain_epochs,
        shuffle=True,
        device=device,
        seed=seed,
    )
    test_batches = utils.Batches(test, 1000, device=device)
    history = utils.fit(
        net,
        train_batches,
        test_batches,
        epochs=epochs,
        verbose=False,
        **recipe(net, epochs=epochs, steps_per_epoch=len(train_batches)),
        **arguments,
    )
    if len(history) < epochs:  # fit ends normally on Ctrl-C; here that must end everything
        raise KeyboardInterrupt
    rounded = {
        name: [round(value, digits) for value in getattr(history, name)]
        for name, digits in {
            "train_loss": 5,
            "train_accuracy": 3,
            "test_loss": 5,
            "test_accuracy": 2,
            "seconds": 2,
        }.items()
    }
    views = utils.evaluate(utils.ShiftedViews(net), test_batches)
    return {"seed": seed, "threads": threads, **rounded, "views_accuracy": round(views.accuracy, 2)}


def new_report(network: type[torch.nn.Module], epochs: int, batch_size: int, dataset: str = "mnist") -> dict[str, Any]:
    """The head of a result file: what is trained, how, and with which versions."""
    train, test = images(dataset)
    net = network()
    optimizer = utils.recipe(net, epochs=epochs, steps_per_epoch=1)["optimizer"]
    defaults = {key: value for key, value in optimizer.defaults.items() if isinstance(value, int | float)}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "network": network.__name__,
        "dataset": dataset,
        "parameters": model.count_parameters(net),
        "epochs": epochs,
        "train_images": len(train),
        "test_images": len(test),
        "config": {
            "optimizer": type(optimizer).__name__,
            **defaults,
            "batch_size": batch_size,
            "augmentation": repr(utils.Augment()),
            "plain_epochs": PLAIN_EPOCHS,
            "device": str(utils.get_device()),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "commit": commit,
        },
        "runs": [],
    }


def save(report: dict[str, Any], path: Path) -> None:
    """Write `report` whole or not at all, one run a line."""
    head = {key: value for key, value in report.items() if key != "runs"}
    runs = ",\n  ".join(json.dumps(run) for run in sorted(report["runs"], key=lambda run: run["seed"]))
    text = json.dumps(head, indent=1)[:-2] + ',\n "runs": [\n  ' + runs + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def run_all(jobs: list[dict[str, Any]], processes: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Call `train_one_seed` with each of `jobs`, `processes` at a time; yield (job, figures) as they end."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(train_one_seed, **job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def parse_seeds(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def seeds_of_rank(seeds: list[int], done: set[int], rank: int, world: int) -> list[int]:
    """The seeds that this rank has to train: shared out before those done here are left out.

    A rank cannot see what is done on other hosts, so what is done must not change how the seeds are shared.
    """
    return [seed for seed in seeds[rank::world] if seed not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["Net", "Nano", "Attempt2"], help="a class of model.py")
    parser.add_argument("--seeds", type=parse_seeds, default="0-9", help="such as 0-9 or 3,5,8 (default 0-9)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--dataset", choices=["mnist", "fashion-mnist"], default="mnist")
    parser.add_argument("--variant", default="", help="ends the file's name, for settings that are not the default")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = f"accuracy-{options.network.lower()}" + (f"-{options.variant}" if options.variant else "")
    whole_path = options.results / f"{name}.json"
    path = options.results / f"{name}.rank{rank}.json" if world > 1 else whole_path
    network = getattr(model, options.network)
    report = new_report(network, options.epochs, options.batch_size, options.dataset)
    done = [run for file in {path, whole_path} if file.exists() for run in json.loads(file.read_text())["runs"]]
    report["runs"] = list({run["seed"]: run for run in done}.values())
    missing = seeds_of_rank(options.seeds, {run["seed"] for run in done}, rank, world)
    settings = {
        "network": network,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "dataset": options.dataset,
        "threads": options.threads,
    }
    jobs = [{"seed": seed, **settings} for seed in missing]
    runs = run_all(jobs, 1 if world > 1 else options.processes)
    for _, run in tqdm(runs, total=len(jobs), desc=name, unit="seed", disable=None):
        report["runs"].append(run)
        save(report, path)
        print(f"{name} seed {run['seed']}: final test accuracy {run['test_accuracy'][-1]:.2f} %", flush=True)
    if world > 1:
        gather(report, path, whole_path)


def gather(report: dict[str, Any], path: Path, whole_path: Path) -> None:
    """Bring the runs of all ranks together in one file, on the first host."""
    # Joined only now: before, each rank trained its seeds alone, and fit would have shared every batch.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=2))
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, report["runs"])
    if torch.distributed.get_rank() == 0:
        report["runs"] = list({run["seed"]: run for runs in parts for run in runs}.values())
        save(report, whole_path)
    torch.distributed.barrier()
    path.unlink(missing_ok=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
