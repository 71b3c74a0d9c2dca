"""Result files of the benchmarks: runs are added, never mixed, and what differs is named."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import ablation, accuracy, compare_check, records, views
from model import ChannelAttention, Nano, Net, count_parameters
from utils import ImageData, Recipe, ShiftedViews

RECIPE = Recipe(epochs=2, plain_epochs=1, batch_size=20)


class Mended(Nano):
    """As if the layers had been changed in model.py."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)


Mended.__name__ = "Nano"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(compare_check, "RUNS", tmp_path / "runs")


@pytest.fixture
def data():
    images = torch.randint(0, 256, (40, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    digits = ImageData(images, torch.arange(40) % 10, source="mnist")
    return digits, digits


def measure(path, data, seeds, variants=None):
    variants = variants or {"Nano": (Nano, RECIPE)}
    accuracy.measure(path, variants, data, argparse.Namespace(seeds=seeds, jobs=1, dask=None))
    return json.loads(path.read_text())


def test_a_file_has_the_fixed_keys_and_grows_by_seeds(tmp_path, data, monkeypatch):
    path = tmp_path / "accuracy-nano.json"
    first = measure(path, data, [3])
    assert (first["network"], first["dataset"], first["parameters"], first["epochs"]) == ("Nano", "mnist", 1972, 2)
    assert (first["train_images"], first["test_images"], first["config"]["batch_size"]) == (40, 40, 20)
    (run,) = first["runs"]
    keys = {
        "seed",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "seconds",
        "commit",
        "torch",
        "threads",
    }
    assert keys <= set(run) and len(run["test_accuracy"]) == 2 and first["versions"] == {"torch": [torch.__version__]}

    run |= {"torch": "1.0", "commit": "old"}
    records.write(path, first)
    second = measure(path, data, [1, 3])
    assert [(run["seed"], run["torch"]) for run in second["runs"]] == [(1, torch.__version__), (3, "1.0")]
    assert second["runs"][1]["commit"] == "old" and len(second["versions"]["torch"]) == 2
    monkeypatch.setattr(accuracy, "compare", None)  # would fail if anything were trained again
    assert measure(path, data, [1, 3]) == second


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epochs": 3}, "epochs: saved 2, now 3"),
        ({"lr": 0.1}, r"config\.lr: saved 0\.05, now 0\.1"),
        ({"network": Mended}, r"config\.layers: saved '\w+', now"),
        ({"augment": None}, r"config\.augment: saved .*, now None"),
    ],
)
def test_other_settings_are_refused_before_anything_is_trained(tmp_path, data, monkeypatch, change, line):
    path = tmp_path / "accuracy-nano.json"
    before = measure(path, data, [0])
    monkeypatch.setattr(accuracy, "compare", None)
    with pytest.raises(SystemExit, match=line):
        measure(path, data, [1], {"Nano": (change.pop("network", Nano), replace(RECIPE, **change))})
    with pytest.raises(SystemExit, match="train_images: saved 40, now 30"):
        measure(path, (data[0][:30], data[1]), [1])
    with pytest.raises(SystemExit, match="split: saved None, now 'by seed'"):
        measure(path, (data[0], 10), [1])
    assert json.loads(path.read_text()) == before


def test_ctrl_c_ends_the_program_and_keeps_what_is_finished(tmp_path, data, monkeypatch):
    path, compare = tmp_path / "accuracy-nano.json", accuracy.compare
    variants = {"Nano": (Nano, RECIPE), "other": (Nano, replace(RECIPE, lr=0.1))}
    measure(path, data, [1], {"Nano": variants["Nano"]})  # so that the variants lack different seeds
    calls = []

    def stopped(*arguments, **options):
        calls.append(options["seeds"])
        result = compare(*arguments, **options)
        del result.runs[1:]
        return result

    monkeypatch.setattr(accuracy, "compare", stopped)
    kept = measure(path, data, [1, 2, 3], variants)["runs"]
    assert calls == [(2, 3)] and [run["seed"] for run in kept] == [1, 2]


def test_files_of_the_time_before_are_refused_by_name(tmp_path, data):
    path = tmp_path / "accuracy-nano.json"
    old = json.loads((records.RESULTS / "accuracy-nano.json").read_text()) | {
        "config": {"optimizer": "Muon", "lr": 0.05}
    }
    path.write_text(json.dumps(old))
    with pytest.raises(SystemExit, match=r"accuracy-nano\.json holds runs with other settings.*(?s:.)*config"):
        measure(path, data, [0])


def test_a_file_grows_by_variants_and_says_how_each_differs(tmp_path, data, capsys):
    path = tmp_path / "ablation.json"
    plain, dropout = ("plain", (Nano, RECIPE)), ("dropout", (partial(Nano, dropout=0.5), RECIPE))
    other = ("other rate", (Nano, replace(RECIPE, lr=0.01)))
    measure(path, data, [0], dict([plain, other]))
    assert "other rate" in capsys.readouterr().out
    assert accuracy.new_head(dict([dropout, plain]), *data)["network"] == "Nano"
    result = measure(path, data, [0], dict([plain, dropout]))
    assert [run["variant"] for run in result["runs"]] == ["plain", "other rate", "dropout"]
    assert result["variants"]["other rate"] == {"lr": 0.01} and result["variants"]["plain"] == {}
    assert result["variants"]["dropout"]["network"]["keywords"] == {"dropout": 0.5}
    before = {run["variant"]: run for run in result["runs"]}
    accuracy.RUNS = tmp_path / "elsewhere"
    grown = measure(path, data, [0, 1], dict([plain, other, dropout, ("more", (Nano, replace(RECIPE, lr=0.03)))]))[
        "runs"
    ]
    assert len(grown) == 8 and all(run in grown for run in before.values())  # kept as they were, seconds and all
    with pytest.raises(SystemExit, match=r"variants\.other rate\.lr: saved 0\.01, now 0\.02"):
        measure(path, data, [1], dict([plain, ("other rate", (Nano, replace(RECIPE, lr=0.02)))]))


def test_what_a_file_holds_is_said_and_what_was_not_asked_for_is_not_missed(tmp_path, data, capsys):
    path, variants = tmp_path / "a.json", {"Nano": (Nano, RECIPE), "Mended": (Mended, RECIPE)}
    measure(path, data, [1, 2], variants)
    capsys.readouterr()
    measure(path, data, [1], variants)
    said = capsys.readouterr().out
    assert "a.json holds all of these runs, so none is trained" in said and "missing" not in said


def test_without_a_finished_run_no_file_is_written(tmp_path, data):
    def broken():
        return torch.nn.Sequential(Nano(), torch.nn.Flatten(), torch.nn.Linear(3, 3))

    with pytest.raises(SystemExit, match="broken, seed 1, failed"):
        measure(tmp_path / "a.json", data, [1], {"broken": (broken, RECIPE)})
    assert not (tmp_path / "a.json").exists()


def test_failed_runs_are_told_and_left_out(tmp_path, data):
    path = tmp_path / "ablation.json"

    class Broken(Nano):
        def forward(self, images):
            raise RuntimeError("no such layer")

    with pytest.raises(SystemExit, match="broken, seed 0, failed: RuntimeError: no such layer"):
        measure(path, data, [0], {"plain": (Nano, RECIPE), "broken": (Broken, RECIPE)})
    assert [run["variant"] for run in json.loads(path.read_text())["runs"]] == ["plain"]


def test_every_part_of_the_ablation_makes_a_network_and_changes_something():
    variants = ablation.variants(list(ablation.PARTS), epochs=15)
    head = accuracy.new_head(variants, ImageData(torch.ones(10, 1, 8, 8), torch.arange(10)), 3)
    assert (head["train_images"], head["test_images"], head["split"]) == (7, 3, "by seed")
    settings = head["variants"]
    assert len(settings) == len(ablation.PARTS) + 1 and settings[ablation.WHOLE] == {}
    for name, (make, recipe) in variants.items():
        assert make()(torch.zeros(2, 1, 28, 28)).shape == (2, 10) and recipe.epochs == 15
        assert settings[name] or name == ablation.WHOLE
    relu = str(ablation.net_with(torch.nn.SiLU, torch.nn.ReLU()))
    assert "SiLU" not in relu and relu.count("ReLU") == str(Net()).count("SiLU") > 0
    without = ablation.net_with(ChannelAttention)
    assert count_parameters(Net()) - count_parameters(without) == 9 and "Attention" not in str(without)
    assert count_parameters(ablation.with_max_pooling()) == count_parameters(Net())
    simple = ablation.simple_net()
    assert count_parameters(simple) == count_parameters(without)
    assert not any(name in str(simple) for name in ("SiLU", "Attention", "AvgPool2d"))


def test_the_check_of_compare_tells_equal_variants_from_a_worse_one(tmp_path, data, monkeypatch):
    monkeypatch.setattr(compare_check.utils, "load_mnist", lambda: data)
    monkeypatch.setattr(compare_check.model, "Net", Nano)
    options = ["--repetitions", "2", "--seeds", "2", "--epochs", "1", "--images", "40", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", ["compare_check", *options, "--results", str(tmp_path)])
    compare_check.main()
    result = json.loads((tmp_path / "compare.json").read_text())
    assert [comparison["seeds"] for comparison in result["equal"]] == [[200, 201], [202, 203]]
    for comparison in result["equal"]:
        assert (comparison["epochs"], comparison["train_images"], comparison["test_images"]) == (1, 34, 6)
        assert comparison["loss"]["mean"] != 0  # other first weights: another result
        assert comparison["clear"] == any(comparison[measure]["clear"] for measure in ("accuracy", "loss"))
    worse = result["no augmentation"]
    assert (worse["seeds"], worse["epochs"], worse["loss"]["pairs"]) == ([*range(100, 106)], 15, 6)
    assert worse["loss"]["mean"] != 0


def test_net_by_views_trains_as_net_does_and_is_tested_by_five_views(tmp_path, data, monkeypatch):
    monkeypatch.setattr(views.model, "Net", Nano)
    variants = {"one view": (Nano, RECIPE), "five shifted views": (views.NetByViews, RECIPE)}
    one, five = measure(tmp_path / "views.json", data, [3], variants)["runs"]
    assert (one["parameters"], one["train_loss"]) == (five["parameters"], five["train_loss"])
    net, images = views.NetByViews().eval(), torch.rand(2, 1, 20, 20)
    assert torch.equal(net(images), ShiftedViews(net.net)(images))


def test_parse_seeds():
    assert accuracy.parse_seeds("0-3,7") == [0, 1, 2, 3, 7]
