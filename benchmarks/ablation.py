"""Measure each part of the default recipe on the validation split: the whole recipe, then without one part each.

55,000 of the training images train, the other 5,000 judge; the test set is not touched. Results go to
benchmarks/results/ablation.json as they come; what is in the file already is not run again:

    python benchmarks/ablation.py --seeds 100-102
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from accuracy import RESULTS, new_report, parse_seeds, save, train_one_seed
from tqdm import tqdm

PARTS: dict[str, dict[str, Any]] = {"the whole recipe": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default="100-102", help="not those of accuracy.py")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS / "ablation.json")
    options = parser.parse_args()

    report = new_report("Net", options.epochs, 128)
    report |= {"train_images": 55000, "test_images": 5000}
    if options.results.exists():
        report["runs"] = json.loads(options.results.read_text())["runs"]
    done = {(run["part"], run["seed"]) for run in report["runs"]}
    jobs = [(part, seed) for seed in options.seeds for part in PARTS if (part, seed) not in done]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(train_one_seed, "Net", seed, epochs=options.epochs, validation=True, **PARTS[part]): part
            for part, seed in jobs
        }
        for future in tqdm(as_completed(futures), total=len(jobs), desc="ablation", unit="run", disable=None):
            report["runs"].append({"part": futures[future], **future.result()})
            save(report, options.results)


if __name__ == "__main__":
    main()
