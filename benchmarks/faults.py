"""Kill training with SIGKILL at random moments, resume it, and count what was lost: benchmarks/results/faults.json.

Each round forks a process that trains with a checkpoint, kills it after a random time and loads what it left. An
epoch is lost if the process had reported it as finished and the checkpoint does not hold it. When all epochs are
done, the weights must equal, to the bit, those of a run that nobody killed; then a new run begins.

    python -m benchmarks.faults --kills 100
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import model
import utils
from benchmarks import records
from kit.runtime import follow_parent

RECIPE = dataclasses.replace(utils.Recipe(), epochs=12, batch_size=16)


def train(checkpoint: Path | None, seed: int, on_epoch: Any = None) -> dict[str, torch.Tensor]:
    """Train `Nano` briefly on random images and return its weights."""
    torch.set_num_threads(1)
    utils.seed_everything(seed)
    images = torch.randint(0, 256, (64, 1, 20, 20), dtype=torch.uint8)
    data = utils.ImageData(images, torch.arange(64) % 10)
    net = model.Nano(dropout=0.1)
    utils.train_network(net, data, data, RECIPE, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch, verbose=False)
    return net.state_dict()


def train_apart(checkpoint: Path, seed: int, finished: Any) -> None:
    """Train in this forked process, send the number of each saved epoch, and end when the parent ends."""
    follow_parent(os.getppid())
    # on_epoch is called before its own epoch is saved: what is safe by then is the epoch before.
    train(checkpoint, seed, on_epoch=lambda history: finished.send(len(history) - 1))


def kill_once(checkpoint: Path, seed: int, delay: float | None) -> tuple[bool, int]:
    """Train in a forked process, kill it after `delay` seconds if any; (was it killed, the last epoch it reported)."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=train_apart, args=(checkpoint, seed, theirs))
    process.start()
    theirs.close()
    process.join(delay)
    if killed := process.exitcode is None:
        process.kill()
        process.join()
    elif process.exitcode != 0:
        raise RuntimeError(f"training with seed {seed} ended with exit code {process.exitcode}: see the error above")
    reported = 0
    while ours.poll():
        try:
            reported = ours.recv()
        except EOFError:
            break
    return killed, reported


def finished_epochs(checkpoint: Path) -> int:
    return len(utils.load_checkpoint(checkpoint)["history"]["seconds"]) if checkpoint.exists() else 0


def count_losses(kills: int, seed: int = 0) -> dict[str, int]:
    """Kill training `kills` times, at moments that `seed` draws, and resume it each time; return the counts."""
    draw = random.Random(seed)
    counts = {"kills": 0, "resumes": 0, "lost_epochs": 0, "unreadable": 0, "whole_runs": 0, "whole_runs_equal": 0}
    train(None, 0)  # the first run of a process is slower than those that it forks later
    start = time.monotonic()
    train(None, 0)
    whole = time.monotonic() - start  # so that kills come anywhere within a run, however fast the machine
    run, before = 0, 0
    with tempfile.TemporaryDirectory() as folder, tqdm(total=kills, unit="kill", disable=None) as bar:
        while counts["kills"] < kills or before:
            checkpoint = Path(folder) / f"{run}.pt"
            delay = draw.uniform(0, whole) if counts["kills"] < kills else None  # the last run comes to its end
            killed, reported = kill_once(checkpoint, run, delay)
            counts["kills"] += killed
            bar.update(killed)
            try:
                after = finished_epochs(checkpoint)
            except ValueError:
                counts["unreadable"] += 1
                run, before = run + 1, 0
                continue
            counts["lost_epochs"] += max(0, max(reported, before) - after)
            counts["resumes"] += before > 0
            before = after
            if after == RECIPE.epochs:
                weights, expected = utils.load_checkpoint(checkpoint)["model"], train(None, run)
                counts["whole_runs"] += 1
                counts["whole_runs_equal"] += all(torch.equal(weights[name], expected[name]) for name in expected)
                run, before = run + 1, 0
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--results", type=Path, default=records.RESULTS / "faults.json", help="the file to write")
    options = parser.parse_args()
    start = time.monotonic()
    counts = count_losses(options.kills, options.seed)
    seconds = round(time.monotonic() - start)
    origin = {"machine": records.machine(), "versions": records.versions(), "commit": records.commit()}
    records.write(options.results, {**counts, "seconds": seconds, **origin})
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
