"""Measure each part of the recipe on validation images: the whole recipe, then one part changed at a time.

Each seed sets 10,000 of the training images aside to judge on and trains on the other 50,000; the test set is not
touched. All variants are compared with the whole recipe seed by seed, by accuracy and by loss. Runs that the file holds
are not trained again.

    python -m benchmarks.ablation
    python -m benchmarks.ablation --seeds 106-109 --parts "no augmentation"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import model
import utils
from benchmarks.accuracy import Variant, measure, new_parser

WHOLE = "the whole recipe"


def changed(net: model.Net, replaced: type[nn.Module], *layers: nn.Module) -> model.Net:
    """Put `layers`, or nothing, in place of every layer of the kind `replaced` in `net`, and return it."""
    kept = ([*layers] if isinstance(layer, replaced) else [layer] for layer in net.layers)
    net.layers = nn.Sequential(*chain.from_iterable(kept))
    return net


def net_with(replaced: type[nn.Module], *layers: nn.Module) -> model.Net:
    """Return `Net` with `layers`, or nothing, in place of every layer of the kind `replaced`."""
    return changed(model.Net(), replaced, *layers)


def with_max_pooling() -> model.Net:
    """Return `Net` with the maximum of each 2 x 2 in place of the anti-aliased pooling."""
    net = net_with(nn.AvgPool2d)  # without the blur
    (pooling,) = (layer for layer in net.layers if isinstance(layer, nn.MaxPool2d))
    pooling.stride = 2
    return net


def simple_net() -> nn.Module:
    """Return `Net` with ReLU and max pooling, without channel attention."""
    return changed(changed(with_max_pooling(), model.ChannelAttention), nn.SiLU, nn.ReLU())


ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=1e-4)
SGD = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-4)
SMOOTH = partial(F.cross_entropy, label_smoothing=0.1)

# Each part as (what makes the network, the settings that differ from the whole recipe).
PARTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "no augmentation": (model.Net, {"augment": None}),
    "without rotation": (model.Net, {"augment": utils.Augment(rotation=0)}),
    "without translation": (model.Net, {"augment": utils.Augment(translation=0)}),
    "without scale": (model.Net, {"augment": utils.Augment(scale=0)}),
    "without elastic displacement": (model.Net, {"augment": utils.Augment(elastic=0)}),
    "with shear of up to 10 degrees": (model.Net, {"augment": utils.Augment(shear=10)}),
    "with erasing, probability 0.25": (model.Net, {"augment": utils.Augment(erasing=0.25)}),
    "augmented to the end, no plain last epochs": (model.Net, {"plain_epochs": 0}),
    "the last weights in place of their average": (model.Net, {"average": 0}),
    "AdamW in place of Muon": (model.Net, {"optimizer": ADAMW, "lr": 0.02}),
    "SGD with Nesterov momentum in place of Muon": (model.Net, {"optimizer": SGD, "lr": 0.2}),
    "warm-up of 20 %": (model.Net, {"warmup": 0.2}),
    "label smoothing of 0.1": (model.Net, {"criterion": SMOOTH, "test_criterion": F.cross_entropy}),
    "ReLU in place of SiLU": (partial(net_with, nn.SiLU, nn.ReLU()), {}),
    "without channel attention": (partial(net_with, model.ChannelAttention), {}),
    "max pooling in place of anti-aliased pooling": (with_max_pooling, {}),
    "ReLU, max pooling, no attention, no plain epochs and no average at once": (
        simple_net,
        {"plain_epochs": 0, "average": 0},
    ),
    "dropout of 0.1 before the classifier": (partial(model.Net, dropout=0.1), {}),
}


def variants(parts: list[str], epochs: int) -> dict[str, Variant]:
    """Return the whole recipe and `parts`, each as (network, recipe)."""
    recipe = utils.Recipe(epochs=epochs)
    chosen: dict[str, Variant] = {WHOLE: (model.Net, recipe)}
    for name in parts:
        network, changes = PARTS[name]
        chosen[name] = network, replace(recipe, **changes)
    return chosen


def main() -> None:
    parser = new_parser(__doc__, "100-105")  # not those of accuracy.py
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    options = parser.parse_args()
    data = utils.load_mnist()[0], 10_000
    measure(options.results / "ablation.json", variants(options.parts, options.epochs), data, options)


if __name__ == "__main__":
    # Imported by its name, so that the settings in the file say benchmarks.ablation and not __main__.
    from benchmarks import ablation

    ablation.main()
