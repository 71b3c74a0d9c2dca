"""Test `Net` by five shifted views of each image (test-time augmentation): benchmarks/results/views.json.

Each training is the same as that of accuracy.py with the same seed; the test alone differs. So the two files pair up,
seed by seed. Runs that the file holds are not trained again.

    python -m benchmarks.views
    python -m benchmarks.views --seeds 20-29
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

import model
import utils
from benchmarks.accuracy import load, measure, new_parser


class NetByViews(nn.Module):
    """`Net` that, in eval mode, averages its logits over five views: images (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model.Net()
        self.views = utils.ShiftedViews(self.net)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) if self.training else self.views(images)


def main() -> None:
    parser = new_parser(__doc__, "20-39")
    options = parser.parse_args()
    variants = {"five shifted views": (NetByViews, replace(utils.Recipe(), epochs=options.epochs))}
    measure(options.results / "views.json", variants, load("mnist"), options)


if __name__ == "__main__":
    main()
