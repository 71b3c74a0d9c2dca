"""Kill training with SIGKILL at random moments, resume, and count what was lost: benchmarks/results/faults.json.

Each round forks a process that trains with a checkpoint, kills it after a random time, and loads what it left. An
epoch counts as lost if the process had told that it was finished and the checkpoint does not hold it. When all
epochs are done, the weights must equal, to the bit, those of a run that nobody killed; then a new run begins.

    python benchmarks/faults.py --kills 100
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

import torch
from tqdm import tqdm

import model
import utils
from kit.runtime import write_atomically

EPOCHS = 12


def train(checkpoint: Path | None, seed: int, told: Any = None) -> dict[str, torch.Tensor]:
    """A short run on random images; the number of each finished epoch goes to the pipe `told`."""
    torch.set_num_threads(1)
    utils.seed_everything(seed)
    images = torch.randint(0, 256, (64, 1, 20, 20), dtype=torch.uint8)
    data = utils.ImageData(images, torch.arange(64) % 10)
    net = model.Net(dropout=0.1)
    batches = utils.Batches(data, 16, augment=utils.Augment(), shuffle=True, seed=seed)
    utils.fit(
        net,
        batches,
        utils.Batches(data, 64),
        checkpoint=checkpoint,
        # An epoch is saved after on_epoch, so that the start of the next one tells that it was saved.
        on_epoch=None if told is None else lambda history: told.send(len(history) - 1),
        verbose=False,
        **dataclasses.replace(utils.Recipe(), epochs=EPOCHS).arguments(net, len(batches)),
    )
    return net.state_dict()


def finished_epochs(checkpoint: Path) -> int:
    return len(utils.load_checkpoint(checkpoint)["history"]["seconds"]) if checkpoint.exists() else 0


def kill_once(checkpoint: Path, seed: int, delay: float) -> tuple[bool, int]:
    """Train in a process of its own, kill it after `delay` seconds; (was it killed, the last epoch it told of)."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(checkpoint, seed, theirs))
    process.start()
    theirs.close()
    process.join(delay)
    killed = process.exitcode is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    elif process.exitcode != 0:
        raise RuntimeError(f"training ended with exit code {process.exitcode} after seed {seed}: it could not resume")
    told = 0
    while ours.poll():
        try:
            told = ours.recv()
        except EOFError:
            break
    return killed, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()

    draw = random.Random(options.seed)
    figures = {"kills": 0, "resumes": 0, "lost_epochs": 0, "unreadable": 0, "whole_runs": 0, "whole_runs_equal": 0}
    start = time.monotonic()
    train(None, 0)
    whole = time.monotonic() - start  # so that kills come anywhere within a run, however fast the machine
    limit = 10 * whole * options.kills  # seconds: never for ever
    with tempfile.TemporaryDirectory() as folder, tqdm(total=options.kills, unit="kill", disable=None) as bar:
        seed = 0
        checkpoint = Path(folder) / "net.pt"
        while figures["kills"] < options.kills and time.monotonic() - start < limit:
            before = finished_epochs(checkpoint)
            killed, told = kill_once(checkpoint, seed, draw.uniform(0, whole))
            try:
                after = finished_epochs(checkpoint)
            except ValueError:
                figures["unreadable"] += 1
                break
            figures["lost_epochs"] += max(0, max(told, before) - after)
            if killed:
                figures["kills"] += 1
                bar.update()
            if before and after >= before:
                figures["resumes"] += 1
            if after == EPOCHS:
                weights, expected = utils.load_checkpoint(checkpoint)["model"], train(None, seed)
                figures["whole_runs"] += 1
                figures["whole_runs_equal"] += all(torch.equal(weights[name], expected[name]) for name in expected)
                seed, checkpoint = seed + 1, Path(folder) / f"net-{seed + 1}.pt"
    result = {**figures, "seconds": round(time.monotonic() - start), "versions": {"torch": torch.__version__}}
    write_atomically(ROOT / "benchmarks" / "results" / "faults.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
