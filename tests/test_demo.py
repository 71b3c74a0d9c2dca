"""The page in which you draw a digit: what the browser computes is what torch and prepare_digit compute."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import model
import utils
from examples import make_demo
from kit.data import ImageData
from kit.digits import prepare_digit

NETWORKS = [model.Net, model.Nano, model.Attempt2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
]


@pytest.fixture(scope="module")
def few(mnist) -> ImageData:
    """The first 1,000 test images of MNIST, which carry the statistics of the training images."""
    return mnist[1][:1000]


def page_of(network: nn.Module, data: ImageData, **changes) -> str:
    return make_demo.make_page(network, **{"classes": data.classes, "mean": data.mean, "std": data.std} | changes)


def trained(network: type[nn.Module], data: ImageData) -> nn.Module:
    """A network in eval mode that answers each digit differently, no number of which is a starting value."""
    torch.manual_seed(0)
    net, images = network(), data[:100]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0  # the statistics of these images, at once
        net((images.images / 255 - images.mean[0]) / images.std[0])
    return net.eval()


def logits(net: nn.Module, images: ImageData) -> np.ndarray:
    with torch.no_grad():
        return net((images.images / 255 - images.mean[0]) / images.std[0]).numpy()


def test_the_page_is_one_small_file_that_asks_no_network(few):
    for network in NETWORKS:
        page = page_of(trained(network, few), few)
        assert len(page.encode()) < 300_000
        assert not re.search(
            r"https?://|//\w|@import|\burl\(|fetch\(|<link|\bsrc=|__NETWORK__", re.sub("// .*", "", page)
        )
        assert "default-src 'none'" in page


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_of_the_kit_is_exported_and_stays_as_it_was(network):
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    exported = make_demo.export_layers(net)
    assert {layer["kind"] for layer in exported} <= {"conv", "scale", "silu", "relu", "attention", "max", "average"}
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    weights = sum(len(layer["weight"]) for layer in exported if layer["kind"] == "conv")
    assert weights == sum(layer.weight.numel() for layer in net.layers if isinstance(layer, nn.Conv2d))


class Layers(nn.Module):
    """A network of those layers, and of whatever `behind` does to their output."""

    def __init__(self, *layers: nn.Module, behind=lambda maps: maps) -> None:
        super().__init__()
        self.layers, self.behind = nn.Sequential(*layers), behind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.behind(self.layers(images))


def test_a_module_used_twice_counts_twice_and_nested_stacks_are_walked():
    relu = nn.ReLU(inplace=True)
    net = Layers(relu, nn.Conv2d(1, 2, 3), nn.Sequential(nn.Dropout(0.5), nn.Conv2d(2, 2, 3), relu))
    assert [layer["kind"] for layer in make_demo.export_layers(net)] == ["relu", "conv", "conv", "relu"]


class Blur(nn.Conv2d):
    """A convolution that is no plain one."""


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.GELU(), "GELU"),
        (nn.Linear(28, 10), "Linear"),
        (nn.Conv2d(1, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(1, 4, (3, 5)), "kernel_size"),
        (nn.Conv2d(1, 4, 3, padding="same"), "padding"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AdaptiveAvgPool2d(2), "output_size"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad"),
        (nn.Flatten(), "Flatten"),
        (nn.BatchNorm2d(1, affine=False), "affine"),
        (Blur(1, 1, 3), "Blur"),
        (Layers(nn.ReLU()), "Layers"),
    ],
)
def test_what_the_page_does_not_know_is_refused_by_name(module, word):
    with pytest.raises((TypeError, ValueError), match=rf"layers\.1: .*{word}"):
        make_demo.export_layers(Layers(nn.ReLU(), module))


def test_a_network_that_is_not_its_layers_one_after_the_other_is_refused_by_name(few):
    with pytest.raises(TypeError, match="Linear"):
        make_demo.export_layers(nn.Linear(2, 2))
    convolution = nn.Conv2d(1, 10, 28)
    assert len(make_demo.export_layers(Layers(convolution, behind=lambda maps: maps.flatten(1)))) == 1
    with pytest.raises(ValueError, match="Layers does more than its layers"):
        make_demo.export_layers(Layers(convolution, behind=lambda maps: 2 * maps))
    with pytest.raises(ValueError, match="3 channels"):
        page_of(model.Net(in_channels=3), few, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))


def inside(page: str) -> dict:
    """What the page holds of its network."""
    return json.loads(re.search(r'<script id="network" type="application/json">(.*?)</script>', page)[1])


def test_logits_that_the_page_cannot_show_are_refused():
    net = model.Net()
    with pytest.raises(ValueError, match="classes has 2 names, but the network returns 10 logits"):
        make_demo.make_page(net, ("a", "b"), [0.1], [0.3])
    torch.nn.init.constant_(net.layers[0].weight, torch.nan)
    with pytest.raises(ValueError, match="Net returns NaN or infinite logits"):
        make_demo.make_page(net, "0123456789", [0.1], [0.3])


def test_no_class_name_ends_the_script_early(few):
    names = ("</script><b>", "<!--", *few.classes[2:])
    page = page_of(model.Nano(), few, classes=names)
    assert inside(page)["classes"] == list(names) and "</script><b>" not in page


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo.py", *map(str, arguments)])
    make_demo.main()


def test_the_page_normalises_as_the_training_did(tmp_path, monkeypatch, mnist, capsys):
    """The checkpoint says how: that of a network trained on a split, with other statistics and other classes."""
    checkpoint, page = tmp_path / "net.pt", tmp_path / "demo.html"
    net = model.Nano(num_classes=3)
    data = {"images": 50_000, "mean": [0.2], "std": [0.4], "classes": ["cat", "dog", "owl"]}
    utils.save_checkpoint(checkpoint, {"model": net.state_dict(), "data": data})
    run(monkeypatch, "--checkpoint", checkpoint, "--output", page, "--network", "Nano")
    found = inside(page.read_text(encoding="utf-8"))
    assert (found["mean"], found["std"], found["classes"]) == (0.2, 0.4, ["cat", "dog", "owl"])
    assert "no statistics" not in capsys.readouterr().out
    utils.save_checkpoint(checkpoint, {"model": model.Nano().state_dict(), "data": None})
    run(monkeypatch, "--checkpoint", checkpoint, "--output", page, "--network", "Nano")
    found = inside(page.read_text(encoding="utf-8"))
    assert ((found["mean"],), (found["std"],)) == (mnist[0].mean, mnist[0].std)
    assert "no statistics of its training images" in capsys.readouterr().out


def test_the_command_writes_the_page_or_says_what_to_do(tmp_path, monkeypatch, capsys):
    checkpoint, page = tmp_path / "net.pt", tmp_path / "demo.html"
    with pytest.raises(SystemExit, match="is missing: train a network first"):
        run(monkeypatch, "--checkpoint", checkpoint)
    data = {"images": 9, "mean": [0.2], "std": [0.4], "classes": list("0123456789")}
    utils.save_checkpoint(checkpoint, {"model": model.Nano().state_dict(), "data": data})
    with pytest.raises(SystemExit, match="does not hold the weights of Net"):
        run(monkeypatch, "--checkpoint", checkpoint, "--output", page)
    assert not page.exists()
    run(monkeypatch, "--checkpoint", checkpoint, "--output", page, "--network", "Nano")
    assert "demo.html" in capsys.readouterr().out and page.stat().st_size > 50_000
    colour = data | {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    utils.save_checkpoint(checkpoint, {"model": model.Nano(in_channels=3).state_dict(), "data": colour})
    with pytest.raises(SystemExit, match="3 channels"):
        run(monkeypatch, "--checkpoint", checkpoint, "--output", page, "--network", "Nano")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(SystemExit, match="cut short"):
        run(monkeypatch, "--checkpoint", checkpoint)


# ----------------------------------------------------------------------------------------- In the browser

in_browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


def in_page(folder, page: str, script: str, values: object = None) -> object:
    """Open `page` in headless Chromium, run `script` in it with `values`, and return what it returns."""
    extra = f"""<pre id="result"></pre><script>
      const values = {json.dumps(values)};
      const pack = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
      const unpack = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      try {{ $("result").textContent = JSON.stringify((() => {{ {script} }})()); }}
      catch (error) {{ $("result").textContent = JSON.stringify({{error: error.stack}}); }}
    </script>"""
    file = folder / "page.html"
    file.write_text(page + extra, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page gave no result: {done.stdout[-500:]} {done.stderr[-2000:]}"
    result = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert not (isinstance(result, dict) and "error" in result), result["error"]
    return result


def pack(pixels: np.ndarray) -> str:
    return base64.b64encode(pixels.astype(np.uint8).tobytes()).decode()


def unpack(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


class TestBrowser:
    pytestmark = in_browser

    @pytest.mark.parametrize("network", NETWORKS)
    def test_logits_equal_torchs(self, network, tmp_path, few):
        images, net = few[:200], trained(network, few)
        found = in_page(
            tmp_path,
            page_of(net, images),
            "return values.map((image) => [...forward(unpack(image)).at(-1).data]);",
            [pack(image.numpy()) for image in images.images],
        )
        expected = logits(net, images)
        assert len(expected) == 200 and expected.std(0).max() > 0.1
        difference = np.abs(np.array(found) - expected).max()
        print(f"{network.__name__}: largest difference of 200 x 10 logits {difference:.1e}")
        assert difference < 1e-5 * max(1, np.abs(expected).max())

    def test_attention_and_pooling_anywhere(self, tmp_path, few):
        """The first layers, two in a row, of one channel, without padding, and where a window leaves a rest."""
        torch.manual_seed(0)
        net = Layers(
            *(model.ChannelAttention(), nn.AvgPool2d(3, 2, padding=1), *model.blur_pool()),
            *(nn.Conv2d(1, 5, 3), model.ChannelAttention(), model.ChannelAttention(), nn.MaxPool2d(2)),
            *(nn.Conv2d(5, 10, 1), model.GlobalAvgPool(), model.ChannelAttention()),
            behind=lambda maps: maps.flatten(1),
        ).eval()
        for layer in net.modules():
            if isinstance(layer, model.ChannelAttention):
                nn.init.normal_(layer.weight)
        script = "return values.map((image) => [...forward(unpack(image)).at(-1).data]);"
        values = [pack(image.numpy()) for image in few.images[:50]]
        found, expected = in_page(tmp_path, page_of(net, few), script, values), logits(net, few[:50])
        assert np.abs(np.array(found) - expected).max() < 1e-5 and expected.std(0).max() > 0.01

    def test_preparation_equals_prepare_digit(self, tmp_path, few):
        """Digits enlarged on light and dark, lit evenly and unevenly, of every size from 60 to 400 pixels."""
        pictures = [scene(image[0].numpy(), seed) for seed, image in enumerate(few.images[:100])]
        found = in_page(
            tmp_path,
            page_of(model.Nano(), few),
            """return values.map(([text, height, width]) => {
              const prepared = prepareDigit({data: Float64Array.from(unpack(text), (v) => v / 255), height, width});
              return prepared && pack(prepared);
            });""",
            [[pack(picture), *picture.shape] for picture in pictures],
        )
        compare([unpack(text, 28, 28) if text else None for text in found], pictures)

    def test_what_is_drawn_on_the_canvas_is_prepared_as_by_prepare_digit(self, tmp_path, few):
        found = in_page(
            tmp_path,
            page_of(model.Nano(), few),
            """
            let state = 1;
            const random = () => (state = (state * 16807) % 2147483647) / 2147483647;
            return Array.from({length: 100}, (_, number) => {
              clear();
              for (const part of handwriting(number % 10, random)) {
                strokes.push([]);
                addPoints(part);
              }
              const grey = drawingAsGrey(), prepared = prepareDigit(grey);
              return [pack(grey.data.map((value) => Math.round(255 * value))), prepared && pack(prepared)];
            });""",
        )
        pictures = [unpack(picture, 112, 112) for picture, _ in found]
        assert all(100 < (picture > 127).sum() < 4000 for picture in pictures)
        compare([unpack(text, 28, 28) if text else None for _, text in found], pictures)

    def test_the_page_shows_what_it_reads_and_clear_empties_it(self, tmp_path, few):
        net = trained(model.Net, few)
        found = in_page(
            tmp_path,
            page_of(net, few),
            """
            const seen = () => ({
              digit: $("digit").textContent,
              shares: [...$("bars").querySelectorAll(".unseen")].map((span) => +span.textContent.match(/[0-9.]+/)),
              colours: new Set(rows[0].contexts[0].getImageData(0, 0, rows[0].side, rows[0].side).data).size,
              pixels: pack($("prepared").getContext("2d").getImageData(0, 0, 28, 28).data.filter((_, at) => !(at % 4))),
            });
            document.dispatchEvent(new KeyboardEvent("keydown", {key: "5"}));
            read();
            const drawn = seen();
            $("clear").click();
            read();
            return [drawn, seen(), rows.map((row) => row.contexts.length)];""",
        )
        drawn, empty, maps = found
        pixels = torch.from_numpy(unpack(drawn["pixels"], 1, 28, 28).copy())
        probabilities = utils.predict(net, pixels, data=few)
        assert drawn["digit"] == str(int(probabilities.argmax()))
        assert np.abs(np.array(drawn["shares"]) - 100 * probabilities.numpy()).max() < 0.06
        assert drawn["colours"] > 10
        assert empty["digit"] == "" and max(empty["shares"]) == 0 and not unpack(empty["pixels"], 784).any()
        kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
        assert len(maps) == sum(isinstance(layer, kinds) for layer in net.layers)

    def test_class_names_are_text_whatever_they_hold(self, tmp_path, few):
        names = ["<img src=x>", "&lt;b&gt;", '"', "ankle boot", *few.classes[4:]]
        found = in_page(
            tmp_path,
            page_of(trained(model.Net, few), few, classes=names),
            """
            write(1);
            read();
            const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent);
            return [document.images.length, texts("#bars .name"), texts("figcaption").slice(-10), texts("#digit")];""",
        )
        assert found[:3] == [0, names, names] and found[3][0] in names


def scene(image: np.ndarray, seed: int) -> np.ndarray:
    """A 28 x 28 digit as a picture: enlarged, somewhere, on light or dark, with noise, every third one lit unevenly.

    The noise keeps pixels from lying exactly on a threshold, where the last bit of a sum would decide.
    """
    draw = np.random.default_rng(seed)
    height, width = draw.integers(60, 400, 2)
    side = int(min(height, width) * draw.uniform(0.5, 0.9))
    ink = torch.from_numpy(image)[None, None] / 255
    ink = torch.nn.functional.interpolate(ink, size=(side, side), mode="bilinear")[0, 0].numpy()
    picture = np.zeros((height, width))
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    picture[top : top + side, left : left + side] = ink
    picture = 0.1 + draw.uniform(0.5, 0.8) * picture
    picture += draw.normal(0, 0.01, picture.shape)
    if seed % 3 == 0:
        picture += np.linspace(-0.05, 0.1, width)
    if seed % 2:
        picture = 1 - picture
    return (255 * picture).clip(0, 255).astype(np.uint8)


def compare(found: list[np.ndarray | None], pictures: list[np.ndarray]) -> None:
    expected = [prepare_digit(picture)[0].numpy() for picture in pictures]
    assert len(found) == len(expected) == 100
    assert all(pixels is not None for pixels in found)
    differences = [np.abs(a.astype(int) - b).max() for a, b in zip(found, expected, strict=True)]
    print(f"{len(found)} pictures: at most {max(differences)} grey levels, {sum(map(bool, differences))} differ")
    assert max(differences) <= 1
