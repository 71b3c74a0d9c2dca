"""Train `Net` at other sizes, from about 550 to 5,000 parameters: benchmarks/results/frontier.json.

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


class Size(NamedTuple):
    """The arguments of `Net` that set its size, and the order in its stem."""

    stem: int
    early: tuple[int, ...]
    late: tuple[int, ...]
    pool_first: bool

    def __str__(self) -> str:
        widths = " / ".join(" ".join(map(str, stage)) for stage in ((self.stem,), self.early, self.late))
        return widths + (", pool first" if self.pool_first else "")


SIZES = [
    Size(6, (6,), (8, 8), pool_first=False),
    Size(7, (8,), (8, 10), pool_first=False),
    Size(6, (10,), (10, 10, 10), pool_first=False),
    Size(8, (12,), (16, 16), pool_first=False),
    Size(16, (20, 20), (20, 28), pool_first=True),
    Size(16, (24, 24), (24, 28, 32), pool_first=True),
]


def main() -> None:
    parser = new_parser(__doc__, "20-24")
    options = parser.parse_args()
    recipe = replace(utils.Recipe(), epochs=options.epochs)
    variants: dict[str, Variant] = {str(size): (partial(model.Net, **size._asdict()), recipe) for size in SIZES}
    measure(options.results / "frontier.json", variants, load("mnist"), options)


if __name__ == "__main__":
    main()
