"""The README says what the result files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.report
import model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def report():
    return benchmarks.report


def test_the_readme_says_what_the_result_files_say(report):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.fill(readme) == readme, "run python benchmarks/report.py"


def test_a_figure_changed_by_hand_is_put_right(report):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Total params: 5,550" in readme
    assert report.fill(readme.replace("Total params: 5,550", "Total params: 5,551")) == readme


def test_a_marker_that_nobody_writes_is_refused(report):
    with pytest.raises(ValueError, match="'weather'"):
        report.fill("<!-- report: weather -->\nsunny\n<!-- end -->")


def test_accuracy_row_computes_the_statistics_it_names(report):
    runs = [  # finals 99.0 to 99.4
        {"seed": seed, "test_accuracy": [98.0, 99.0 + seed / 10], "views_accuracy": 99.5 + seed / 100}
        for seed in range(5)
    ]
    row = report.accuracy_row({"network": "Net", "parameters": 7211, "epochs": 2, "runs": runs})
    assert row[:6] == ["`Net`", "7,211", "2", "5", "**99.20** ± 0.16", "99.00 – 99.40"]
    assert row[6] == "99.004 – 99.396"  # 99.2 ± 2.776 * 0.1581 / sqrt(5)
    assert float(row[7]) == pytest.approx(0.98, abs=0.03)
    assert row[8:] == ["98.00", "99.52"]


def test_the_ablation_compares_seed_by_seed_and_waits_for_three_seeds(report, monkeypatch):
    def part(name, *finals):
        return [{"part": name, "seed": seed, "test_accuracy": [final]} for seed, final in enumerate(finals)]

    runs = part("mended", 99.2, 99.3, 99.1) + part("too few", 99.0) + part("broken", 98.9, 98.8, 99.3)
    monkeypatch.setattr(report, "read", lambda name: {"runs": runs + part(report.WHOLE, 99.0, 99.1, 99.2)})
    changes = report.ablation_changes()
    assert list(changes) == [report.WHOLE, "broken", "mended"]
    assert changes["mended"] == pytest.approx([0.2, 0.2, -0.1])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("accuracy-*.json")), ids=lambda p: p.stem
)
def test_result_files_are_whole(path):
    result = json.loads(path.read_text())
    assert result["parameters"] == model.count_parameters(getattr(model, result["network"])()) < 8000
    assert result["epochs"] <= 15 and (result["train_images"], result["test_images"]) == (60000, 10000)
    seeds = [run["seed"] for run in result["runs"]]
    assert len(set(seeds)) == len(seeds) >= 2
    for run in result["runs"]:
        for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"):
            assert len(run[key]) == result["epochs"]
