"""Train a network over many seeds and write every epoch of every run to benchmarks/results/accuracy-*.json.

The settings are the kit's default recipe, chosen on a validation split of the training images (ablation.py); here
it trains on all 60,000 images, and what counts is the test accuracy of the FINAL epoch. A seed that is in the
file already is not run again, so the same command goes on where it was stopped:

    python benchmarks/accuracy.py Net --seeds 0-9
    python benchmarks/accuracy.py Net --seeds 0-9 --epochs 5 --variant 5-epochs
    torchrun --nproc-per-node 2 benchmarks/accuracy.py Net --seeds 0-9      # any number of processes and hosts
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import timedelta
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import model  # noqa: E402
import utils  # noqa: E402
from data import write_atomically  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


@lru_cache(maxsize=1)
def mnist(validation: bool = False) -> tuple[utils.ImageData, utils.ImageData]:
    """Training and test images or, with `validation`, 55,000 and 5,000 of the training images."""
    train, test = utils.load_mnist()
    if train.source != "mnist":
        raise SystemExit("The benchmarks need the whole of MNIST: connect once, or set MNIST_ROOT.")
    return utils.split(train, 5000, seed=0) if validation else (train, test)


def train_one_seed(
    network: str,
    seed: int,
    *,
    epochs: int = 15,
    batch_size: int = 128,
    threads: int = 1,
    validation: bool = False,
    augment: dict[str, float] | None = None,
    **recipe: Any,
) -> dict[str, Any]:
    """Train `network` of model.py from `seed` with the default recipe, changed by the arguments; one run's figures."""
    torch.set_num_threads(threads)
    train, test = mnist(validation)
    utils.seed_everything(seed)
    device = utils.get_device()
    net = getattr(model, network)().to(device)
    augmentation = utils.Augment(**(augment or {}))
    train_batches = utils.Batches(train, batch_size, augment=augmentation, shuffle=True, device=device, seed=seed)
    optimizer, scheduler = utils.recipe(net, epochs=epochs, steps_per_epoch=len(train_batches), **recipe)
    history = utils.fit(
        net,
        train_batches,
        utils.Batches(test, 1000, device=device),
        epochs=epochs,
        optimizer=optimizer,
        scheduler=scheduler,
        verbose=False,
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
    return {"seed": seed, "threads": threads, **rounded}


def new_report(network: str, epochs: int, batch_size: int) -> dict[str, Any]:
    """The head of a result file: what is trained, how, and with which versions."""
    train, test = mnist()
    net = getattr(model, network)()
    optimizer, scheduler = utils.recipe(net, epochs=epochs, steps_per_epoch=1)
    defaults = {key: value for key, value in optimizer.defaults.items() if isinstance(value, int | float)}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "network": network,
        "parameters": model.count_parameters(net),
        "epochs": epochs,
        "train_images": len(train),
        "test_images": len(test),
        "config": {
            "optimizer": type(optimizer).__name__,
            **defaults,
            "batch_size": batch_size,
            "augmentation": repr(utils.Augment()),
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


def run_seeds(jobs: list[tuple[str, int]], processes: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Train all (network, seed) `jobs`, `processes` at a time; yield each run's figures as it ends."""
    if processes == 1:
        for network, seed in jobs:
            yield train_one_seed(network, seed, **settings)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train_one_seed, network, seed, **settings) for network, seed in jobs]
        for future in as_completed(futures):
            yield future.result()


def parse_seeds(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a class of model.py: Net, Nano, Attempt2")
    parser.add_argument("--seeds", type=parse_seeds, default="0-9", help="such as 0-9 or 3,5,8 (default 0-9)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--variant", default="", help="ends the file's name, for settings not the default")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = f"accuracy-{options.network.lower()}" + (f"-{options.variant}" if options.variant else "")
    whole_path = options.results / f"{name}.json"
    path = options.results / f"{name}.rank{rank}.json" if world > 1 else whole_path
    report = new_report(options.network, options.epochs, options.batch_size)
    done = [run for file in {path, whole_path} if file.exists() for run in json.loads(file.read_text())["runs"]]
    report["runs"] = list({run["seed"]: run for run in done}.values())
    missing = [seed for seed in options.seeds if seed not in {run["seed"] for run in done}]
    jobs = [(options.network, seed) for seed in missing[rank::world]]
    runs = run_seeds(
        jobs,
        1 if world > 1 else options.processes,
        epochs=options.epochs,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    for run in tqdm(runs, total=len(jobs), desc=name, unit="seed", disable=None):
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
