"""Train `Net` at other sizes, from about 600 to 5,000 parameters: benchmarks/results/frontier.json.

One family of networks and one recipe, on all training images; the test accuracy of the FINAL epoch counts. `Net`
itself and `Nano`, of the same family, are trained by accuracy.py. Runs that the file holds are not trained again.

    python -m benchmarks.frontier
    python -m benchmarks.frontier --seeds 25-29
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import model
import utils
from benchmarks.accuracy import Variant, load, measure, new_parser


class Widths(NamedTuple):
    """The arguments of `Net` that set its size."""

    stem: int
    early: tuple[int, ...]
    late: tuple[int, ...]

    def __str__(self) -> str:
        return " / ".join(" ".join(map(str, stage)) for stage in ((self.stem,), self.early, self.late))


SIZES = [
    Widths(4, (6,), (8, 8)),
    Widths(4, (8,), (8, 10)),
    Widths(6, (10,), (10, 12)),
    Widths(3, (10,), (10, 10, 10)),
    Widths(8, (12,), (16, 16)),
    Widths(10, (14, 14), (16, 16)),
    Widths(16, (20, 20), (20, 24)),
    Widths(16, (24, 24), (24, 28, 28)),
]
FULL_RESOLUTION = [  # the stem keeps the side of the image, `stem_stride=1`
    Widths(7, (8,), (8, 10)),
    Widths(6, (10,), (10, 10, 10)),
]


def main() -> None:
    parser = new_parser(__doc__, "20-24")
    options = parser.parse_args()
    recipe = replace(utils.Recipe(), epochs=options.epochs)
    variants: dict[str, Variant] = {str(size): (partial(model.Net, **size._asdict()), recipe) for size in SIZES}
    variants |= {
        f"{size}, stem at full resolution": (partial(model.Net, **size._asdict(), stem_stride=1), recipe)
        for size in FULL_RESOLUTION
    }
    measure(options.results / "frontier.json", variants, load("mnist"), options)


if __name__ == "__main__":
    main()
