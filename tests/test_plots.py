"""The figures: what they draw is what they were given, and they leave nothing behind."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import model
from kit import plots
from kit.data import ImageData
from kit.plots_history import plot_history

DIGITS = tuple("0123456789")
WORDS = ("cat", "dog", "a very long name")


def images(count: int = 6, channels: int = 1, side: int = 28) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def history(epochs: int = 15, **changes: list[float]) -> SimpleNamespace:
    steps = range(epochs)
    lists = {
        "train_loss": [0.5 / (step + 1) for step in steps],
        "test_loss": [0.3 / (step + 1) for step in steps],
        "train_accuracy": [99 - 20 / (step + 1) ** 2 for step in steps],
        "test_accuracy": [99.5 - 10 / (step + 1) ** 2 for step in steps],
        "learning_rate": [0.02 / (step + 1) for step in steps],
    }
    return SimpleNamespace(**(lists | changes))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),  # 28 -> 26, RF 3
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3),  # 26 -> 24, RF 5
        nn.MaxPool2d(2),  # 24 -> 12, RF 6
        nn.Conv2d(5, 6, 3),  # 12 -> 10, RF 10
        nn.AdaptiveAvgPool2d(1),  # 10 -> 1, RF 28
        nn.Flatten(),
        nn.Linear(6, 10),
    )


def probabilities(labels: torch.Tensor, wrong: dict[int, tuple[int, float]]) -> torch.Tensor:
    """Certain and right, but for image: (class, probability) in `wrong`."""
    table = torch.eye(10)[labels]
    for image, (predicted, share) in wrong.items():
        table[image] = (1 - share) / 9
        table[image, predicted] = share
    return table


LABELS = torch.tensor([0, 1, 2, 1, 2, 2])
CALLS = {
    "images": lambda: plots.plot_images(images(), LABELS, classes=WORDS),
    "augmentation": lambda: plots.plot_augmentation(images(2), jitter, draws=3),
    "history": lambda: plot_history(history(), target=99.4),
    "confusion": lambda: plots.plot_confusion(LABELS, LABELS.flip(0), WORDS),
    "mistakes": lambda: plots.plot_mistakes(images(3), LABELS[:3], probabilities(LABELS[:3], {1: (7, 0.9)}), DIGITS),
    "prediction": lambda: plots.plot_prediction(images()[0, 0], images()[0], torch.tensor([0.1, 0.7, 0.2]), WORDS),
    "class_accuracy": lambda: plots.plot_class_accuracy(LABELS, LABELS.flip(0), WORDS),
    "filters": lambda: plots.plot_filters(torch.randn(6, 1, 3, 3)),
    "feature_maps": lambda: plots.plot_feature_maps(network(), images()[0]),
    "parameters": lambda: plots.plot_parameters(network()),
}


def jitter(batch: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return (batch + 0.5 * torch.rand(batch.shape, generator=generator)).clamp(0, 1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def tiles(figure: Figure) -> list[torch.Tensor]:
    return [torch.as_tensor(image.get_array().filled(math.nan)) for image in figure.axes[0].images]


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_comes_back_and_the_settings_stay(name):
    settings, state = dict(matplotlib.rcParams), torch.get_rng_state()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    figure = CALLS[name]()
    if name not in ("filters", "feature_maps", "parameters"):  # these draw their own weights here
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert type(figure) is Figure
    assert dict(matplotlib.rcParams) == settings
    assert figure.get_facecolor() == (1, 1, 1, 1)  # opaque: legible on a dark page
    shown = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
    assert {text.get_fontsize() for text in shown} == {10}
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.01 and drawn.x1 < width + 0.01 and drawn.y1 < height + 0.01  # not cut off
    picture = figure._repr_png_()  # what a notebook shows
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000


def test_no_pyplot_no_backend_and_nothing_at_import():
    code = (
        "import sys, torch\nfrom kit import plots\n"
        "assert 'matplotlib' not in sys.modules and 'torchvision' not in sys.modules\n"
        "figure = plots.plot_images(torch.rand(2, 1, 8, 8))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib\n"
        "assert matplotlib.rcParams._get('backend') is matplotlib.rcsetup._auto_backend_sentinel\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    kit = Path(plots.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=kit)


def test_the_callers_style_does_not_leak_in():
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "text.color": "white"}):
        figure = plot_history(history())
    axes = figure.axes[1]
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert {label.get_fontsize() for label in (axes.title, axes.xaxis.label, *axes.get_yticklabels())} == {10}


NAMES = ("$5 to $10", "a_$b", r"\alpha $x^$", "100 % & more", "<b>")  # "$x^$" is no valid formula


@pytest.mark.parametrize(
    "draw",
    [
        lambda labels, wrong: plots.plot_images(images(5), labels, classes=NAMES),
        lambda labels, wrong: plots.plot_confusion(labels, labels.flip(0), NAMES),
        lambda labels, wrong: plots.plot_mistakes(images(5), labels, wrong, NAMES),
        lambda labels, wrong: plots.plot_class_accuracy(labels, labels.flip(0), NAMES),
        lambda labels, wrong: plots.plot_feature_maps(
            nn.Sequential(OrderedDict({"$x^$": nn.Conv2d(1, 2, 3)})), images()[0]
        ),
    ],
    ids=["images", "confusion", "mistakes", "class_accuracy", "feature_maps"],
)
def test_class_names_are_shown_as_they_are_and_never_as_formulas(draw):
    figure = draw(torch.arange(5), torch.eye(5).flip(0))
    figure.savefig(io.BytesIO(), format="png")  # in the caller's style
    shown = [text for text in figure.findobj(matplotlib.text.Text) if "$" in text.get_text()]
    assert shown and all(not text.get_parse_math() for text in shown)
    pickle.loads(pickle.dumps(figure)).savefig(io.BytesIO(), format="png")


# ---- Data ----


def test_images_are_shown_in_order_under_their_names():
    data = ImageData((images(12) * 255).byte(), torch.arange(12) % 3, WORDS)
    figure = plots.plot_images(data, columns=4, count=8)
    assert texts(figure) == [WORDS[index % 3] for index in range(8)]
    assert torch.allclose(torch.stack(tiles(figure)), data.images[:8, 0] / 255)
    assert texts(plots.plot_images(images(3), [4, 5, 6])) == ["4", "5", "6"]


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_are_rescaled(channels):
    plain = images(4, channels)
    plain[:, :, 0, 0], plain[:, :, 0, 1] = 0, 1
    shown = tiles(plots.plot_images((plain - 0.1307) / 0.3081))
    expected = plain.permute(0, 2, 3, 1).squeeze(3)
    assert torch.allclose(torch.stack(shown), expected, atol=1e-5)


def test_nan_pixels_do_not_spoil_the_others():
    spoilt = (images(2) - 0.5) / 0.5
    spoilt[0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    shown = torch.stack(tiles(plots.plot_images(spoilt)))
    assert shown.isfinite().all() and 0.9 < shown[1].max() <= 1


def test_augmentation_starts_with_the_original_and_every_draw_differs():
    given = images(3)
    kept = given.clone()
    rows = torch.stack(tiles(plots.plot_augmentation(given, jitter, draws=4))).unflatten(0, (3, 5))
    assert torch.equal(given, kept)
    assert torch.equal(rows[:, 0], given[:, 0])
    for row in rows:
        assert len({tile.numpy().tobytes() for tile in row}) == 5
    again = torch.stack(tiles(plots.plot_augmentation(given, jitter, draws=4))).unflatten(0, (3, 5))
    other = torch.stack(tiles(plots.plot_augmentation(given, jitter, draws=4, seed=1))).unflatten(0, (3, 5))
    assert torch.equal(rows, again) and not torch.equal(rows, other)


# ---- Training and results ----


def test_history_draws_what_it_was_given():
    given = history()
    loss, accuracy, rate = plot_history(given, target=99.4).axes
    assert [axes.get_xlabel() for axes in (loss, accuracy, rate)] == ["epoch"] * 3
    assert "loss" in loss.get_ylabel() and "%" in accuracy.get_ylabel() and rate.get_ylabel() == "learning rate"
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        lines = {line.get_label(): line for line in axes.lines}
        for part in ("train", "test"):
            assert lines[part].get_xdata()[0] == 1
            assert list(lines[part].get_ydata()) == getattr(given, f"{part}_{name}")
    target = next(line for line in accuracy.lines if line.get_label().startswith("target"))
    assert set(target.get_ydata()) == {99.4}
    low, high = accuracy.get_ylim()
    assert 90 < low < 99.4 < high <= 100.1
    assert list(rate.lines[0].get_ydata()) == given.learning_rate
    ticks = rate.get_xticks()
    assert ticks[0] == 1 and all(tick == int(tick) for tick in ticks)
    assert loss.get_yscale() == "log" and len(loss.get_yticks()) >= 3
    assert f"{max(given.test_accuracy):.2f}" in accuracy.get_title(loc="left")


def test_history_of_one_epoch_and_of_nan():
    assert plot_history(history(1)).axes[0].get_xticks().tolist() == [1]
    nan = [math.nan] * 3
    lists = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "learning_rate")
    assert isinstance(plot_history(history(3, **dict.fromkeys(lists, nan)), target=99.4), Figure)


def test_several_histories_lie_over_one_another():
    given = {"short": history(3), "long": history(6)}
    loss, accuracy, rate = plot_history(given, target=99.4).axes
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        lines = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "-"}
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        for number, (run, one) in enumerate(given.items()):
            assert list(lines[run].get_ydata()) == getattr(one, f"test_{name}")
            assert list(dashed[number].get_ydata()) == getattr(one, f"train_{name}")
            assert dashed[number].get_color() == lines[run].get_color()
        assert lines["short"].get_color() != lines["long"].get_color()
    assert rate.get_xlim()[1] == 6.5
    legend = [text.get_text() for text in accuracy.figure.legends[0].get_texts()]
    assert legend == ["short", "long", "training", "target, 99.4 %"]


def test_a_prediction_shows_the_picture_the_image_and_every_class(tmp_path, monkeypatch):
    path, image = tmp_path / "seven.png", images()[0]
    Image.new("RGB", (40, 20), (255, 0, 0)).save(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    figure = plots.plot_prediction("~/seven.png", image, torch.tensor([0.1, 0.7, 0.2]), WORDS)
    left, middle, right = figure.axes
    assert left.images[0].get_array().shape == (20, 40, 3) and (left.images[0].get_array()[..., 0] == 255).all()
    torch.testing.assert_close(torch.as_tensor(middle.images[0].get_array().filled()), image[0])
    assert [round(bar.get_width(), 2) for bar in right.patches] == [0.1, 0.7, 0.2]
    assert [label.get_text() for label in right.get_yticklabels()] == list(WORDS)
    assert right.get_title(loc="left") == f"read as {WORDS[1]}, 70.0%"
    twins = plots.plot_prediction(path, image, torch.tensor([0.1, 0.7, 0.2]), ["a", "a", "b"]).axes[2]
    assert len({bar.get_y() for bar in twins.patches}) == 3
    with pytest.raises(ValueError, match=r"probabilities has shape \(1, 3\), expected \(3,\)"):
        plots.plot_prediction(path, image, torch.ones(1, 3) / 3, WORDS)


@pytest.mark.parametrize(
    ("picture", "corner", "middle"),
    [
        (Image.new("RGBA", (20, 20), (0, 0, 0, 0)), 255, 0),  # black ink on nothing
        (Image.new("LA", (20, 20), (0, 0)), 255, 0),
        (Image.new("I;16", (20, 20), 65535), 255, 0),
        (Image.new("P", (20, 20), 0), 0, 255),
        (Image.new("L", (20, 20), 0), 0, 255),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_a_picture_of_any_mode_is_shown_as_it_is_read(picture, corner, middle):
    ink = {"RGBA": (0, 0, 0, 255), "LA": (0, 255), "I;16": 0, "P": 1, "L": 255}[picture.mode]
    if picture.mode == "P":
        picture.putpalette([0, 0, 0, 255, 255, 255])
    for x in range(6, 14):
        for y in range(6, 14):
            picture.putpixel((x, y), ink)
    figure = plots.plot_prediction(picture, images()[0], torch.tensor([0.1, 0.7, 0.2]), WORDS)
    shown = torch.as_tensor(figure.axes[0].images[0].get_array().filled()).double()
    shown = shown * (255 if shown.max() <= 1 else 1)
    assert shown[0, 0].tolist() == [corner] * 3 and shown[10, 10].tolist() == [middle] * 3


def test_a_picture_held_sideways_is_shown_upright():
    picture = Image.new("RGB", (80, 60))
    picture.getexif()[0x0112] = 6  # a quarter turn
    figure = plots.plot_prediction(picture, images()[0], torch.tensor([0.1, 0.7, 0.2]), WORDS)
    assert figure.axes[0].images[0].get_array().shape == (80, 60, 3)


def test_an_augmentation_is_called_as_in_a_training():
    calls = []
    plots.plot_augmentation(images(), lambda batch, g: calls.append(g) or batch, draws=2, count=2)
    assert [type(generator) for generator in calls] == [torch.Generator] * 2


def test_layers_called_by_keyword_or_returning_tuples_are_named():
    class ByKeyword(nn.Conv2d):
        pass

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ByKeyword(1, 2, 3)

        def forward(self, inputs):
            return self.conv(input=inputs)

    for net, name in ((Network(), "conv"), (nn.Sequential(nn.Flatten(2), nn.LSTM(784, 3, batch_first=True)), "1")):
        with pytest.raises(ValueError, match=f"model's layer '{name}' does not take a tensor by position"):
            plots.plot_parameters(net)


def test_confusion_counts_and_shares_are_those_given():
    labels = torch.randint(0, 9, (500,), generator=torch.Generator().manual_seed(1))  # no image of the last class
    predictions = torch.where(torch.arange(500) % 5 == 0, (labels + 1) % 10, labels)
    figure = plots.plot_confusion(labels, predictions, DIGITS)
    drawn = torch.zeros(10, 10, dtype=torch.long)
    shares = {}
    for text in figure.axes[0].texts:
        if text.get_text().isdigit():
            column, row = (round(value) for value in text.get_position())
            drawn[row, column] = int(text.get_text())
        else:
            shares[round(text.xy[1])] = text.get_text()
    expected = torch.zeros(10, 10, dtype=torch.long)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    assert torch.equal(drawn, expected)
    assert shares.pop(9) == "no images"
    for row, share in shares.items():
        assert share == f"{100 * expected[row, row] / expected[row].sum():.2f} % right"
    colours = torch.as_tensor(figure.axes[0].images[0].get_array().filled(math.nan))
    assert colours.diagonal().isnan().all()  # muted: only mistakes get a colour
    assert "400" not in figure.axes[0].get_title(loc="left") and "100 of 500" in figure.axes[0].get_title(loc="left")


def test_mistakes_are_exactly_the_wrong_ones_the_most_confident_first():
    labels = torch.arange(10)
    wrong = {3: (8, 0.6), 5: (6, 0.99), 9: (4, 0.75)}
    batch = images(10)
    figure = plots.plot_mistakes(batch, labels, probabilities(labels, wrong), DIGITS)
    captions = [text for text in texts(figure) if text.startswith("true")]
    assert captions == [
        "true 5\npredicted 6\n99.0 %",
        "true 9\npredicted 4\n75.0 %",
        "true 3\npredicted 8\n60.0 %",
    ]
    assert torch.allclose(torch.stack(tiles(figure)), batch[[5, 9, 3], 0])
    assert len(tiles(plots.plot_mistakes(batch, labels, probabilities(labels, wrong), DIGITS, count=2))) == 2


def test_no_mistakes_is_said():
    labels = torch.arange(10)
    figure = plots.plot_mistakes(images(10), labels, torch.eye(10), DIGITS)
    assert texts(figure) == ["No mistakes: all 10 images are right."]


def test_class_accuracy_in_percent_on_a_zoomed_axis():
    labels = torch.arange(1000) % 2
    predictions = labels.clone()
    predictions[:20] = 0  # ten of class 1 wrong
    axes = plots.plot_class_accuracy(labels, predictions, ("even", "odd", "none")).axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [tuple(line.get_xdata()) for line in points] == [(100.0,), (98.0,)]
    interval = next(line for line in axes.lines if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [1, 1])
    assert interval.get_xdata() == pytest.approx([96.36, 98.91], abs=0.01)  # Wilson, 490 of 500
    low, high = axes.get_xlim()
    assert 95 < low < 96.36 and 100 <= high < 101
    assert texts(axes.figure) == ["100.00 %   0 of 500 wrong", "98.00 %   10 of 500 wrong", "no images"]


# ---- Inside the network ----


def test_filters_share_one_scale_centred_at_zero():
    weight = torch.randn(5, 1, 3, 3)
    weight[0, 0, 0, 0] = -7
    figure = plots.plot_filters(nn.Parameter(weight))
    assert {image.get_clim() for image in figure.axes[0].images} == {(-7.0, 7.0)}
    assert torch.equal(torch.stack(tiles(figure)), weight[:, 0])
    assert len(tiles(plots.plot_filters(torch.randn(4, 3, 5, 5)))) == 12
    weight[1] = math.nan
    assert isinstance(plots.plot_filters(weight * 0), Figure)


def test_feature_maps_are_each_layers_own_output():
    model, image = network().eval(), images(1)
    figure = plots.plot_feature_maps(model, image[0])
    assert texts(figure) == ["input\n1 × 28 × 28", "0\n4 × 26 × 26", "4\n5 × 24 × 24", "6\n6 × 10 × 10"]
    assert [tile.shape[0] for tile in tiles(figure)] == [28] + [26] * 4 + [24] * 5 + [10] * 6
    with torch.no_grad():
        first = model[0](image)[0]  # before the in-place ReLU behind it
    scaled = (first - first.min()) / (first.max() - first.min())
    assert torch.allclose(torch.stack(tiles(figure)[1:5]), scaled, atol=1e-6)
    few = plots.plot_feature_maps(model, image, layers=["5"], channels=2)
    assert texts(few)[1] == "5\n2 of 5 × 12 × 12"


def test_feature_maps_of_poolings_and_attention():
    net, image = model.Net().eval(), images(1)
    kinds = (nn.MaxPool2d, nn.AvgPool2d, model.ChannelAttention)
    names = [name for name, layer in net.named_modules() if isinstance(layer, kinds)]
    sides = [round(tile.shape[0]) for tile in tiles(plots.plot_feature_maps(net, image, layers=names, channels=1))]
    maps = [net.layers[: int(name.removeprefix("layers.")) + 1](image) for name in names]
    assert names and sides == [28, *(output.shape[2] for output in maps)]


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        raise RuntimeError(f"broken behind {self.conv(x).shape}")


def test_the_model_is_left_as_it_was():
    model = network().train()
    model[2].eval()  # a frozen layer stays frozen
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plots.plot_feature_maps(model, images()[0])
    plots.plot_parameters(model)
    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken behind"):
        plots.plot_feature_maps(broken, images()[0])
    assert broken.training and broken.conv.training
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in (*model.modules(), *broken.modules()))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_parameters_and_receptive_fields_of_a_known_stack():
    model = network()
    bars, fields = plots.plot_parameters(model).axes
    assert [text.get_text() for text in fields.texts] == ["3", "5", "6", "10", "28", "28"]
    counts = [int(text.get_text().replace(",", "")) for text in bars.texts]
    assert counts == [36 + 8, 185, 0, 276, 0, 70]
    assert bars.get_title(loc="left") == f"{sum(p.numel() for p in model.parameters()):,} parameters"
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert labels[0] == "conv 3×3 → 4 × 26 × 26" and labels[-1] == "linear → 10"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(1, 2, 3, dilation=2), nn.Conv2d(2, 2, 3)], ["5", "7"]),
        (
            [nn.Conv2d(1, 2, 5, stride=2), nn.Conv2d(2, 2, 3), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3)],
            ["5", "9", "11", "19"],
        ),
        ([nn.Conv2d(1, 2, (1, 5)), nn.Conv2d(2, 2, (3, 1))], ["5", "5"]),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 4)], ["3", "28"]),
        ([nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)], ["1", "3"]),
    ],
)
def test_receptive_field_of_strides_dilations_and_other_stacks(layers, expected):
    fields = plots.plot_parameters(nn.Sequential(*layers)).axes[1]
    assert [text.get_text() for text in fields.texts] == expected


def found_by_gradients(layers: nn.Sequential, side: int) -> int:
    """The side of the square of pixels that one position in the middle of the output depends on."""
    batch = torch.rand(64, 1, side, side).requires_grad_()  # many, for a maximum passes one gradient of several
    output = layers(batch)
    output[:, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    rows = batch.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() > 0 and rows.max() < side - 1  # the image does not cut it off
    return int(rows.max() - rows.min() + 1)


@pytest.mark.parametrize("network", [model.Net, model.Nano])
def test_receptive_fields_of_the_networks_are_those_found_by_gradients(network):
    torch.manual_seed(0)
    net = network().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    shown = [int(text.get_text()) for text in plots.plot_parameters(net).axes[1].texts]
    sliding = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    places = [place for place, layer in enumerate(net.layers) if isinstance(layer, sliding)]
    assert len(shown) == len(places)
    whole = next(row for row, place in enumerate(places) if isinstance(net.layers[place], nn.AdaptiveAvgPool2d))
    found = [found_by_gradients(net.layers[: place + 1], 72) for place in places[:whole]]
    assert shown[:whole] == found and min(shown[whole:]) >= 28


def test_a_shared_layer_counts_once():
    layer = nn.Conv2d(1, 1, 3)
    bars, fields = plots.plot_parameters(nn.Sequential(layer, nn.ReLU(), layer)).axes
    assert [text.get_text() for text in bars.texts] == ["10", "0"]
    assert [text.get_text() for text in fields.texts] == ["3", "5"]


# ---- Bad arguments ----


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plots.plot_images([1, 2]), TypeError, "images is list"),
        (lambda: plots.plot_images(images().long()), TypeError, "torch.int64"),
        (lambda: plots.plot_images(images()[0, 0]), ValueError, "(28, 28)"),
        (lambda: plots.plot_images(images(2, 2)), ValueError, "(2, 2, 28, 28)"),
        (lambda: plots.plot_images(images()[:0]), ValueError, "(0, 1, 28, 28)"),
        (lambda: plots.plot_images(images(), [1, 2]), ValueError, "labels has shape (2,)"),
        (lambda: plots.plot_images(images(), LABELS, classes=["a"]), ValueError, "expected 0 to 0"),
        (lambda: plots.plot_images(images(), columns=0), ValueError, "columns is 0"),
        (lambda: plots.plot_images(images(), count=2.0), TypeError, "count is a float"),
        (lambda: plots.plot_augmentation(images(), None), TypeError, "augment"),
        (lambda: plots.plot_augmentation(images(), jitter, draws=0), ValueError, "draws is 0"),
        (lambda: plots.plot_augmentation(images() * 3, jitter), ValueError, "0 to 1"),
        (lambda: plot_history([]), TypeError, "train_loss"),
        (lambda: plot_history({}), ValueError, "history is empty"),
        (lambda: plot_history(history(0)), ValueError, "train first"),
        (lambda: plot_history(history(3, test_loss=[1.0])), ValueError, "'test_loss': 1"),
        (lambda: plot_history(history(), target=994), ValueError, "994"),
        (lambda: plots.plot_confusion(LABELS, LABELS[:3], WORDS), ValueError, "predictions has shape (3,)"),
        (lambda: plots.plot_confusion(LABELS, LABELS, WORDS[:2]), ValueError, "from 0 to 2"),
        (lambda: plots.plot_confusion(LABELS, LABELS.float(), WORDS), TypeError, "argmax"),
        (lambda: plots.plot_confusion([], [], WORDS), ValueError, "0 entries"),
        (lambda: plots.plot_class_accuracy(LABELS - 1, LABELS, WORDS), ValueError, "from -1 to 1"),
        (
            lambda: plots.plot_mistakes(images(), LABELS, torch.eye(6)[:, :3] * 2, WORDS),
            ValueError,
            "softmax",
        ),
        (
            lambda: plots.plot_mistakes(images(), LABELS, torch.full((6, 3), math.nan), WORDS),
            ValueError,
            "NaN",
        ),
        (
            lambda: plots.plot_mistakes(images(), LABELS, torch.eye(6), WORDS),
            ValueError,
            "(6, 6), expected (6, 3)",
        ),
        (
            lambda: plots.plot_mistakes(images(), LABELS, LABELS, WORDS),
            TypeError,
            "probabilities is torch.int64",
        ),
        (lambda: plots.plot_filters(torch.randn(4, 3)), ValueError, "(4, 3)"),
        (lambda: plots.plot_filters(nn.Conv2d(1, 1, 1)), TypeError, "Conv2d"),
        (lambda: plots.plot_feature_maps(network(), images()), ValueError, "one image"),
        (lambda: plots.plot_feature_maps(network(), images()[0].byte()), TypeError, "normalised"),
        (lambda: plots.plot_feature_maps(nn.Linear(2, 2), images()[0]), ValueError, "no convolution"),
        (lambda: plots.plot_feature_maps(network(), images()[0], layers=["nine"]), ValueError, "nine"),
        (
            lambda: plots.plot_feature_maps(network(), images()[0], layers=["9"]),
            ValueError,
            "9 does not return",
        ),
        (lambda: plots.plot_parameters("Net"), TypeError, "model is a str"),
        (lambda: plots.plot_parameters(network(), (28, 28)), ValueError, "input_size is (28, 28)"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_a_figure_can_be_saved_and_pickled():
    buffer = io.BytesIO()
    figure = pickle.loads(pickle.dumps(plots.plot_images(images())))
    figure.savefig(buffer, format="svg")
    assert b"<svg" in buffer.getvalue()


def test_the_default_device_changes_nothing():
    """Figures are drawn on the CPU, whatever torch.set_default_device says."""
    labels, pixels, net = torch.arange(6), images(), network()
    with torch.device("meta"):
        plots.plot_images(pixels, [0, 1, 2, 3, 4, 5])
        plots.plot_augmentation(pixels, lambda images, generator: images, draws=1)
        plots.plot_confusion(labels, [0, 1, 2, 3, 4, 4], DIGITS)
        plots.plot_class_accuracy(labels.tolist(), labels, DIGITS)
        plots.plot_feature_maps(net, pixels[0])
        plots.plot_parameters(net)
