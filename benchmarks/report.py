"""Write the figures of the documentation from the result files: the sections between markers, and the pictures.

python -m benchmarks.report            # rewrites README.md, docs/*.md and pictures/
python -m benchmarks.report --check    # says which pages are out of date; changes nothing
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import model
import utils
from benchmarks import tables
from benchmarks.field import plot_field
from benchmarks.tables import attempts_table, field_entries
from kit.runtime import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SECTIONS: dict[str, Callable[[], str]] = {
    "headline": tables.headline,
    "results": tables.results_table,
    "accuracy": tables.accuracy_table,
    "epochs": tables.epochs_table,
    "luck": tables.luck_text,
    "published": tables.published_table,
    "frontier": tables.frontier_table,
    "repeated": tables.repeated_table,
    "fashion": tables.fashion_table,
    "views": tables.views_table,
    "subsample": tables.subsample_table,
    "attempts": attempts_table,
    "recipe": tables.recipe_text,
    "ablation": tables.ablation_table,
    "parts": tables.parts_text,
    "speed": tables.speed_text,
    "faults": tables.faults_text,
    "compare": tables.compare_text,
    "handwriting": tables.handwriting_text,
    **{f"summary-{network}": tables.summary_of(network) for network in tables.ORDER},
}


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(page: str) -> str:
    """Return the text of `page` with each section between its markers made anew; ValueError for an unknown one."""

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SECTIONS:
            raise ValueError(f"a page has the marker {name!r}; expected one of {', '.join(SECTIONS)}")
        try:
            text = SECTIONS[name]()
        except FileNotFoundError as error:
            text = f"Not measured yet: there is no `{Path(error.filename).name}`."
        return f"<!-- report: {name} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- report: (?P<name>[\w-]+) -->\n.*?<!-- end -->", section, page, flags=re.DOTALL)


def draw_pictures() -> None:
    """Write the pictures of the documentation, each a small PNG file."""
    train, _ = utils.load_mnist()
    figures = {
        "field": plot_field(field_entries()),
        "augmentation": utils.plot_augmentation(train.images[2:7], utils.Augment()),
        "layers": utils.plot_parameters(model.Net()),
    }
    (ROOT / "pictures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(ROOT / "pictures" / f"{name}.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    options = parser.parse_args()
    filled = {path: fill(path.read_text(encoding="utf-8")) for path in pages()}
    stale = [path for path, text in filled.items() if path.read_text(encoding="utf-8") != text]
    if options.check:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"out of date: {names}; run python -m benchmarks.report" if stale else 0)
    for path in stale:
        write_atomically(path, filled[path].encode())
    draw_pictures()


if __name__ == "__main__":
    main()
