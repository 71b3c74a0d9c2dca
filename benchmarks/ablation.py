"""Measure each part of the default recipe on the validation split: the whole recipe, then without one part each.

55,000 of the training images train, the other 5,000 judge; the test set is not touched. Results go to
benchmarks/results/ablation.json as they come; what is in the file already is not run again:

    python benchmarks/ablation.py --seeds 100-102
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import model
import utils
from benchmarks.accuracy import BATCH_SIZE, RESULTS, new_report, parse_seeds, run_all, save


def with_relu() -> nn.Module:
    net = model.Net()
    for place, layer in enumerate(net.layers):
        if isinstance(layer, nn.SiLU):
            net.layers[place] = nn.ReLU(inplace=True)
    return net


def with_dropout() -> nn.Module:
    return model.Net(dropout=0.05)


def with_optimizer(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    return {"optimizer": optimizer, "scheduler": utils.linear_schedule(optimizer, steps)}


def adamw(net: nn.Module, *, epochs: int, steps_per_epoch: int) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, betas=(0.9, 0.99), weight_decay=1e-4)
    return with_optimizer(optimizer, epochs * steps_per_epoch)


def sgd(net: nn.Module, *, epochs: int, steps_per_epoch: int) -> dict[str, Any]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return with_optimizer(optimizer, epochs * steps_per_epoch)


PARTS: dict[str, dict[str, Any]] = {
    "the whole recipe": {},
    "no augmentation": {"augment": None},
    "without rotation": {"augment": utils.Augment(rotation=0)},
    "without translation": {"augment": utils.Augment(translation=0)},
    "without scale": {"augment": utils.Augment(scale=0)},
    "without shear": {"augment": utils.Augment(shear=0)},
    "augmented to the end, no plain last epoch": {"plain_epochs": 0},
    "AdamW in place of Muon": {"recipe": adamw},
    "ReLU in place of SiLU": {"network": with_relu},
    "with erasing, probability 0.25": {"augment": utils.Augment(erasing=0.25)},
    "with elastic draws of 0.5 pixels": {"augment": utils.Augment(elastic=0.5)},
    "SGD with Nesterov momentum in place of Muon": {"recipe": sgd},
    "dropout of 0.05 before the classifier": {"network": with_dropout},
    "label smoothing of 0.1": {"criterion": functools.partial(F.cross_entropy, label_smoothing=0.1)},
    "batch size 256": {"batch_size": 256},
    "an average of the weights, decay 0.998": {"average": 0.998},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default="100-102", help="not those of accuracy.py")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS / "ablation.json")
    options = parser.parse_args()

    report = new_report(model.Net, options.epochs, BATCH_SIZE)
    report |= {"train_images": 55000, "test_images": 5000}
    if options.results.exists():
        report["runs"] = json.loads(options.results.read_text())["runs"]
    done = {(run["part"], run["seed"]) for run in report["runs"]}
    todo = [(part, seed) for part in options.parts for seed in options.seeds if (part, seed) not in done]
    settings = {"network": model.Net, "epochs": options.epochs, "validation": True}
    jobs = [{**settings, **PARTS[part], "seed": seed} for part, seed in todo]
    names = {id(job): part for job, (part, _) in zip(jobs, todo, strict=True)}
    for job, run in tqdm(run_all(jobs, options.processes), total=len(jobs), desc="ablation", unit="run", disable=None):
        report["runs"].append({"part": names[id(job)], **run})
        save(report, options.results)


if __name__ == "__main__":
    main()
