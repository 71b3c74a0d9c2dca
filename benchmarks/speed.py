"""Time the kit beside the usual loop and other frameworks, on this machine, in one run: benchmarks/results/speed.json.

epoch    one epoch, training and test, of Net, Attempt2 and Sprinter: by the kit, and by the usual loop
training the whole default training of Net, by the kit
subsample the same, but each epoch after the first visits a share of the images
job      from the start of the process to the first epoch whose test accuracy is at least 99.40 %: the network
         Sprinter with the recipe JOB; the usual loop, from the start of its process, to the end of its first epoch
start    from the start of the process to the end of the first training step, beside the time of `import torch`
limit    the useful operations per second of a training step of Net, beside those of the machine's matrix product
growth   the time of an epoch for more images, of a step for wider networks
profile  where the time of a training step of Net goes
peers    a training step of Net and Attempt2 in other frameworks (benchmarks/peers.py)

Kit and usual loop (benchmarks/usual.py) train the same network with the same recipe; only in the part job, the usual
loop has neither an average of the weights nor a share of the images. Each has its best number of threads, and the
usual loop its best number of workers. Every measurement is a process of its own; the sides take turns. Each is written
down as it ends, so the same command continues an interrupted run. Nothing else should run on the machine.

    python -m benchmarks.speed                  # everything: about 50 minutes on two cores
    python -m benchmarks.speed epoch limit      # some parts
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import model
import utils
from benchmarks import peers, records
from benchmarks.usual import unpack_mnist, usual_epoch, usual_loaders
from kit.runtime import follow_parent
from kit.settings import as_plain, differences

Run = dict[str, Any]  # one measurement: its part, its settings, its figures

TARGET = 99.40
AFFINE = utils.Augment(elastic=0)  # what the usual loop does as well
GENTLE = utils.Augment(rotation=10, translation=0.06, scale=0.1, shear=6, elastic=0)
# Chosen on validation images. The usual loop has neither an average of the weights nor a share of the images.
JOB = dataclasses.replace(utils.Recipe(), epochs=7, augment=GENTLE, plain_epochs=1, subsample=0.4, lr=0.08)
SEEDS = 1020  # the first of the job's seeds, which nothing was chosen with
NETWORKS = ["Net", "Attempt2"]  # of the part peers; the part epoch has the job's as well
TIMED = [*NETWORKS, "Sprinter"]
ONE_EPOCH = utils.Recipe(epochs=1, plain_epochs=0, augment=AFFINE, average=0)
SUBSAMPLED = utils.Recipe(subsample=0.3)
RECIPES = {"epoch": ONE_EPOCH, "training": utils.Recipe(), "subsample": SUBSAMPLED, "job": JOB}


def new_network(name: str) -> nn.Module:
    """Return a new network of model.py, or the job's."""
    return sprinter() if name == "Sprinter" else getattr(model, name)()


def sprinter() -> nn.Module:
    """Return the network of the job, chosen on validation images.

    `Net` without the blocks at half the side of the image, where they take most of the time, and with wider ones at a
    quarter.
    """
    return model.Net(stem=16, early=(), late=(48, 48, 48))


# ------------------------------------------------------------- What is measured, each in a process of its own
# "clock" holds readings of time.monotonic(), which all processes share: the parent makes seconds since it started the
# process out of them.


def peak_megabytes() -> float:
    """Return the peak of this process's memory."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the parent's memory, which a new process shares at first
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure_loop(
    part: str, loop: str, network: str, threads: int, workers: int, images: int, seed: int, folder: str
) -> Run:
    """Train with the recipe of `part`: the kit all its epochs, the usual loop the first one."""
    imports = peak_megabytes()
    torch.set_num_threads(threads)
    utils.seed_everything(seed)
    recipe, net = RECIPES[part], new_network(network)
    if loop == "kit":
        train, test = (data[torch.arange(min(images, len(data)))] for data in utils.load_mnist())
        clock = [time.monotonic()]
        history = utils.train_network(
            net, train, test, recipe, seed=seed, on_epoch=lambda _: clock.append(time.monotonic()), verbose=False
        )
        accuracies = history.test_accuracy
    else:
        loaders = usual_loaders(recipe, folder, workers, images)
        arguments = recipe.arguments(net, len(loaders[0]))
        clock = [time.monotonic()]
        accuracies = [usual_epoch(net, *loaders, arguments["optimizer"], arguments["scheduler"])]
        clock.append(time.monotonic())
    return {"clock": clock, "accuracies": accuracies, "peak_mb_above_imports": peak_megabytes() - imports}


def measure_round(part: str, round: int, **settings: Any) -> Run:
    """Train as `measure_loop` does, with the number of the round as the seed."""
    return measure_loop(part, seed=round, **settings)


class FirstStep(Exception):
    """The first step of an optimizer has ended."""


def measure_start() -> Run:
    def end(*_: Any) -> None:
        raise FirstStep

    hook = register_optimizer_step_post_hook(end)
    try:
        utils.train_network(model.Net(), *utils.load_mnist(), JOB, verbose=False)
    except FirstStep:
        clock = [time.monotonic()]
    finally:
        hook.remove()
    start = time.monotonic()
    command = [sys.executable, "-c", "import time, torch; print(time.monotonic())"]
    imported = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"clock": clock, "import_torch_s": float(imported.stdout) - start}


def step_seconds(net: nn.Module, *, rounds: int = 7, steps: int = 20) -> float:
    """Return the time of one step of `train_epoch` on a batch in memory: the median of some rounds of steps."""
    utils.keep_freed_memory()  # as `fit` does
    size = utils.Recipe().batch_size
    batch = torch.randn(size, 1, 28, 28), torch.randint(10, (size,))
    optimizer = utils.Recipe().arguments(net, steps)["optimizer"]
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        utils.train_epoch(net, [batch] * steps, optimizer)
        seconds.append((time.perf_counter() - start) / steps)
    return median(seconds[1:])  # the first warms up


def matrix_product_rate(size: int = 2048, rounds: int = 7) -> float:
    """Return the operations per second of a large fp32 matrix product: the best of some rounds."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def operations(net: nn.Module) -> int:
    """Return the floating point operations of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops()


def measure_limit(threads: int, turns: int = 9) -> Run:
    torch.set_num_threads(threads)
    net = model.Net()
    # Backward costs twice what forward does, but the images need no gradient: the first layer costs half of that.
    per_image = 3 * operations(net) - operations(net.layers[:1])
    # In turns, as what else the machine does changes both from one second to the next.
    pairs = [(step_seconds(net), matrix_product_rate()) for _ in range(turns)]
    step, product = (median(values) for values in zip(*pairs, strict=True))
    rate = per_image * utils.Recipe().batch_size / step
    figures = {"flop_per_image": per_image, "step_s": step, "step_flop_s": rate, "matmul_flop_s": product}
    return figures | {"ratio": rate / product}


def measure_growth(images: int) -> Run:
    train, _ = utils.load_mnist()
    step_seconds(model.Net())  # the first steps of a process take longer, whatever they train
    seconds = {}
    for count in (images // 8, images // 4, images // 2, images):
        net = model.Net()
        batches = utils.Batches(train[torch.arange(count)], 128, augment=utils.Augment(), shuffle=True, seed=0)
        start = time.perf_counter()
        utils.train_epoch(net, batches, utils.Muon(net.parameters(), 0.01))
        seconds[count] = time.perf_counter() - start
    return {"images_s": seconds, "width_step_s": {factor: step_seconds(widened(factor)) for factor in (1, 2, 4)}}


def widened(factor: int) -> nn.Module:
    """Return `Net` with `factor` times the channels between its layers."""

    def wide(channels: int) -> int:
        return channels if channels in (1, 10) else factor * channels  # not the image's nor the classes

    net = model.Net()
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d):
            channels, groups = (wide(layer.in_channels), wide(layer.out_channels)), wide(layer.groups)
            sizes = (layer.kernel_size, layer.stride, layer.padding)
            net.set_submodule(name, nn.Conv2d(*channels, *sizes, groups=groups, bias=layer.bias is not None))  # type: ignore[arg-type]
        elif isinstance(layer, nn.BatchNorm2d):
            net.set_submodule(name, nn.BatchNorm2d(wide(layer.num_features)))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def measure_profile() -> Run:
    """The costliest operations of Net's training step, as shares of its time."""
    net = model.Net()
    step_seconds(net)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step_seconds(net, rounds=2)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {"shares": {event.key: round(event.self_cpu_time_total / total, 4) for event in events[:12]}}


MEASURE: dict[str, Callable[..., Run]] = {
    **{part: partial(measure_round, part) for part in ("epoch", "training", "subsample")},
    "job": partial(measure_loop, "job"),
    "start": lambda round: measure_start(),
    "limit": measure_limit,
    "growth": measure_growth,
    "profile": measure_profile,
    "peers": lambda round, **settings: peers.time_step(**settings),
}


# ------------------------------------------------------------------------------ The plan, and what comes of it


def plan(part: str, runs: list[Run], rounds: int, seeds: int, images: int) -> list[Run]:
    """Return the settings of every measurement of `part`, in order."""
    threads = sorted({1, torch.get_num_threads()})
    if part == "epoch":
        loops = [("kit", 0), ("usual", 0), ("usual", 2)]
        sides = [
            {"network": network, "loop": loop, "threads": count, "workers": workers}
            for network in TIMED
            for loop, workers in loops
            for count in threads
        ]
        return [{**side, "images": images, "round": turn} for turn in range(rounds) for side in sides]
    if part in ("training", "subsample"):
        return [{**best(runs, "Net", "kit"), "images": images, "round": turn} for turn in range(rounds)]
    if part == "job":
        sides = [best(runs, "Sprinter", loop) for loop in ("kit", "usual")]
        return [{**side, "images": images, "seed": SEEDS + number} for number in range(seeds) for side in sides]
    if part == "peers":
        pairs = [{"network": network, "framework": name} for network in NETWORKS for name in peers.present()]
        return [{**pair, "round": turn} for turn in range(rounds) for pair in pairs]
    if part == "start":
        return [{"round": turn} for turn in range(rounds)]
    return {"limit": [{"threads": count} for count in threads], "growth": [{"images": images}]}.get(part, [{}])


def epoch_seconds(runs: list[Run], network: str, loop: str) -> dict[tuple[int, int], list[float]]:
    """Return the seconds of each measured epoch, by the numbers of threads and workers."""
    seconds: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        if (run["part"], run.get("network"), run.get("loop")) == ("epoch", network, loop):
            start, end = run["seconds"]
            seconds.setdefault((run["threads"], run["workers"]), []).append(end - start)
    return seconds


def best(runs: list[Run], network: str, loop: str) -> Run:
    """Return the settings of `loop` with the shortest epoch of `network`."""
    seconds = epoch_seconds(runs, network, loop)
    if not seconds:
        raise SystemExit(
            "the parts training, subsample and job need the best numbers of threads and workers: run epoch first"
        )
    threads, workers = min(seconds, key=lambda key: median(seconds[key]))
    return {"network": network, "loop": loop, "threads": threads, "workers": workers}


def summarize_epoch(runs: list[Run]) -> Run:
    section: Run = {}
    for network in TIMED:
        sides: Run = {}
        for loop in ("kit", "usual"):
            seconds, sides[loop] = epoch_seconds(runs, network, loop), best(runs, network, loop)
            sides[f"{loop}_s"] = seconds[sides[loop]["threads"], sides[loop]["workers"]]
            sides[f"{loop}_medians_s"] = {
                f"{threads} threads, {workers} workers": median(values)
                for (threads, workers), values in seconds.items()
            }
        section[network] = {**sides, "ratio": median(sides["usual_s"]) / median(sides["kit_s"])}
    return {**section, "ratio": section["Net"]["ratio"]}


def summarize_training(runs: list[Run]) -> Run:
    return {"threads": runs[0]["threads"], "kit_s": [run["seconds"][-1] - run["seconds"][0] for run in runs]}


def seconds_to_target(run: Run) -> tuple[float, bool]:
    """Return the seconds to the end of the first epoch at or above TARGET, else of the last; and if it was reached."""
    for end, accuracy in zip(run["seconds"][1:], run["accuracies"], strict=True):
        if accuracy >= TARGET:
            return end, True
    return run["seconds"][-1], False


def summarize_job(runs: list[Run]) -> Run:
    kit, usual = ([run for run in runs if run["loop"] == loop] for loop in ("kit", "usual"))
    ends, reached = zip(*map(seconds_to_target, kit), strict=True)
    first = [run["seconds"][1] for run in usual]
    return {
        "network": kit[0]["network"],
        "recipe": as_plain(JOB),
        "seeds": [run["seed"] for run in kit],
        **{run["loop"]: {"threads": run["threads"], "workers": run["workers"]} for run in (kit[0], usual[0])},
        "kit_s": ends,
        "reached": sum(reached),
        "final_accuracies": [run["accuracies"][-1] for run in kit],
        "usual_first_epoch_s": first,
        "usual_first_epoch_accuracies": [run["accuracies"][0] for run in usual],
        "ratio": mean(first) / mean(ends),
        "peak_mb_above_imports": max(run["peak_mb_above_imports"] for run in kit),
    }


def summarize_start(runs: list[Run]) -> Run:
    first, imports = [run["seconds"][0] for run in runs], [run["import_torch_s"] for run in runs]
    return {"first_step_s": first, "import_torch_s": imports, "above_import_s": median(first) - median(imports)}


def summarize_limit(runs: list[Run]) -> Run:
    figures = {run["threads"]: {key: run[key] for key in run if key not in ("part", "commit")} for run in runs}
    return figures[max(figures)] | {"one_thread": figures[1]}


def summarize_peers(runs: list[Run]) -> Run:
    section: Run = {"absent": [name for name in peers.FRAMEWORKS if name not in {run["framework"] for run in runs}]}
    section["versions"] = {name: version for run in runs for name, version in run["versions"].items()}
    for network in NETWORKS:
        steps: dict[str, list[float]] = {}
        for run in (run for run in runs if run["network"] == network):
            steps.setdefault(run["framework"], []).append(run["step_s"])
        medians = {name: median(values) for name, values in steps.items()}
        others = [value for name, value in medians.items() if name != "this kit"]
        section[network] = {"step_s": medians, "ratio": min(others) / medians["this kit"]}
    return section


SUMMARIZE: dict[str, Callable[[list[Run]], Run]] = {
    "epoch": summarize_epoch,
    "training": summarize_training,
    "subsample": summarize_training,
    "job": summarize_job,
    "start": summarize_start,
    "limit": summarize_limit,
    "growth": lambda runs: {key: runs[-1][key] for key in ("images_s", "width_step_s")},
    "profile": lambda runs: runs[-1]["shares"],
    "peers": summarize_peers,
}


# ------------------------------------------------------------------------------------------------- The program


def measure_apart(part: str, settings: Run, folder: str) -> Run:
    """Take one measurement in a process of its own; return its settings and figures."""
    given = settings | {"folder": folder} if "loop" in settings else settings
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.speed", part, "--measure", json.dumps(given)]
    done = subprocess.run(command, cwd=records.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    if clock := figures.pop("clock", None):
        figures["seconds"] = [reading - start for reading in clock]
    return {"part": part, **settings, **figures, "commit": records.commit()}


def new_head() -> dict[str, Any]:
    """Return what must be equal for all measurements of a file."""
    networks = {name: new_network(name) for name in TIMED}
    config = {
        "job": as_plain(JOB),
        "subsample": SUBSAMPLED.subsample,
        "parameters": {name: model.count_parameters(network) for name, network in networks.items()},
        "layers": {name: records.layers(network) for name, network in networks.items()},
    }
    return {"machine": records.machine(), "versions": records.versions(), "config": config}


def open_report(path: Path, anew: bool) -> dict[str, Any]:
    """Return the report to continue: the file at `path` if it was made on this machine with the same settings."""
    head = new_head()
    report = json.loads(path.read_text()) if path.exists() and not anew else {}
    if "runs" not in report:
        return head | {"runs": []}
    if lines := differences({key: report.get(key) for key in head}, json.loads(json.dumps(head))):
        raise SystemExit(f"{path} was measured under other conditions; --anew replaces it:\n" + "\n".join(lines))
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(MEASURE), help=f"of {', '.join(MEASURE)} (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of the parts epoch, training, subsample, start and peers (default 3)"
    )
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds the job is run with (default 10)")
    parser.add_argument("--images", type=int, default=60_000, help="fewer only to try the script")
    parser.add_argument("--results", type=Path, default=records.RESULTS / "speed.json", help="the file to write")
    parser.add_argument("--anew", action="store_true", help="begin a new file")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # how the script calls itself
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(MEASURE):
        parser.error(f"parts are {', '.join(sorted(unknown))}; expected some of {', '.join(MEASURE)}")
    if options.measure is not None:
        follow_parent(os.getppid())
        print(json.dumps(MEASURE[options.parts[0]](**options.measure)))
        return
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"The load average is {load:.1f}: what else runs on this machine changes the figures.", file=sys.stderr)
    report = open_report(options.results, options.anew)
    with tempfile.TemporaryDirectory() as folder:
        unpack_mnist(Path(folder))
        for part in (part for part in MEASURE if part in options.parts):  # the next three read what epoch found
            planned = plan(part, report["runs"], options.rounds, options.seeds, options.images)
            for settings in tqdm(planned, desc=part, unit="run", disable=None):
                if not any({"part": part, **settings}.items() <= run.items() for run in report["runs"]):
                    report["runs"].append(measure_apart(part, settings, folder))
                    records.write(options.results, report)
            runs = [run for run in report["runs"] if any({"part": part, **s}.items() <= run.items() for s in planned)]
            report[part] = SUMMARIZE[part](runs)
            records.write(options.results, report)
            print(part, json.dumps(report[part]), flush=True)


if __name__ == "__main__":
    main()
