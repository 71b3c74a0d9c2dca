"""Test `Net` by one view of each image and by five (test-time augmentation): benchmarks/results/views.json.

The trainings of both are the same, the test alone differs. Runs that the file holds are not trained again.

    python -m benchmarks.views
    python -m benchmarks.views --seeds 20-29
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

import model
import utils
from benchmarks.accuracy import Variant, load, measure, new_parser


class NetByViews(nn.Module):
    """`Net` that, in eval mode, averages its logits over five views: images (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model.Net()
        self.views = utils.ShiftedViews(self.net)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) if self.training else self.views(images)


NETWORKS = {"one view": model.Net, "five shifted views": NetByViews}


def main() -> None:
    options = new_parser(__doc__, "20-39").parse_args()
    recipe = replace(utils.Recipe(), epochs=options.epochs)
    variants: dict[str, Variant] = {name: (network, recipe) for name, network in NETWORKS.items()}
    measure(options.results / "views.json", variants, load("mnist"), options)


if __name__ == "__main__":
    # Imported by its name, so that the settings in the file say benchmarks.views and not __main__.
    from benchmarks import views

    views.main()
