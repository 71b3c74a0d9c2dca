"""The benchmarks measure what they name, and the documentation says what the result files say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import model
import utils
from benchmarks import peers, records, report, speed, tables, usual
from kit.settings import as_plain

ROOT = Path(__file__).resolve().parent.parent


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------------------------------------------- The pages


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.name)
def test_the_pages_say_what_the_result_files_say(page):
    text = page.read_text(encoding="utf-8")
    assert report.fill(text) == text, "run python -m benchmarks.report"


def test_a_figure_changed_by_hand_is_put_right():
    page = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    assert "Total params: 5,550" in page
    assert report.fill(page.replace("Total params: 5,550", "Total params: 5,551")) == page


def test_a_marker_that_nobody_writes_is_refused():
    with pytest.raises(ValueError, match="'weather'"):
        report.fill("<!-- report: weather -->\nsunny\n<!-- end -->")


def test_a_result_that_is_absent_is_said_to_be_absent(results):
    page = report.fill("<!-- report: faults -->\n99 of 99\n<!-- end -->")
    assert "99" not in page and "Not measured yet: there is no `faults.json`" in page


# --------------------------------------------------------------------------------------------------- The tables


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results; write into it with put()."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def put(
    folder: Path,
    name: str,
    network: str,
    accuracies: list[float],
    epochs: int = 15,
    subsample: float = 1,
    **more: object,
) -> None:
    runs = [
        {"seed": seed, "test_accuracy": [90.0] * (epochs - 1) + [value], "test_loss": [0.03], **more}
        for seed, value in enumerate(accuracies)
    ]
    head = {"network": network, "parameters": 1234, "epochs": epochs, "train_images": 60000, "test_images": 10000}
    records.write(folder / f"{name}.json", head | {"config": {"lr": 0.05, "subsample": subsample}, "runs": runs})


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_handwriting_has_a_row_for_each_condition_and_counts_refusals(results):
    report = {"network": "Net", "parameters": 1234, "images": 50, "split": "test", "original": 99.0}
    report |= {"read": {"frame": 98.0, "thin pen": 96.0}, "refused": {"frame": 0, "thin pen": 2}}
    records.write(results / "handwriting.json", report)
    text = tables.handwriting_text()
    assert cells(text)[3:5] == [["frame", "98.0"], ["thin pen", "96.0"]]
    assert "50 test digits" in text and "refused count as misread: 2 were." in text


def test_results_come_in_order_with_mean_deviation_and_seeds(results):
    put(results, "accuracy-nano", "Nano", [99.0, 99.2])
    put(results, "accuracy-net-5-epochs", "Net", [98.0, 98.2, 98.4], epochs=5)
    put(results, "accuracy-net", "Net", [99.4, 99.5, 99.6])
    put_variants(results, "repeated", **{"its own recipe": (7758, [99.4, 99.5]), "this kit's": (7758, [99.5, 99.6])})
    put_published(results, (5000, 99.5), (7758, 99.63))
    both = {"one view": (7611, [99.4, 99.5, 99.6]), "five shifted views": (7611, [99.5, 99.6, 99.7])}
    put_variants(results, "views", **both)
    put(results, "accuracy-net-subsample", "Net", [99.3, 99.4, 99.5], subsample=0.3)
    assert cells(tables.results_table())[2:] == [
        ["`Net`", "1,234", "15", "**99.50 ± 0.10**, 3 seeds"],
        ["`Nano`", "1,234", "15", "**99.10 ± 0.14**, 2 seeds"],
        ["`Net`", "1,234", "5", "**98.20 ± 0.20**, 3 seeds"],
        [
            "`Net`, later epochs on [30 % of the images](docs/results.md#later-epochs-on-a-share-of-the-images)",
            *["1,234", "15", "99.40 ± 0.10, 3 seeds"],
        ],
        [
            "`Net`, tested by [five views](docs/results.md#five-views-of-each-image) of each image",
            *["7,758", "15", "99.60 ± 0.10, 3 seeds; the same runs by one view: 99.50 ± 0.10"],
        ],
        [
            "[the highest published result found](https://github.com/a/b), trained again by its own recipe",
            *["7,758", "15", "99.45 ± 0.07, 2 seeds; published: 99.63, one run"],
        ],
    ]
    head = speed.new_head() | {"machine": {"processor": "AMD EPYC", "instructions": "AVX512", "cores": 2}}
    records.write(results / "speed.json", head | {"epoch": {}, "training": {"kit_s": [150.0, 180.0, 240.0]}})
    slower = head | {"machine": head["machine"] | {"instructions": "AVX2"}}
    records.write(results / "speed-avx2.json", slower | {"epoch": {}, "training": {"kit_s": [360.0]}})
    assert "differ by 0.13 points on average, and by up to 0.20 among the 3 runs" in tables.luck_text()
    headline = tables.headline()
    assert "1,234 parameters" in headline and "**99.50 ± 0.10 %**" in headline
    assert "From epoch 15 on, all 3 seeds are at or above 99.40 %." in headline
    assert cells(tables.epochs_table())[-2:] == [
        ["10", "90.00 ± 0.00", "90.00 – 90.00", "0 of 3"],
        ["15", "99.50 ± 0.10", "99.40 – 99.60", "3 of 3"],
    ]
    put(results, "accuracy-net", "Net", [99.3, 99.5, 99.7])
    assert "From epoch" not in tables.headline()
    assert [*map(tables.minutes, (44, 119, 150.1))] == ["40 seconds", "120 seconds", "3 minutes"]
    cores = "minutes on 2 cores of an AMD EPYC"
    assert f"about 3 {cores} (AVX512) or 6 {cores} (AVX2)." in headline

    slower["config"]["layers"]["Net"] = "others"
    records.write(results / "speed-avx2.json", slower | {"epoch": {}, "training": {"kit_s": [360.0]}})
    assert tables.headline().endswith(f"about 3 {cores} (AVX512).")
    records.write(results / "speed.json", slower | {"epoch": {}, "training": {"kit_s": [360.0]}})
    assert tables.headline().endswith("training images alone.")
    subsample = {"epoch": {}, "subsample": {"kit_s": [30.0, 40.0, 80.0]}}
    records.write(results / "speed.json", slower | subsample)  # of earlier layers
    assert "seconds" not in tables.headline()
    slower["config"] = speed.new_head()["config"]
    records.write(results / "speed.json", slower | subsample)
    assert "it takes 40 seconds and reaches 99.40 ± 0.10 %" in tables.headline()


def test_accuracy_row_computes_the_statistics_it_names():
    runs = [{"seed": seed, "test_accuracy": [98.0, 99.0 + seed / 10]} for seed in range(5)]  # finals 99.0 to 99.4
    row = tables.accuracy_row({"network": "Net", "parameters": 7211, "epochs": 2, "runs": runs})
    assert row[:6] == ["`Net`", "7,211", "2", "5", "**99.20** ± 0.16", "99.00 – 99.40"]
    assert row[6] == "99.004 – 99.396"  # 99.2 ± 2.776 * 0.1581 / sqrt(5)
    assert float(row[7]) == pytest.approx(0.98, abs=0.03)
    assert row[8:] == ["98.00"]


def put_variants(folder: Path, name: str, **variants: tuple[int, list[float]]) -> None:
    """Write a result file of variants, each with its number of parameters and its final accuracies."""
    runs = [
        {
            "variant": variant,
            "seed": seed,
            "parameters": parameters,
            "train_loss": [0.1],
            "test_accuracy": [90.0, value],
        }
        for variant, (parameters, values) in variants.items()
        for seed, value in enumerate(values)
    ]
    head = {"network": "Net", "parameters": 7758, "epochs": 15, "variants": dict.fromkeys(variants)}
    records.write(folder / f"{name}.json", head | {"runs": runs})


def put_published(folder: Path, *results: tuple[int, float]) -> None:
    more = {"name": "a/b", "place": "https://github.com/a/b", "epochs": 15, "note": "single run"}
    peers = [{"parameters": parameters, "accuracy": accuracy} | more for parameters, accuracy in results]
    (folder / "published.json").write_text(json.dumps(peers))


def test_the_frontier_is_sorted_by_size_and_takes_net_and_nano_from_their_own_files(results):
    sizes = {"wide": (2000, [99.2, 99.4]), "narrow": (600, [98.0, 98.2]), "no better than narrow": (700, [98.0, 98.2])}
    put_variants(results, "frontier", **sizes)
    put(results, "accuracy-nano", "Nano", [99.0, 99.2])
    put(results, "accuracy-net-5-epochs", "Net", [90.0, 90.2], epochs=5)
    put(results, "accuracy-attempt2", "Attempt2", [99.3, 99.4])
    put_published(results, (1000, 99.05), (600, 99.01), (5000, 99.9))
    assert cells(tables.frontier_table())[2:] == [
        ["narrow", "600", "2", "**98.10** ± 0.14", "98.00 – 98.20", "99.01"],
        ["no better than narrow", "700", "2", "**98.10** ± 0.14", "98.00 – 98.20", "99.01"],
        ["`Nano`", "1,234", "2", "**99.10** ± 0.14", "99.00 – 99.20", "99.05"],
        ["wide", "2,000", "2", "**99.30** ± 0.14", "99.20 – 99.40", "99.05"],
    ]
    entries = [(entry["kind"], entry["name"]) for entry in tables.field_entries()]
    assert entries == [
        *[("ours", "Attempt2"), ("ours", "Nano")],
        *[("published", name) for name in ("99.05", "99.01", "99.90")],
        *[("family", name) for name in ("narrow", "`Nano`", "wide")],
    ]


def test_the_text_on_compare_counts_false_alarms_and_averages_the_changes(results):
    loss = {"mean": 0.017, "low": 0.013, "high": 0.021}
    common = {"seeds": [1, 2], "epochs": 5, "train_images": 5000, "test_images": 1000, "loss": loss}
    equal = [common | {"clear": change > 0.3, "accuracy": {"mean": change}} for change in (0.1, 0.2, 0.4, 0.1)]
    report = {"equal": equal, "no augmentation": common | {"clear": True, "accuracy": {"mean": -0.2}}}
    records.write(results / "compare.json", report)
    text = tables.compare_text()
    assert "called different in 1 of 4 repetitions (2 seeds" in text
    assert "the second differed by +0.20 ± 0.07 points (standard error)" in text  # 0.1414 / sqrt(4)
    assert "1 in 20 different, and 1 or more of 4 with a probability of 0.19" in text  # 1 - 0.95 ** 4
    assert "found a clear difference: +0.0170 in loss, 95 % interval +0.0130 to +0.0210" in text
    assert text.endswith("The recipe has been changed since.")
    records.write(results / "compare.json", report | {"config": as_plain(utils.Recipe())})
    assert "since" not in tables.compare_text()


def test_the_repeated_training_stands_beside_net(results):
    put_variants(results, "repeated", **{"its own recipe": (7758, [99.4, 99.5]), "this kit's": (7758, [99.5, 99.6])})
    put(results, "accuracy-net", "Net", [99.5, 99.7])
    assert cells(tables.repeated_table())[2:] == [
        ["the published network, its own recipe", "7,758", "2", "99.45 ± 0.07", "99.40 – 99.50"],
        ["the published network, this kit's", "7,758", "2", "99.55 ± 0.07", "99.50 – 99.60"],
        ["`Net`, this kit's recipe", "1,234", "2", "99.60 ± 0.14", "99.50 – 99.70"],
    ]


def test_five_views_stand_beside_one_over_the_seeds_that_both_have(results):
    both = {"one view": (7611, [99.5, 99.7, 90.0]), "five shifted views": (7611, [99.6, 99.7])}
    put_variants(results, "views", **both)
    text = tables.views_table()
    assert cells(text)[2:4] == [
        ["one view", "2", "99.60 ± 0.14", "99.50 – 99.70"],
        ["five views, `ShiftedViews`", "2", "99.65 ± 0.07", "99.60 – 99.70"],
    ]
    assert "+0.050 points, 95 % interval -0.585 to +0.685" in text  # 0.05 ± 12.706 * 0.0707 / sqrt(2)
    assert "In 2 of the 2 pairs" in text
    report = tables.read("views")
    report["runs"][0]["train_loss"] = [0.2]
    records.write(results / "views.json", report)
    assert "In 1 of the 2 pairs" in tables.views_table()


def test_a_share_of_the_images_stands_beside_all(results):
    put(results, "accuracy-net", "Net", [99.5, 99.7, 90.0])
    put(results, "accuracy-net-subsample", "Net", [99.4, 99.7], subsample=0.3)
    text = tables.subsample_table()
    assert cells(text)[2:4] == [
        ["all images", "2", "99.60 ± 0.14", "99.50 – 99.70"],
        ["`subsample=0.3`", "2", "99.55 ± 0.21", "99.40 – 99.70"],
    ]
    assert "-0.050 points, 95 % interval -0.685 to +0.585" in text


def test_published_results_are_sorted_and_linked(results):
    peer = {"name": "a/b", "parameters": 7000, "accuracy": 99.5, "epochs": 15, "note": "single run"}
    other = {**peer, "accuracy": 99.61, "epochs": None, "place": "https://github.com/a/b"}
    (results / "published.json").write_text(json.dumps([peer, other]))
    assert cells(tables.published_table())[1:] == [
        ["---", "---:", "---:", "---:", "---"],
        ["[a/b](https://github.com/a/b)", "7,000", "", "99.61", "single run"],
        ["a/b", "7,000", "15", "99.50", "single run"],
    ]


def test_files_of_a_single_run_or_of_none_do_no_harm(results):
    put(results, "accuracy-net", "Net", [99.5])
    put(results, "accuracy-nano", "Nano", [])
    put_variants(results, "frontier", **{"4 / 6 / 8 8": (582, [98.1])})
    put_published(results, (5000, 99.5))
    assert cells(tables.accuracy_table())[2:] == [
        ["`Net`", "1,234", "15", "1", "**99.50**", "99.50 – 99.50", "", "", "90.00"]
    ]
    assert [row[3] for row in cells(tables.frontier_table())[2:]] == ["**98.10**", "**99.50**"]
    assert [entry["spread"] for entry in tables.field_entries()] == [None] * 4


def test_the_ablation_is_judged_as_compare_does(results):
    def runs_of(name: str, *losses: float) -> list[dict]:
        same = {"variant": name, "parameters": 7, "seconds": [1.0], "test_accuracy": [99.5]}
        return [same | {"seed": seed, "test_loss": [loss]} for seed, loss in enumerate(losses)]

    config = {"criterion": "cross_entropy", "test_criterion": None}
    variants = {"whole": {}, "noise": {}, "worse": {}, "another loss": {"criterion": "hinge"}}
    runs = runs_of("whole", 0.020, 0.021, 0.022) + runs_of("noise", 0.021, 0.020, 0.0215)
    runs += runs_of("worse", 0.0301, 0.0310, 0.0319) + runs_of("another loss", 0.5, 0.5, 0.5)
    records.write(results / "ablation.json", {"epochs": 15, "config": config, "variants": variants, "runs": runs})
    rows = cells(tables.ablation_table())[2:]
    assert [row[0] for row in rows] == ["whole", "another loss", "worse", "noise"]  # the highest loss first
    assert [row[-1] for row in rows] == ["", "not clear", "**worse** in loss", "not clear"]
    assert rows[2][1:3] == ["0.0310 ± 0.0009", "+0.0100 (+0.0098 to +0.0102)"] and rows[1][2] == ""
    clear, unclear = tables.parts_text().split(". ")
    assert "worse (+0.0100)" in clear and "noise" not in clear
    assert unclear == "Other changes tried, without a clear rise: 1." and "3 seeds" in clear and "is 0.0210:" in clear


def test_the_table_of_speed_has_at_most_six_rows_all_from_the_file(results):
    side = {"threads": 1, "workers": 2}
    epoch = {"kit": side, "usual": side, "kit_s": [2.0], "usual_s": [8.0], "ratio": 4.0}
    epoch |= {"kit_medians_s": {"1 thread": 2.0}, "usual_medians_s": {"1 thread": 8.0}}
    report = {
        "machine": {"processor": "AMD EPYC", "instructions": "AVX512", "cores": 2},
        "versions": {"python": "3.12", "torch": "2.9"},
        "config": speed.new_head()["config"],
        "epoch": {"Net": epoch, "Attempt2": epoch, "ratio": 4.0},
        "training": {"kit_s": [101.0, 105.0, 200.0], "threads": 1},
        "job": {
            "network": "Net",
            "recipe": {"epochs": 5},
            "kit_s": [20.0, 22.0],
            "reached": 1,
            "usual_first_epoch_s": [25.0, 27.0],
            "usual_first_epoch_accuracies": [90.0, 92.0],
            "ratio": 1.24,
            "peak_mb_above_imports": 321.0,
        },
        "start": {"first_step_s": [3.0], "import_torch_s": [2.5], "above_import_s": 0.5},
        "limit": {"step_flop_s": 4e10, "matmul_flop_s": 2e11, "ratio": 0.2},
        "peers": {name: {"step_s": {"this kit": 0.01, "x": 0.03, "y": 0.02}, "ratio": 2.0} for name in ("Net",)},
    }
    records.write(results / "speed.json", report)
    rows = tables.speed_rows(report)
    assert [row[-1] for row in rows] == [
        "**4.0 ×**",
        "**4.0 ×**",
        "not reached by all",
        "+0.5 s",
        "**0.20**",
        "**2.0 ×**",
    ]
    assert rows[2][1:3] == [
        "21.0 s (20.0 to 22.0 s); 1 of 2 reached it within 5 epochs",
        "the usual loop's first epoch: 26.0 s, at 91.00 %",
    ]
    assert rows[5][1:3] == ["10 ms", "y 20 ms"]
    slower = {"Net": epoch | {"kit_s": [5.0], "ratio": 1.6}, "ratio": 1.6}
    machine = report["machine"] | {"instructions": "AVX2"}
    config = report["config"] | {"layers": {"Net": "others"}, "parameters": {"Net": 1234}}
    records.write(results / "speed-avx2.json", {"machine": machine, "config": config, "epoch": slower})
    records.write(results / "speed-cut-short.json", {"machine": machine, "runs": []})
    text = tables.speed_text()
    assert text.count("On another machine") == 1
    assert "default training of `Net` takes this kit 105 s with 1 thread." in text
    assert "321 MB" in text and "2 cores of an AMD EPYC (AVX512); Python 3.12" in text
    assert "EPYC (AVX2): an epoch of `Net`, median of 1, takes this kit 5.0 s, the usual loop 8.0 s (1.6 ×)" in text
    earlier = "This was an earlier `Net`, of 1,234 parameters."
    assert text.count(earlier) == text.count("an earlier") == 1
    records.write(results / "speed.json", report | {"config": config})
    assert tables.speed_text().count(earlier) == 2


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("accuracy-*.json")), ids=lambda path: path.stem)
def test_result_files_are_whole(path):
    result = json.loads(path.read_text())
    assert result["parameters"] == model.count_parameters(getattr(model, result["network"])()) < 8000
    assert result["epochs"] <= 15 and (result["train_images"], result["test_images"]) == (60000, 10000)
    seeds = [run["seed"] for run in result["runs"]]
    assert len(set(seeds)) == len(seeds) >= 2
    for run in result["runs"]:
        for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"):
            assert len(run[key]) == result["epochs"]


# ------------------------------------------------------------------------------------------------------- Speed


@pytest.fixture(scope="module")
def raw_mnist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    usual.unpack_mnist(folder)
    return str(folder)


def test_operations_are_those_of_the_layers_with_weights():
    first, later = (
        14 * 14 * 24 * 25,
        14 * 14 * (32 * 24 + 32 * 32 + 2 * 32 * 9) + 7 * 7 * 3 * (32 * 32 + 32 * 9) + 3 * 32 * 3 + 320,
    )
    net = model.Net()
    assert speed.operations(net) == 2 * (first + later) and speed.operations(net.layers[:1]) == 2 * first


@pytest.fixture
def threads():
    """Give back the number of threads that the test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_loops_test_on_the_same_images(raw_mnist):
    _, loader = usual.usual_loaders(speed.RECIPES["epoch"], raw_mnist, workers=0, images=1500)
    images, labels = next(iter(loader))
    theirs, their_labels = next(iter(utils.Batches(utils.load_mnist()[1], 1000, device="cpu")))
    assert len(loader.dataset) == 1500 and torch.equal(labels, their_labels)
    torch.testing.assert_close(images, theirs, atol=1e-2, rtol=1e-2)  # the usual mean and deviation have four digits


def test_the_usual_loop_augments_in_the_ranges_of_the_recipe(raw_mnist):
    still = utils.Augment(rotation=0, translation=0, scale=0, shear=0, elastic=0)
    plain, _ = usual.usual_loaders(utils.Recipe(augment=still), raw_mnist, workers=0, images=4)
    moved, _ = usual.usual_loaders(speed.RECIPES["epoch"], raw_mnist, workers=0, images=4)
    first = moved.dataset.dataset.data[:4] / 255
    for image, _ in plain.dataset:
        assert any(torch.allclose(image * 0.3081 + 0.1307, other, atol=1e-5) for other in first)
    image, _ = moved.dataset[0]
    assert not torch.allclose(image * 0.3081 + 0.1307, first[0], atol=0.1)
    ranges, affine = speed.RECIPES["epoch"].augment, moved.dataset.dataset.transform.transforms[0]
    assert affine.degrees == [-ranges.rotation, ranges.rotation] and affine.shear == [-ranges.shear, ranges.shear]
    assert affine.translate == (ranges.translation, ranges.translation)
    assert affine.scale == (1 - ranges.scale, 1 + ranges.scale)
    with pytest.raises(ValueError, match="elastic=0"):
        usual.usual_loaders(utils.Recipe(), raw_mnist, workers=0, images=4)


@pytest.mark.parametrize("loop", ["kit", "usual"])
def test_a_loop_is_timed_epoch_by_epoch(loop, raw_mnist, threads):
    before = time.monotonic()
    figures = speed.measure_loop("job", loop, "Sprinter", 1, 0, images=130, seed=0, folder=raw_mnist)
    epochs = speed.JOB.epochs if loop == "kit" else 1
    assert len(figures["accuracies"]) == epochs and len(figures["clock"]) == 1 + epochs
    clock = [before, *figures["clock"], time.monotonic()]
    assert clock == sorted(clock)
    assert torch.get_num_threads() == 1


def test_the_job_trains_a_small_network_on_both_sides():
    assert model.count_parameters(speed.sprinter()) < 8000
    runs = [
        {"part": "epoch", "network": "Sprinter", "loop": loop, "threads": 2, "workers": workers, "seconds": [1.0, 2.0]}
        for loop, workers in (("kit", 0), ("usual", 2))
    ]
    first, second = speed.plan("job", runs, rounds=1, seeds=1, images=100)
    assert (first["network"], second["network"]) == ("Sprinter", "Sprinter")
    assert (first["loop"], second["loop"], second["workers"]) == ("kit", "usual", 2)


@pytest.mark.parametrize("part", ["training", "subsample"])
def test_a_whole_training_is_timed_from_its_first_step_to_its_last(part):
    epoch = {"part": "epoch", "network": "Net", "loop": "kit", "workers": 0}
    runs = [epoch | {"threads": 2, "seconds": [1.0, 9.0]}, epoch | {"threads": 1, "seconds": [1.0, 5.0]}]
    turns = speed.plan(part, runs, rounds=2, seeds=1, images=100)
    assert [(turn["round"], turn["threads"], turn["network"]) for turn in turns] == [(0, 1, "Net"), (1, 1, "Net")]
    assert speed.RECIPES[part] == utils.Recipe(subsample=0.3 if part == "subsample" else 1)
    timed = [turn | {"seconds": [2.0, 10.0, 20.0 + turn["round"]]} for turn in turns]
    assert speed.SUMMARIZE[part](timed) == {"threads": 1, "kit_s": [18.0, 19.0]}


def test_each_side_of_the_epoch_gets_its_best_setting():
    def run(loop: str, threads: int, workers: int, *seconds: float) -> list[dict]:
        side = {"part": "epoch", "network": "Net", "loop": loop, "threads": threads, "workers": workers}
        return [{**side, "seconds": [1.0, 1.0 + value]} for value in seconds]

    runs = run("kit", 1, 0, 5, 2, 3) + run("kit", 2, 0, 4, 4, 1)
    runs += run("usual", 1, 0, 9, 9, 9) + run("usual", 2, 2, 8, 6, 7)
    runs += [{**entry, "network": network} for network in ("Attempt2", "Sprinter") for entry in runs]
    section = speed.summarize_epoch(runs)
    assert (section["Net"]["kit"]["threads"], section["Net"]["kit_s"]) == (1, [5, 2, 3])
    assert (section["Net"]["usual"]["workers"], section["Net"]["usual_s"]) == (2, [8, 6, 7])
    assert section["ratio"] == section["Net"]["ratio"] == pytest.approx(7 / 3)


def test_the_job_counts_who_reached_the_target():
    def run(loop: str, seconds: list[float], accuracies: list[float]) -> dict:
        side = {"part": "job", "network": "Net", "loop": loop, "threads": 2, "workers": 0, "seed": 1000}
        return {**side, "seconds": seconds, "accuracies": accuracies, "peak_mb_above_imports": seconds[-1]}

    runs = [
        run("kit", [1, 10, 20, 30], [99.0, 99.4, 99.2]),
        run("kit", [1, 12, 22, 32], [98.0, 99.1, 99.39]),
        run("usual", [2, 39], [95.0]),
    ]
    section = speed.summarize_job(runs)
    assert (list(section["kit_s"]), section["reached"], section["usual_first_epoch_s"]) == ([20, 32], 1, [39])
    assert section["ratio"] == 1.5 and section["peak_mb_above_imports"] == 32


@pytest.mark.parametrize("factor", [1, 2])
def test_a_widened_net_has_that_many_channels(factor):
    net = speed.widened(factor)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    stems = [
        next(layer for layer in each.modules() if isinstance(layer, torch.nn.Conv2d)) for each in (net, model.Net())
    ]
    assert stems[0].out_channels == factor * stems[1].out_channels
    assert factor > 1 or model.count_parameters(net) == model.count_parameters(model.Net())


def test_a_run_continues_where_it_was_stopped_and_refuses_another_machine(tmp_path):
    path = tmp_path / "speed.json"
    command = ["start", "--results", str(path), "--rounds", "1"]
    speed.main(command)
    report = json.loads(path.read_text())
    (run,) = report["runs"]
    assert run["commit"] and run["import_torch_s"] > 0 and run["seconds"][0] > 0
    assert report["start"]["above_import_s"] == run["seconds"][0] - run["import_torch_s"]

    run["seconds"] = [1000.0]  # kept, not measured again
    records.write(path, report)
    speed.main(command)
    assert json.loads(path.read_text())["start"]["first_step_s"] == [1000.0]

    records.write(path, report | {"machine": report["machine"] | {"cores": 999}})
    with pytest.raises(SystemExit, match=r"--anew(?s:.)*machine.cores: saved 999"):
        speed.main(command)

    report["config"]["layers"]["Net"] = "others"
    records.write(path, report)
    with pytest.raises(SystemExit, match=r"--anew(?s:.)*config.layers.Net: saved 'others'"):
        speed.main(command)


def test_a_peer_trains_the_same_network(monkeypatch):
    monkeypatch.setattr(peers, "STEPS", 1)
    monkeypatch.setattr(peers, "EPOCHS", 2)
    for framework in ("this kit", "PyTorch, a plain loop"):
        assert peers.time_step("Net", framework)["step_s"] > 0
    other = (["torch"], lambda network, outcome: peers.run_pytorch("Nano", outcome))
    monkeypatch.setitem(peers.FRAMEWORKS, "another network", other)
    with pytest.raises(ValueError, match=r"1,972 parameters; Net has"):
        peers.time_step("Net", "another network")


def test_the_commit_is_dirty_after_a_change_of_code_not_of_results(tmp_path):
    """In a repository of its own, which holds the kit's code and a result file."""
    shutil.copytree(ROOT / "kit", tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "a.json").write_text("1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    script = (
        "from kit import runtime; commit_of_kit = runtime.commit_of_kit.__wrapped__; print(commit_of_kit());"
        "open('benchmarks/results/a.json', 'w').write('2'); print(commit_of_kit());"
        "open('kit/runtime.py', 'a').write('x = 1'); print(commit_of_kit())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, after_result, after_code = done.stdout.split()
    assert len(first) == 40 and after_result == first and after_code == f"{first}-dirty"


# ------------------------------------------------------------------------------------------------------ Faults


def test_killed_training_loses_nothing(tmp_path):
    done = run_module("benchmarks.faults", "--kills", "2", "--results", str(tmp_path / "faults.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert (found["kills"], found["lost_epochs"], found["unreadable"]) == (2, 0, 0)
    assert found["whole_runs_equal"] == found["whole_runs"] >= 1 and found["resumes"] <= 2
    assert found["commit"] and found["versions"]["torch"] == torch.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_trained_process_ends_when_its_parent_is_killed(tmp_path):
    script = (
        "import dataclasses, sys; from pathlib import Path; from benchmarks import faults;"
        "faults.RECIPE = dataclasses.replace(faults.RECIPE, epochs=10**6);"
        "faults.kill_once(Path(sys.argv[1]), 0, 1000)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "net.pt")], cwd=ROOT) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 60
        while not (tmp_path / "net.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        (child,) = map(int, children.read_text().split())
        os.kill(parent.pid, signal.SIGKILL)
    status = Path(f"/proc/{child}/stat")
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.1)
    gone = not status.exists() or status.read_text().split()[2] == "Z"
    if not gone:
        os.kill(child, signal.SIGKILL)
    assert gone
