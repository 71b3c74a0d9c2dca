"""Time the kit beside the loop that everybody writes, on this machine, in one run: benchmarks/results/speed.json.

epoch   one pass over training and test images with Attempt2's layers at batch 128, by both loops
job     from the start of the process to the first epoch whose test accuracy is at least 99.40 %
limit   the training step's useful operations a second beside those of the machine's matrix product
growth  seconds an epoch for more images and wider networks, and the peak of memory
profile where the time of a training step goes

python benchmarks/speed.py                  # all parts; some 40 minutes on two cores, which must be idle
python benchmarks/speed.py epoch limit      # these parts alone
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm, trange

import model
import utils
from kit.runtime import write_atomically

PATH = ROOT / "benchmarks" / "results" / "speed.json"
TARGET = 99.40


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


PEAK_OF_IMPORTS = peak_megabytes()  # taken here, as a peak does not fall: the parts before would hide in it


# The usual loop, as it stands in most notebooks: images one by one through PIL, a number read at every step.


def usual_loaders(workers: int) -> tuple[DataLoader, DataLoader]:
    from torchvision import datasets, transforms

    normalise = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    augment = transforms.Compose([transforms.RandomRotation(7), *normalise])
    root = os.environ.get("MNIST_ROOT", "data")
    train = datasets.MNIST(root, train=True, transform=augment, download=True)
    test = datasets.MNIST(root, train=False, transform=transforms.Compose(normalise), download=True)
    settings: dict[str, Any] = {"batch_size": 128, "num_workers": workers}
    return DataLoader(train, shuffle=True, **settings), DataLoader(test, **settings)


def usual_epoch(net: nn.Module, train: DataLoader, test: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    """One epoch of training and testing; the test accuracy in percent."""
    net.train()
    loss_sum, correct = 0.0, 0
    for images, labels in train:
        optimizer.zero_grad()
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()
    net.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in test:
            correct += (net(images).argmax(1) == labels).sum().item()
    return 100 * correct / len(test.dataset)  # type: ignore[arg-type]


# The parts


# "steps" is the network alone: as many training steps, all on one batch that is there already.
LOOPS = ("kit", "steps", "usual_0_workers", "usual_2_workers")


def workers_of(loop: str) -> int:
    return int(loop.split("_")[1])


def one_epoch(loop: str) -> float:
    """Seconds of one epoch, the same network, images and kind of augmentation in each of LOOPS."""
    net = model.Attempt2()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    if loop == "kit":
        train, test = utils.load_mnist()
        rotate = utils.Augment(rotation=7, translation=0, scale=0, shear=0)
        batches = utils.Batches(train, 128, augment=rotate, shuffle=True, seed=0)
        test_batches = utils.Batches(test, 1000)
        start = time.perf_counter()
        utils.train_epoch(net, batches, optimizer)
        utils.evaluate(net, test_batches)
    elif loop == "steps":
        batch = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
        start = time.perf_counter()
        utils.train_epoch(net, [batch] * math.ceil(60_000 / 128), optimizer)
    else:
        net.to(memory_format=torch.contiguous_format)
        train_loader, test_loader = usual_loaders(workers_of(loop))
        start = time.perf_counter()
        usual_epoch(net, train_loader, test_loader, optimizer)
    return time.perf_counter() - start


def measure_epoch(rounds: int = 3) -> dict[str, Any]:
    """Seconds an epoch, the loops taking turns, each in a process of its own: the kit's changes how memory is kept."""
    seconds: dict[str, list[float]] = {f"{loop}_s": [] for loop in LOOPS}
    for _ in trange(rounds, desc="epoch", unit="round", disable=None):
        for loop in LOOPS:
            command = [sys.executable, __file__, "--loop", loop]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds[f"{loop}_s"].append(float(done.stdout))
    best = min(LOOPS[2:], key=lambda loop: median(seconds[f"{loop}_s"]))
    return {**seconds, "best_usual": best, "ratio": median(seconds[f"{best}_s"]) / median(seconds["kit_s"])}


def job(loop: str, seed: int, epochs: int) -> None:
    """In a process of its own: train, and print the test accuracy of every epoch as it ends."""
    utils.seed_everything(seed)
    if loop == "kit":
        train, test = utils.load_mnist()
        net = model.Net()
        augment = utils.Augment()
        batches = utils.Batches(train, 128, augment=augment, augment_epochs=epochs - 1, shuffle=True, seed=seed)
        utils.fit(
            net,
            batches,
            utils.Batches(test, 1000),
            epochs=epochs,
            verbose=False,
            on_epoch=lambda history: print(history.test_accuracy[-1], flush=True),
            **utils.recipe(net, epochs=epochs, steps_per_epoch=len(batches)),
        )
    else:
        usual = model.Attempt2(dropout=0.05).to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(usual.parameters(), lr=0.01, momentum=0.9)
        loaders = usual_loaders(workers_of(loop))
        for _ in range(epochs):
            print(usual_epoch(usual, *loaders, optimizer), flush=True)


def time_job(loop: str, seed: int, epochs: int) -> dict[str, Any]:
    """Seconds from the start of a new process to the first epoch at or above TARGET, else to the last one."""
    start, accuracies = time.perf_counter(), []
    command = [sys.executable, __file__, "--loop", loop, "--job", str(epochs), "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            accuracies.append(float(line))
            if accuracies[-1] >= TARGET:
                break
        seconds = time.perf_counter() - start
        process.kill()
    if not accuracies:
        raise RuntimeError(f"the job of {loop} ended before its first epoch: see the error above")
    return {"seed": seed, "seconds": seconds, "accuracies": accuracies, "reached": accuracies[-1] >= TARGET}


def measure_job(seeds: int = 5, kit_epochs: int = 5, usual_epochs: int = 15) -> dict[str, Any]:
    """The kit's job and the usual one, with the number of workers that was the faster over an epoch, in turns.

    Every run is written down as it ends, and goes on from there: all of them take half an hour.
    """
    report = json.loads(PATH.read_text())
    loops = {"kit": "kit", "usual": report["epoch"]["best_usual"]}
    epochs = {"kit": kit_epochs, "usual": usual_epochs}
    runs: dict[str, list[dict[str, Any]]] = report.get("job_so_far", {"kit": [], "usual": []})
    done = {(kind, run["seed"]) for kind in runs for run in runs[kind]}
    todo = [(kind, seed) for seed in range(seeds) for kind in loops if (kind, seed) not in done]
    for kind, seed in tqdm(todo, desc="job", unit="run", disable=None):
        runs[kind].append(time_job(loops[kind], seed, epochs[kind]))
        save(report | {"job_so_far": runs})
        print(f"job {kind} seed {seed}: {runs[kind][-1]['seconds']:.0f} s", flush=True)
    kit, usual = ([run["seconds"] for run in runs[kind]] for kind in loops)
    return {"kit_s": kit, "usual_s": usual, "ratio": mean(usual) / mean(kit), "epochs": epochs, "runs": runs}


def save(report: dict[str, Any]) -> None:
    write_atomically(PATH, (json.dumps(report, indent=1) + "\n").encode())


def forward_operations(net: nn.Module) -> int:
    """Useful floating-point operations for one 28 x 28 image: two for each product in a convolution."""
    operations = 0

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal operations
        assert isinstance(layer, nn.Conv2d)
        operations += 2 * layer.weight[0].numel() * output[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return operations


def step_seconds(net: nn.Module, batch_size: int = 128, *, rounds: int = 7, steps: int = 20) -> float:
    """The time of one step of `train_epoch`, with the recipe's optimizer: the median of some rounds of steps."""
    batch = torch.randn(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
    optimizer = utils.Muon(net.parameters(), 0.01)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        utils.train_epoch(net, [batch] * steps, optimizer)
        seconds.append((time.perf_counter() - start) / steps)
    return median(seconds[1:])  # the first warms up


def matrix_product_rate(size: int = 2048, rounds: int = 7) -> float:
    """Floating-point operations a second of one large fp32 matrix product: the best of some rounds."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def measure_limit(batch_size: int = 128) -> dict[str, Any]:
    net = model.Net()
    per_image = 3 * forward_operations(net)  # backward costs twice what forward does
    # In turns, as what else the machine does changes both from one second to the next.
    pairs = [(per_image * batch_size / step_seconds(net, batch_size), matrix_product_rate()) for _ in range(9)]
    rate, product = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    return {"flop_per_image": per_image, "step_flop_s": rate, "matmul_flop_s": product, "ratio": rate / product}


def measure_growth() -> dict[str, Any]:
    """Seconds of one training epoch, and how far memory rose above what the imports took."""
    train, _ = utils.load_mnist()
    step_seconds(model.Net())  # the first steps of a process take seconds more, whatever they train
    images = {}
    for count in (7500, 15000, 30000, 60000):
        net = model.Net()
        batches = utils.Batches(train[torch.arange(count)], 128, augment=utils.Augment(), shuffle=True, seed=0)
        start = time.perf_counter()
        utils.train_epoch(net, batches, utils.Muon(net.parameters(), 0.01))
        images[count] = time.perf_counter() - start
    widths = {width: step_seconds(widened(width)) for width in (1, 2, 4)}
    return {"images_s": images, "width_step_s": widths, "peak_mb_above_imports": peak_megabytes() - PEAK_OF_IMPORTS}


def widened(factor: int) -> nn.Sequential:
    """Net's stack with `factor` times the channels."""
    stem, wide = 24 * factor, 32 * factor
    stack = nn.Sequential(
        *model.conv_block(1, stem, 5, stride=2),
        *model.separable_block(stem, wide),
        *model.separable_block(wide, wide),
        nn.MaxPool2d(2),
        *(layer for _ in range(3) for layer in model.separable_block(wide, wide)),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(wide, 10, 1),
        nn.Flatten(),
    )
    return stack.to(memory_format=torch.channels_last)


def measure_profile() -> dict[str, Any]:
    """The costliest operations of Net's training step, as shares of its time."""
    net = model.Net()
    step_seconds(net)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step_seconds(net, rounds=2)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 4) for event in events[:12]}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "epoch": measure_epoch,
    "job": measure_job,
    "limit": measure_limit,
    "growth": measure_growth,
    "profile": measure_profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    # How this script calls itself: one loop, for one epoch, or for a job of so many epochs.
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=int, metavar="EPOCHS", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(options.loop, options.seed, options.job)
        return
    if options.loop:
        print(one_epoch(options.loop))
        return
    report = json.loads(PATH.read_text()) if PATH.exists() else {}
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"parts are {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    if "job" in options.parts and "epoch" not in {*options.parts, *report}:
        parser.error("job needs the figures of epoch, which are not there yet; expected parts: epoch job")
    report["machine"] = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()}
    report["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    for part in (part for part in PARTS if part in options.parts):  # job reads what epoch found
        report[part] = PARTS[part]()
        if part == "job":
            report.pop("job_so_far", None)
        print(part, json.dumps({k: v for k, v in report[part].items() if k != "runs"}), flush=True)
        save(report)


if __name__ == "__main__":
    main()
