"""Repeat the best published training under 8,000 parameters from many seeds: benchmarks/results/repeated.json.

The network of sridevibonthu/EVA, S5/EVA4_S5_05.ipynb (2020): 7,758 parameters, 99.63 % in its one published run. It is
written here from its description, and trained on all training images, once by its own recipe and once by this kit's:
how much of an accuracy is the network, and how much is the recipe? Runs that the file holds are not trained again.

    python -m benchmarks.published
    python -m benchmarks.published --seeds 20-29
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import utils
from benchmarks.accuracy import Variant, load, measure, new_parser


def block(in_channels: int, out_channels: int, padding: int, dropout: float = 0.04) -> list[nn.Module]:
    """Return a 3x3 convolution, BatchNorm, dropout and ReLU, in this order."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.Dropout(dropout), nn.ReLU()]


class Published(nn.Sequential):
    """The published network: images (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__(
            *block(1, 10, padding=1),  # 28
            *block(10, 10, padding=1),  # 28
            nn.MaxPool2d(2),  # 14
            *block(10, 10, padding=0),  # 12
            *block(10, 10, padding=0, dropout=0.0),  # 10
            *block(10, 10, padding=0),  # 8
            *block(10, 16, padding=0),  # 6
            *block(16, 16, padding=0),  # 4
            nn.AvgPool2d(4),  # 1
            nn.Conv2d(16, 10, 1, bias=False),
            nn.Flatten(),
        )


def rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images` (N, C, H, W) rotated by up to 15 degrees each way, each pixel the nearest of the original.

    That is torchvision's RandomRotation with its default interpolation; here every batch is rotated at once.
    """
    angle = (2 * torch.rand(len(images), generator=generator, device=images.device) - 1) * torch.pi / 12
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> OneCycleLR:
    """Return torch's OneCycleLR with its own defaults; `warmup` is the share of the steps in which lr rises."""
    return OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, pct_start=warmup)


SGD = partial(torch.optim.SGD, momentum=0.9)
RECIPES = {
    "its own recipe": utils.Recipe(
        epochs=15,
        batch_size=128,
        augment=rotate,
        plain_epochs=0,
        optimizer=SGD,
        lr=0.01,
        schedule=one_cycle,
        warmup=0.3,
        average=0,
    ),
    "this kit's recipe": utils.Recipe(),
}


def main() -> None:
    options = new_parser(__doc__, "10-19").parse_args()
    variants: dict[str, Variant] = {
        name: (Published, replace(recipe, epochs=options.epochs)) for name, recipe in RECIPES.items()
    }
    measure(options.results / "repeated.json", variants, load("mnist"), options)


if __name__ == "__main__":
    # Imported by its name, so that the settings in the file say benchmarks.published and not __main__.
    from benchmarks import published

    published.main()
