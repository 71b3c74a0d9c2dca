"""compare(): runs that are stored and found again, honest statistics, and workers that never outlive their parent."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import joblib
import nbformat
import numpy
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from scipy import stats
from torch import nn

from compare import Comparison, compare
from kit import statistics
from kit.fingerprint import fingerprint
from kit.settings import as_plain
from model import Net
from utils import Augment, ImageData, Recipe, split

ROOT = Path(__file__).resolve().parent.parent
ONE_EPOCH = Recipe(epochs=1, batch_size=50, augment=None)


class Small(nn.Sequential):
    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.arange(100) % 10)


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """The (variant, seed) of every run that is really trained in this process."""
    import compare as module

    calls, train_one = [], module._train_one

    def counted(number, task, *arguments):
        calls.append((task.variant, task.seed))
        number, run, as_here = train_one(number, task, *arguments)
        assert task.file is None or task.file.exists() or "error" in run  # stored by who trained it
        return number, run, as_here

    monkeypatch.setattr(module, "_train_one", counted)
    return calls


def runs_of(accuracies: dict[str, list[float]], losses: dict[str, list[float]] | None = None) -> Comparison:
    """A comparison with these final accuracies, one per seed; the losses, if not given, follow them."""
    losses = losses or {name: [(100 - value) / 50 for value in values] for name, values in accuracies.items()}
    runs = [
        {"variant": name, "seed": seed, "parameters": 650, "seconds": [1.5, 2.5]}
        | {"test_accuracy": [10.0, accuracy], "test_loss": [2.3, losses[name][seed]]}
        for name, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    recipe = {"criterion": "cross_entropy", "test_criterion": None}
    seeds = list(range(max(map(len, accuracies.values()))))
    return Comparison({name: {"network": name, "recipe": recipe} for name in accuracies}, seeds, {}, runs)


# ---------------------------------------------------------------------------------------------------- Statistics


def test_the_paired_difference_agrees_with_scipy():
    generator = numpy.random.default_rng(0)
    base = generator.normal(size=6)
    values = base + generator.normal(0.8, 0.5, size=6)
    difference, expected = statistics.paired_difference(values.tolist(), base.tolist()), stats.ttest_rel(values, base)
    interval = expected.confidence_interval(0.95)
    assert difference.p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.sd == pytest.approx(numpy.std(values - base, ddof=1))


@pytest.mark.parametrize("values", [[99.4], [99.4, 99.5], [math.nan, 99.5]])
def test_without_spread_there_is_neither_interval_nor_p(values):
    difference = statistics.paired_difference(values, [99.2, 99.3][: len(values)])
    assert difference[1:] == (None, None, None, None)


def test_differences_that_are_equal_but_for_rounding_are_equal():
    difference = statistics.paired_difference([99.46, 99.34], [99.45, 99.33])
    assert difference.mean == pytest.approx(0.01) and difference[1:] == (None, None, None, None)
    assert statistics.paired_difference([99.46, 99.35], [99.45, 99.33]).p == pytest.approx(0.2048, abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_an_infinite_loss_is_said_and_large_differences_are_plain_numbers():
    accuracies = {"a": [0.2, 0.1], "b": [99.9, 99.7]}
    words = runs_of(accuracies, {"a": [0.1, 0.2], "b": [math.inf, 0.3]}).table()
    assert "loss is not a finite number for every seed" in words and "by 100 points" in words


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (-0.5, 34)])
def test_seeds_needed_agrees_with_the_published_sample_sizes(effect, pairs):
    assert statistics.seeds_needed(effect) == pairs  # G*Power 3.1, two-sided paired t test, 80 % power at 5 %


def test_a_larger_effect_never_needs_more_seeds():
    counts = [statistics.seeds_needed(effect, alpha=0.0125) for effect in numpy.geomspace(0.04, 3, 2000).tolist()]
    assert counts == sorted(counts, reverse=True)  # scipy.special.nctdtr is NaN here and there


def test_an_effect_that_is_too_small_needs_too_many_seeds():
    assert statistics.seeds_needed(0.001) is None and statistics.seeds_needed(0.0) is None


# ------------------------------------------------------------------------------------------- What a result says


def test_a_clear_difference_and_an_unclear_one_are_told_apart():
    base = [99.40, 99.45, 99.42, 99.47, 99.38]
    worse = [value - 0.2 + 0.01 * (seed % 2) for seed, value in enumerate(base)]
    alike = [99.44, 99.40, 99.47, 99.41, 99.43]
    summary = {row["variant"]: row for row in runs_of({"Net": base, "worse": worse, "alike": alike}).summary()}
    clear, unclear = (summary[name]["accuracy"]["difference"] for name in ("worse", "alike"))
    p = [stats.ttest_rel(values, base).pvalue for values in (worse, alike)]
    assert clear["clear"] and not unclear["clear"]
    assert clear["mean"] == pytest.approx(-0.196) and clear["seeds_needed"] is None
    assert clear["p"] == pytest.approx(p[0]) and 2 * p[0] < clear["p_corrected"] <= 4 * p[0]
    assert unclear["p_corrected"] == pytest.approx(min(1, 2 * p[1])) and unclear["seeds_needed"] > 5
    assert summary["Net"]["accuracy"]["difference"] is None and summary["Net"]["seconds"] == 4.0

    table = runs_of({"Net": base, "worse": worse, "alike": alike}).table()
    assert re.search(r"Net \(baseline\) +99.42 ± 0.04", table)
    assert "worse: accuracy is clearly lower (worse), by 0.2 points; loss is clearly higher (worse)" in table
    assert re.search(r"alike: accuracy shows no clear difference: about \d[\d,]* seeds to tell 0.0\d+ points", table)


def test_accuracy_and_loss_may_disagree_and_both_are_said():
    accuracies = {"Net": [99.4, 99.5, 99.3, 99.4], "mine": [99.5, 99.4, 99.4, 99.3]}
    losses = {"Net": [0.020, 0.021, 0.019, 0.022], "mine": [0.0151, 0.0160, 0.0139, 0.0172]}
    table = runs_of(accuracies, losses).table()
    assert "mine: accuracy is equal" in table or "mine: accuracy shows no clear difference" in table
    assert "loss is clearly lower (better), by 0.0049" in table


def test_pairs_are_the_seeds_that_both_variants_finished():
    result = runs_of({"Net": [1.0, 2.0, 3.0, 5.0], "mine": [2.0, 4.0, 4.0]})
    difference = result.summary()[1]["accuracy"]["difference"]
    assert difference["pairs"] == 3 and difference["mean"] == pytest.approx(4 / 3)


def test_one_seed_has_no_intervals_and_the_table_says_why():
    table = runs_of({"Net": [99.4], "mine": [99.5]}).table()
    assert "+0.10" in table and "±" not in table.replace("mean ± sd", "")
    assert "One seed gives no intervals" in table and "clear" not in table


def test_without_a_finished_run_there_is_no_history_to_plot():
    with pytest.raises(ValueError, match="no run is finished"):
        replace(runs_of({"a": [99.4]}), runs=[]).plot_history()


def test_losses_by_different_criteria_are_not_compared():
    result = runs_of({"Net": [99.4, 99.5], "smooth": [99.5, 99.8]})
    result.variants["smooth"]["recipe"] = {"criterion": "smoothed", "test_criterion": None}
    assert result.summary()[1]["loss"]["difference"] is None
    assert "Not compared: the loss of smooth" in result.table()
    result.variants["smooth"]["recipe"] = {"criterion": "smoothed", "test_criterion": "cross_entropy"}
    assert result.summary()[1]["loss"]["difference"] is not None


def test_the_notebook_shows_names_as_they_are():
    shown = runs_of({"a|b": [99.4, 99.5], "<i>*c*": [99.5, 99.8]})._repr_markdown_()
    assert "| a\\|b (baseline) |" in shown and "&lt;i>\\*c\\*" in shown


def test_the_plot_has_a_dot_per_seed_and_both_measures():
    figure = runs_of({"Net": [99.4, 99.5, 99.3], "mine": [99.5, 99.4, 99.2], "failed": []}).plot()
    accuracy, loss = figure.axes
    dots = [line for line in accuracy.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [sorted(dot.get_xdata()) for dot in dots] == [[99.3, 99.4, 99.5], [99.2, 99.4, 99.5]]
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["Net\n(baseline)", "mine", "failed"]
    assert [text.get_text() for text in loss.texts] == ["no finished run"]


# ---------------------------------------------------------------------------------------- Runs in this process


def test_seeds_are_paired_and_every_run_records_its_circumstances(data):
    result = compare(
        {"a": Small, "b": lambda: Small(), "c": partial(Small, 0.5)}, data, data, seeds=2, recipe=ONE_EPOCH, jobs=1
    )
    a0, a1, b0, b1, c0, _ = result.runs
    assert a0["test_loss"] == b0["test_loss"] != a1["test_loss"] == b1["test_loss"]
    assert c0["test_loss"] != a0["test_loss"]
    assert (a0["seed"], a0["parameters"], a0["threads"], a0["torch"]) == (0, 650, 1, torch.__version__)
    keys = {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "commit"}
    assert keys <= set(a0) and len(a0["test_accuracy"]) == 1
    curves = {line.get_label(): line.get_ydata() for line in result.plot_history().axes[0].lines}
    assert curves["a"] == pytest.approx([(a0["test_loss"][0] + a1["test_loss"][0]) / 2])
    assert "b: accuracy is equal for every seed; loss is equal for every seed." in result.table()


def test_with_a_number_as_test_each_seed_draws_its_own_validation_images(data, tmp_path, trained):
    call = partial(compare, {"a": Small, "b": Augmented}, data, recipe=ONE_EPOCH, folder=tmp_path, jobs=1)
    result = call(20, seeds=[3, 1])
    for seed in (3, 1):
        alone = compare({"a": Small}, *split(data, 20, seed=seed), seeds=[seed], recipe=ONE_EPOCH, jobs=1)
        (run,) = (run for run in result.runs if (run["variant"], run["seed"]) == ("a", seed))
        assert (run["test_loss"], run["train_loss"]) == (alone.runs[0]["test_loss"], alone.runs[0]["train_loss"])
    assert (result.data["images"], result.data["train_images"], result.data["test_images"]) == (100, 80, 20)
    assert "Each seed drew 20 images of its own to judge on." in result.table()
    trained.clear()
    assert call(20, seeds=[3, 1]).runs == result.runs and not trained
    call(30, seeds=[3])
    assert sorted(trained) == [("a", 3), ("b", 3)]


def test_the_same_call_trains_only_what_is_missing(data, tmp_path, trained):
    call = partial(compare, train=data, test=data, recipe=ONE_EPOCH, folder=tmp_path, jobs=1)
    first = call({"a": Small, "b": Augmented}, seeds=[3, 1])
    assert sorted(trained) == [("a", 1), ("a", 3), ("b", 1), ("b", 3)]
    trained.clear()
    again = call({"a": Small, "b": Augmented}, seeds=[3, 1])
    assert not trained and again.runs == first.runs
    more = call({"renamed": Small, "b": Augmented, "new": partial(Small, 0.3)}, seeds=[1, 3, 4])
    assert sorted(trained) == [("b", 4), ("new", 1), ("new", 3), ("new", 4), ("renamed", 4)]
    assert more.runs[1] == first.runs[0] | {"variant": "renamed"}


class Augmented(Small):
    """As Small, but another class."""

    def forward(self, images):
        return super().forward(images * 2)


def test_changed_settings_are_trained_anew(data, tmp_path, trained, monkeypatch):
    call = partial(compare, train=data, test=data, seeds=1, folder=tmp_path, jobs=1)
    other = ImageData(data.images.flip(0), data.labels)
    noise = 0.1

    def noisy(images, generator):
        return images + noise

    call({"a": Small}, recipe=ONE_EPOCH)
    call({"a": Small}, recipe=replace(ONE_EPOCH, lr=0.01))
    call({"a": Small}, recipe=replace(ONE_EPOCH, augment=noisy))
    noise = 0.2
    call({"a": Small}, recipe=replace(ONE_EPOCH, augment=noisy))
    call({"a": Small}, recipe=replace(ONE_EPOCH, criterion=nn.CrossEntropyLoss(label_smoothing=0.1)))
    call({"a": Small}, recipe=replace(ONE_EPOCH, criterion=nn.CrossEntropyLoss(label_smoothing=0.2)))
    call({"a": Small}, recipe=ONE_EPOCH, train=other)
    call({"a": Small}, recipe=ONE_EPOCH, test=other)
    call({"a": Augmented}, recipe=ONE_EPOCH)
    monkeypatch.setattr(Augmented, "forward", lambda self, images: nn.Sequential.forward(self, images * 3))
    call({"a": Augmented}, recipe=ONE_EPOCH)  # the same name, other code
    assert len(trained) == len(list(tmp_path.iterdir())) == 10


def test_the_key_of_a_run_does_not_depend_on_what_the_process_did_before():
    """torch changes an optimizer's class when its first optimizer is made; Ctrl-C in a notebook leaves its mark."""
    code = (
        "from kit.fingerprint import fingerprint; import kit.runtime, model, utils\n"
        "make = lambda: fingerprint(model.Net, utils.Recipe(), utils.train_network)\n"
        "before = make(); utils.Muon(model.Net().parameters(), lr=0.1); kit.runtime._interrupted_cell = 7\n"
        "print(make() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-40], lambda text: text.replace('"seed": 0', '"seed": 1'), lambda _: "[]"]
)
def test_a_damaged_file_is_named_and_its_run_repeated(data, tmp_path, trained, damage):
    call = partial(compare, {"a": Small}, data, data, seeds=1, recipe=ONE_EPOCH, folder=tmp_path, jobs=1)
    first = call()
    (file,) = tmp_path.iterdir()
    file.write_text(damage(file.read_text()))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        again = call()
    assert len(trained) == 2 and again.runs[0]["test_loss"] == first.runs[0]["test_loss"]
    assert call().runs == again.runs and len(trained) == 2


def test_a_variant_that_fails_is_reported_and_not_stored(data, tmp_path, capsys):
    def diverges(logits, labels):
        return F.cross_entropy(logits, labels) * math.inf

    variants = {"fine": Small, "wrong": lambda: nn.Linear(3, 3), "no net": lambda: 7}
    variants["diverges"] = replace(ONE_EPOCH, criterion=diverges)
    result = compare(variants, data, data, seeds=2, recipe=ONE_EPOCH, folder=tmp_path, jobs=1)
    assert len(list(tmp_path.iterdir())) == 2
    table = result.table()
    assert re.search("wrong: seeds 0, 1 failed with RuntimeError: .*mat1 and mat2", table)
    assert "no net: seeds 0, 1 failed with TypeError: its maker returned int" in table
    assert re.search(r"diverges: seeds 0, 1 failed with NonFiniteLoss: epoch 1: .*loss is (inf|nan)", table)
    assert "in train_network" in result.runs[-1]["traceback"]
    assert capsys.readouterr().out.count("failed: ") == 6


def test_no_run_in_this_process_goes_on_from_another(data):
    torch.manual_seed(0)
    start = Small(dropout=0.0)
    before = start[2].weight.clone()
    reports = [
        compare({"given": lambda: start}, data, data, seeds=seeds, recipe=ONE_EPOCH, jobs=1) for seeds in ([0, 1], [1])
    ]
    both, alone = (report.runs[-1]["test_loss"] for report in reports)
    assert both == alone and torch.equal(start[2].weight, before)


def test_settings_may_hold_modules():
    def criterion(logits, labels):
        return functional.cross_entropy(logits, labels)

    functional = F
    assert as_plain(criterion)["captured"] == {"functional": "torch.nn.functional"}
    assert as_plain([F, math]) == ["torch.nn.functional", "math"]


def test_a_recipe_trains_the_network_of_the_baseline(data):
    slow = replace(ONE_EPOCH, lr=1e-4)
    result = compare(
        {"a": Small, "b": slow, "c": (partial(Small, 0.0), slow)}, data, data, seeds=1, recipe=ONE_EPOCH, jobs=1
    )
    assert [run["parameters"] for run in result.runs] == [650] * 3
    assert [variant["recipe"]["lr"] for variant in result.variants.values()] == [0.05, 1e-4, 1e-4]
    assert len({run["test_loss"][0] for run in result.runs}) == 3


def test_any_data_set_will_do_and_net_is_the_default_network():
    pairs = [(torch.rand(3, 20, 20), number % 4) for number in range(24)]
    result = compare({"a recipe": ONE_EPOCH}, pairs, pairs, seeds=1, jobs=1)
    assert result.runs[0]["parameters"] == sum(p.numel() for p in Net(3, 4).parameters())


def test_to_json_holds_everything_as_plain_data(data, tmp_path):
    result = compare({"a": Small, "b": Small}, data, data, seeds=1, recipe=ONE_EPOCH, jobs=1)
    result.to_json(tmp_path / "result.json")
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["runs"] == result.runs and stored["summary"][1]["accuracy"]["difference"]["mean"] == 0
    assert stored["train_images"] == 100 and stored["variants"]["b"]["recipe"]["epochs"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {}}, "variants is"),
        ({"variants": {"a": Small()}}, "what makes a network"),
        ({"variants": {"a": (Small, 3)}}, "'a' is"),
        ({"variants": {"a": Small}, "recipe": {"epochs": 2}}, "expected a Recipe"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": 2.5}, "seeds is 2.5"),
        ({"seeds": True}, "seeds is True"),
        ({"test": 100}, "test is 100; expected images, or how many of the 100 in train .* 1 to 99"),
        ({"test": 0.2}, "test is 0.2; expected images"),
        ({"test": True}, "test is True; expected images"),
        ({"jobs": 0}, "jobs is 0; expected a number of runs at a time"),
        ({"jobs": "2"}, "jobs is '2'"),
        ({"variants": {"a": partial(Small, threading.Lock())}}, "'a' cannot be sent"),
    ],
)
def test_wrong_arguments_are_named(data, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        compare(**{"variants": {"a": Small}, "train": data, "test": data, **change})


def test_ctrl_c_in_this_process_returns_what_is_finished(data, capsys):
    def interrupts():
        raise KeyboardInterrupt

    result = compare({"a": Small, "b": interrupts}, data, data, seeds=2, recipe=ONE_EPOCH, jobs=1)
    assert [(run["variant"], run["seed"]) for run in result.runs] == [("a", 0)]
    assert "Interrupted after 1 of 4 runs" in capsys.readouterr().out
    assert "3 of the runs are missing" in result.table()


# ------------------------------------------------------------------------------------------ Code as part of a key


def test_a_fingerprint_sees_code_globals_captured_values_and_defaults():
    def variant(text: str, make: str = "make"):
        module = {"__name__": "__main__", "nn": nn}
        exec(text, module)
        return fingerprint(module[make])

    base = "WIDTH = 8\ndef helper(width): return nn.Linear(width, 1)\nmake = lambda: helper(WIDTH)\n"
    assert variant(base) == variant("# a comment\n\n" + base + "\nunrelated = 3\n")
    assert variant(base) == variant(base.replace("make", "renamed"), "renamed")
    changes = [("WIDTH = 8", "WIDTH = 9"), ("width, 1)", "width, 2)"), ("nn.Linear", "nn.Bilinear"), ("(WIDTH)", "(8)")]
    assert len({variant(base)} | {variant(base.replace(*change)) for change in changes}) == 5

    layers = "class Block(nn.Module):\n    def forward(self, x): return x + 1\n"
    layers += "class make(Block):\n    size = (3, {1: 'a'})\n"
    changes = [("x + 1", "x + 2"), ("(3,", "(4,"), ("(nn.Module)", "(nn.Identity)"), ("'a'", "'b'")]
    assert len({variant(layers)} | {variant(layers.replace(*change)) for change in changes}) == 5

    assert (
        fingerprint(Recipe()) == fingerprint(Recipe(augment=Augment())) != fingerprint(Recipe(augment=Augment(shear=9)))
    )
    assert fingerprint(partial(Small, 0.1)) != fingerprint(partial(Small, 0.2)) != fingerprint(Small)


def test_a_fingerprint_follows_modules_within_packages(tmp_path, monkeypatch):
    package = tmp_path / "parts"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "deep" / "__init__.py").touch()
    (package / "user.py").write_text(
        "def relative():\n    from .deep import blocks\n    return blocks.make()\n"
        "def by_name():\n    from .deep.blocks import make\n    return make()\n"
        "def sibling():\n    from . import deep\n    import parts.deep.blocks\n    return deep.blocks.make()\n"
        "def optional():\n    if False:\n        import not_installed, broken_module\n    return 3\n"
    )
    (package / "deep" / "blocks.py").write_text("def make(): return 1\n")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    import parts.deep.blocks
    import parts.user

    makers = [
        lambda: parts.deep.blocks.make(),
        parts.user.relative,
        parts.user.by_name,
        parts.user.sibling,
        parts.user.optional,
    ]
    before = [fingerprint(make) for make in makers]
    exec("def make(): return 2", vars(parts.deep.blocks))
    assert [fingerprint(make) == was for make, was in zip(makers, before, strict=True)] == [False] * 4 + [True]


def test_a_fingerprint_sees_which_try_a_statement_is_in():
    def variant(body: str) -> str:
        module: dict = {"__name__": "__main__"}
        exec(f"def f(a, b):\n    try:\n{body}", module)
        return fingerprint(module["f"])

    inside = "        a()\n        b()\n    except ValueError:\n        pass\n"
    behind = "        a()\n    except ValueError:\n        pass\n    else:\n        b()\n"
    assert variant(inside) != variant(behind)


def test_a_fingerprint_does_not_depend_on_what_else_was_imported(tmp_path, monkeypatch):
    package = tmp_path / "whole"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layers.py").write_text("def make(): return 1\n")
    (package / "data.py").write_text("WHERE = 'here'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import whole.layers

    def make(weight):
        return whole.layers.make() * weight.data

    def by_another_name(weight):
        import whole as package

        either = whole if weight else package
        return package.layers.make(), either.layers.make() * weight.data

    def handed_on(weight):
        local = whole
        return local.layers.make()

    def from_it(weight):
        from whole import layers as inner

        return inner.make()

    makers = (make, by_another_name, handed_on, from_it)
    before = [fingerprint(maker) for maker in makers]
    import whole.data  # as the script does, and a worker does not

    assert fingerprint(make) == before[0]
    vars(whole.layers)["make"] = lambda: 2
    assert not {*before} & {fingerprint(maker) for maker in makers}


def test_a_fingerprint_does_not_depend_on_the_order_of_a_set_or_what_python_adds_to_a_class():
    text = (
        "class A: __slots__ = ('a',)\nclass B: pass\nclass C: pass\nKINDS = {A, B, C}\nWIDTH = 7\n"
        "def make():\n    class D:\n        WIDTH = 8\n        half = WIDTH // 2\n    return KINDS, D\n"
    )
    code = f"from kit.fingerprint import fingerprint\n{text}print(fingerprint(make), fingerprint(A))"
    said = set()
    for seed, change in (("1", ("", "")), ("2", ("", "")), ("3", ("WIDTH = 7", "WIDTH = 9"))):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code.replace(*change)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1

    module: dict = {"__name__": "__main__"}
    exec(text, module)
    members = {name: member for name, member in vars(module["A"]).items() if name != "a"}
    assert "a" in vars(module["A"]) and fingerprint(type("A", (), members)) == fingerprint(module["A"])


def test_a_class_within_a_function_may_move_to_another_line():
    """Since Python 3.13 a class keeps the number of its first line, here one that is a constant as well."""

    def variant(comments: str) -> str:
        module: dict = {"__name__": "__main__"}
        exec(f"{comments}def f():\n    class A:\n        width = 5\n    return A", module)
        return fingerprint(module["f"])

    assert variant("") == variant("#\n#\n#\n") == variant("#\n" * 300)


def test_settings_of_a_lambda_are_what_it_reads_and_no_more():
    module: dict = {"__name__": "__main__", "train": 1, "size": 2}
    exec("def outer():\n    f = lambda net: (net.train(), size, late)\n    return f\n    late = 0\nf = outer()", module)
    plain = as_plain(module["f"])
    assert plain["globals"] == {"size": 2} and plain["captured"] == {}
    module["train"] = 3
    assert as_plain(module["f"]) == plain


def test_a_fingerprint_ends_where_code_and_objects_refer_to_themselves():
    def forever(count):
        return forever(count - 1) if count else chain

    chain: list = []
    chain.append(chain)
    assert fingerprint(forever) == fingerprint(forever)


# ----------------------------------------------------------------------------------------------- Other processes

HEAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import time
from dataclasses import replace
import torch
from torch import nn
from compare import compare
from utils import ImageData, Recipe

images = torch.arange(100 * 64).mul(37).remainder(251).to(torch.uint8).view(100, 1, 8, 8)
data = ImageData(images, torch.arange(100) % 10)
"""

SCRIPT = (
    HEAD
    + """
WIDTH = 64

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 10))

def brighter(images, generator):
    return images + torch.rand(len(images), 1, 1, 1, generator=generator)

variants = {"small": small, "same": lambda: small(), "brighter": Recipe(epochs=2, augment=brighter)}
recipe = replace(Recipe(), epochs=2, augment=None)
print(compare(variants, data, data, seeds=2, recipe=recipe, folder=sys.argv[1], jobs=2))
"""
)

SLOW = (
    HEAD
    + """
class Net(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.layer, self.seconds = nn.Linear(64, 10), seconds

    def forward(self, images):
        time.sleep(self.seconds)
        return self.layer(images.flatten(1))

variants = {"quick": lambda: Net(0), "slow": lambda: Net(60)}
print(compare(variants, data, data, seeds=3, recipe=Recipe(epochs=1), folder=sys.argv[1], jobs=2))
"""
)


def start(text: str, folder: Path) -> subprocess.Popen:
    """Run a script in a session of its own."""
    script = folder / "script.py"
    script.write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    return subprocess.Popen([sys.executable, script, folder / "runs"], start_new_session=True, **options)


def test_functions_and_lambdas_of_a_script_train_and_are_found_by_the_next_process(tmp_path):
    first, _ = start(SCRIPT, tmp_path).communicate(timeout=120)
    assert first.count("accuracy ") >= 6 and "same: accuracy is equal for every seed" in first, first
    assert "not stored" not in first
    assert len(list((tmp_path / "runs").iterdir())) == 6
    second, _ = start("# moved down by a line\n" + SCRIPT, tmp_path).communicate(timeout=120)
    assert "6 of 6 runs were found" in second and first.endswith(second.partition("\n")[2]), second


# A module whose networks are not made before two processes have come to make one, so that both have imported it.
MEETING = """
import os, time
from pathlib import Path
from torch import nn
def meet():
    place = Path(__file__).parent / "here"
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(place.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
"""

RELOADED = (
    HEAD
    + f"""
MEETING = {MEETING!r}"""
    + """
import importlib, shutil
from pathlib import Path
from unittest.mock import call  # which follows every attribute, __wrapped__ too

module, folder = Path(sys.argv[1]).parent / "edited.py", Path(sys.argv[1])
sys.path.insert(0, str(module.parent))
TEXT = MEETING + "WIDTH = WIDE\\ndef make(): meet(); return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH))"

def train():
    shutil.rmtree(module.parent / "here", ignore_errors=True)
    result = compare({"edited": edited.make}, data, data, seeds=2, recipe=Recipe(epochs=1), folder=folder, jobs=2)
    print([run["parameters"] for run in result.runs], len(list(folder.iterdir())), flush=True)

module.write_text(TEXT.replace("WIDE", "10"))
import edited
train()
module.write_text(TEXT.replace("WIDE", "100"))
importlib.invalidate_caches()
importlib.reload(edited)
train()
train()
"""
)


def test_processes_with_other_code_than_this_one_are_told_and_ended(tmp_path):
    said, _ = start(RELOADED, tmp_path).communicate(timeout=120)
    assert [line for line in said.splitlines() if line.startswith("[")] == [
        "[650, 650] 2",
        "[650, 650] 2",  # the processes that had imported the module before it was edited
        "[6500, 6500] 4",
    ], said
    assert said.count("edited: trained with other code or module variables than this process had") == 1


BROKEN = (
    HEAD
    + f"""
MEETING = {MEETING!r}"""
    + """
import importlib, shutil, warnings
from pathlib import Path

module = Path(sys.argv[1]).parent / "broken.py"
sys.path.insert(0, str(module.parent))
START = MEETING + "class A(nn.Sequential):\\n    def __init__(self): super().__init__("
FINE = START + "*(meet() or (nn.Flatten(), nn.Linear(64, 10))))\\n"

def train(**variants):
    shutil.rmtree(module.parent / "here", ignore_errors=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = compare(variants, data, data, seeds=2, recipe=Recipe(epochs=1), jobs=2)
    print([run.get("error", "fine")[:17] for run in result.runs], len(said), flush=True)

def edit(text):
    module.write_text(text + "# of another length, so that Python sees that it has changed\\n" * len(text))
    importlib.invalidate_caches()
    importlib.reload(broken)

module.write_text(START + "meet() or 1 / 0)")
import broken
train(A=broken.A)
edit(FINE)
train(A=broken.A)
train(A=broken.A)
edit(FINE + "class B(A): pass\\n")
train(A=broken.A, B=broken.B)
train(A=broken.A, B=broken.B)
"""
)


def test_an_error_of_a_process_with_other_code_is_told_and_the_next_call_has_the_code_of_now(tmp_path):
    said, _ = start(BROKEN, tmp_path).communicate(timeout=120)
    assert [line for line in said.splitlines() if line.startswith("[")] == [
        "['ZeroDivisionError', 'ZeroDivisionError'] 0",
        "['ZeroDivisionError', 'ZeroDivisionError'] 1",  # of a process that had imported the module before
        "['fine', 'fine'] 0",
        "['fine', 'fine', 'AttributeError: C', 'AttributeError: C'] 1",
        "['fine', 'fine', 'fine', 'fine'] 0",
    ], said


def test_runs_of_a_script_are_the_same_in_this_process_and_in_others_whatever_variables_they_change(tmp_path):
    text = """
import warnings
settings, WIDTH, memory, plain = {"width": 4}, 4, {}, object()

class Small(nn.Sequential):
    def __init__(self, kind=plain):
        width = settings["width"] + WIDTH + (kind is plain)
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))

    def forward(self, images):
        memory[len(memory)] = len(images)
        return super().forward(images)

def wide():
    global WIDTH
    settings["width"], WIDTH = 16, 16
    return Small()

if __name__ == "__main__":
    warnings.simplefilter("error")
    for jobs in (1, 2):
        variants = {"small": Small, "wide": wide, "kind": lambda: Small(kind=plain)}
        arguments = {"seeds": 2, "recipe": Recipe(epochs=1), "jobs": jobs, "folder": sys.argv[1] + str(jobs)}
        result = compare(variants, data, data, **arguments)
        print([(run["variant"], run["seed"], run["parameters"], run["test_loss"]) for run in result.runs])
        stored = len(list(Path(sys.argv[1] + str(jobs)).iterdir()))
        print(settings, WIDTH, memory, Small.__init__.__globals__ is globals(), stored)
"""
    said, _ = start(HEAD.replace("import time", "import time\nfrom pathlib import Path") + text, tmp_path).communicate(
        timeout=120
    )
    lines = [line for line in said.splitlines() if line[:1] in ("[", "{")]
    assert len(lines) == 4 and lines[0] == lines[2], said
    assert lines[1] == lines[3] == "{'width': 4} 4 {} True 6", said
    assert "('small', 1, 685," in lines[0] and "('wide', 1, 2485," in lines[0], said


def test_a_run_that_another_one_has_changed_is_told_and_not_stored(tmp_path):
    text = """
import warnings
from pathlib import Path
(Path(sys.argv[1]).parent / "sizes.py").write_text("WIDTH = 4")
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import sizes

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, sizes.WIDTH), nn.Linear(sizes.WIDTH, 10))

def wide():
    sizes.WIDTH = 16
    return small()

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    arguments = {"seeds": 2, "recipe": Recipe(epochs=1), "jobs": 1, "folder": sys.argv[1]}
    compare({"small": small, "wide": wide}, data, data, **arguments)
print(len(said), "a run has changed a variable of a module" in str(said[0].message))
print(len(list(Path(sys.argv[1]).iterdir())))
"""
    said, _ = start(HEAD + text, tmp_path).communicate(timeout=120)
    assert "1 True" in said and said.splitlines()[-1] == "2", said


def test_runs_in_this_process_leave_the_classes_and_helpers_of_a_script_alone(tmp_path):
    text = """
class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10))

def set_width(width):
    global WIDTH
    WIDTH = width

WIDTH = 8
for width in (8, 30):
    set_width(width)
    result = compare({"wide": Wide}, data, data, seeds=1, recipe=Recipe(epochs=1), folder=sys.argv[1], jobs=1)
    print(result.runs[0]["parameters"], Wide.__init__.__globals__ is globals())
"""
    said, _ = start(HEAD + text, tmp_path).communicate(timeout=120)
    assert "610 True" in said and "2260 True" in said, said


def processes_of(session: int) -> list[str]:
    """The living processes of a session."""
    living = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(its_session) == session and state != "Z":
            living.append(folder.name)
    return living


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["SIGKILL of the parent", "Ctrl-C"])
def test_no_worker_lives_on_and_no_finished_run_is_lost(tmp_path, kind):
    script = start(SLOW, tmp_path)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "runs").glob("*.json")):  # by now, a worker has begun a slow run or will soon
        assert time.monotonic() < deadline and script.poll() is None, script.stdout.read()
        time.sleep(0.05)
    assert len(processes_of(script.pid)) >= 3
    if kind == "Ctrl-C":
        os.killpg(script.pid, signal.SIGINT)  # as a terminal does
    else:
        script.kill()
    deadline = time.monotonic() + 60
    while processes_of(script.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(script.pid)
    printed = set(re.findall(r"(?m)^(quick|slow) +seed (\d+) .* accuracy", script.communicate()[0]))
    stored = [json.loads(path.read_text())["run"] for path in (tmp_path / "runs").glob("[!.]*.json")]
    assert stored and printed <= {(run["variant"], str(run["seed"])) for run in stored}


def test_a_dask_cluster_gives_the_same_runs(data, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is in requirements-extra.txt")
    variants = {"a": Small, "b": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
    call = partial(compare, variants, data, data, seeds=2, recipe=ONE_EPOCH)
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None)
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        result = call(folder=tmp_path)
    assert [run["test_loss"] for run in result.runs] == [run["test_loss"] for run in call(jobs=1).runs]
    assert len(list(tmp_path.glob("*.json"))) == 4


CELL = """
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))

def darker(images, generator):
    return images * torch.rand(len(images), 1, 1, 1, generator=generator)

variants = {"Mine": Mine, "darker": replace(Recipe(epochs=1), augment=darker)}
compare(variants, train, VALIDATION, seeds=2, recipe=Recipe(epochs=1), jobs=2)
"""


def test_the_example_notebook_runs_and_its_cells_may_define_networks(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "compare.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in {"EPOCHS": 1, "SEEDS": 2, "IMAGES": 300, "VALIDATION": 100, "FOLDER": str(tmp_path)}.items():
        parameters.source, found = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {value!r}  ", parameters.source)
        assert found == 1, name
    notebook.cells.append(nbformat.v4.new_code_cell("import torch\n" + CELL))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": ROOT / "examples"}}).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    tables = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert len(tables) == 2 and "| Mine (baseline) |" in tables[1] and "failed" not in "".join(tables)
    assert sum("image/png" in data for data in shown) == 1
    assert len(list(tmp_path.glob("*.json"))) == 6
