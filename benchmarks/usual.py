"""The loop in most notebooks, to compare the kit with: a DataLoader, PIL, one image at a time, `.item()` at each step.

It trains the same network as the kit with the same recipe: optimizer, schedule, batch size, ranges of augmentation.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset

import utils
from kit.idx import MNIST


def unpack_mnist(folder: Path) -> None:
    """Write the kit's MNIST to `folder` as torchvision expects it."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in MNIST.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))


def usual_loaders(recipe: utils.Recipe, folder: str, workers: int, images: int) -> tuple[DataLoader, DataLoader]:
    """Return torchvision's MNIST in `folder`, its first `images` images, augmented in the ranges of `recipe`.

    Raises ValueError if the augmentation of `recipe` is more than torchvision's RandomAffine does.
    """
    from torchvision import datasets, transforms

    ranges = recipe.augment
    if not isinstance(ranges, utils.Augment) or ranges.elastic or ranges.erasing:
        raise ValueError(f"recipe.augment is {ranges!r}; expected an Augment of RandomAffine's ranges, with elastic=0")
    affine = transforms.RandomAffine(
        ranges.rotation,
        translate=(ranges.translation, ranges.translation),
        scale=(1 - ranges.scale, 1 + ranges.scale),
        shear=ranges.shear,
    )
    normalize = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    train, test = (
        Subset(data, range(min(images, len(data))))
        for data in (
            datasets.MNIST(folder, train=True, transform=transforms.Compose([affine, *normalize])),
            datasets.MNIST(folder, train=False, transform=transforms.Compose(normalize)),
        )
    )
    return (
        DataLoader(train, recipe.batch_size, shuffle=True, num_workers=workers),
        DataLoader(test, 1000, num_workers=workers),
    )


def usual_epoch(net: nn.Module, train: DataLoader, test: DataLoader, optimizer: Any, scheduler: Any) -> float:
    """Train and test for one epoch; return the test accuracy in percent."""
    net.train()
    loss_sum, correct = 0.0, 0
    for images, labels in train:
        optimizer.zero_grad()
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        loss_sum += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()
    net.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in test:
            correct += (net(images).argmax(1) == labels).sum().item()
    return 100 * correct / len(test.dataset)  # type: ignore[arg-type]
