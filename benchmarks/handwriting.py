"""Read MNIST's test digits after turning them into drawings and photos: benchmarks/results/handwriting.json.

Each digit is drawn as someone might hand it in, CONDITIONS says how, then prepared by `prepare_digit` and read by a
trained `Net`. Without a checkpoint the network is trained first, by the default recipe.

    python -m benchmarks.handwriting --checkpoint runs/s7-net-15-epochs-seed-0.pt
    python -m benchmarks.handwriting --photos     # draws the pictures in examples/photos anew
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.interpolate import CubicSpline
from torch import Tensor, nn
from tqdm import tqdm

import model
import utils
from benchmarks import records

PHOTOS = records.ROOT / "examples" / "photos"

# ------------------------------------------------------------------------------------------ Digits as pictures
# Ink is (H, W) from 0 to 1; a picture is (H, W) uint8, dark ink on light paper.


def enlarge(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the ink of a 28 x 28 digit, enlarged, somewhere on a larger sheet."""
    side = int(rng.integers(140, 200))
    large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    return np.pad(large, rng.integers(10, 90, (2, 2)))


def scan(ink: np.ndarray) -> np.ndarray:
    """Return dark ink on plain, light paper."""
    return (255 * (1 - 0.9 * ink)).astype(np.uint8)


def photo(ink: np.ndarray, rng: np.random.Generator, light: np.ndarray | float = 1.0) -> np.ndarray:
    """Return dark ink on paper under a lamp from one side, with vignetting and the grain of the camera."""
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    paper = light * (0.7 + 0.2 * (np.cos(angle) * x + np.sin(angle) * y) - 0.08 * (x**2 + y**2))
    grain = 0.03 * rng.standard_normal(ink.shape)
    return (255 * (paper * (1 - 0.6 * ink) + grain).clip(0, 1)).astype(np.uint8)


def shadow(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return the light where a straight, sharp edge casts a shadow over a part of the sheet."""
    y, x = np.indices(shape)
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
    left, top = rng.uniform(0.25, 0.75, 2)
    away = np.cos(angle) * (x - shape[1] * left) + np.sin(angle) * (y - shape[0] * top)
    return 1 - depth * (away / 2 + 0.5).clip(0, 1)  # the edge is two pixels wide


def lines(shape: tuple[int, ...], rng: np.random.Generator, spacing: float) -> np.ndarray:
    """Return the ink of parallel lines, almost level, 1 to 3 pixels thick."""
    y, x = np.indices(shape)
    away = (y + x * np.tan(np.radians(rng.uniform(-3, 3))) + rng.uniform(0, spacing)) % spacing
    inked = (rng.uniform(1, 3) / 2 + 0.5 - np.minimum(away, spacing - away)).clip(0, 1)
    return rng.uniform(0.3, 0.9) * inked


def ruled(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(ink, lines(ink.shape, rng, rng.uniform(45, 90)))


def squared(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spacing, state = rng.uniform(25, 50), rng.bit_generator.state
    level = lines(ink.shape, rng, spacing)
    rng.bit_generator.state = state  # the same lines once more, upright
    return np.maximum(ink, np.maximum(level, lines(ink.T.shape, rng, spacing).T))


def framed(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the ink with a frame around it: every second one is the rim of the picture, the others lie within."""
    inset, pen = int(rng.integers(2) * rng.integers(4, 20)), int(rng.integers(2, 9))
    inside = np.pad(np.zeros(ink.shape), 6)
    frame = np.pad(np.pad(inside, pen, constant_values=1), inset)
    return np.maximum(frame, np.pad(ink, 6 + pen + inset))


def pen_line(ink: np.ndarray, width: float) -> np.ndarray:
    """Return the middle line of the strokes as a pen of `width` pixels draws it."""
    away = ndimage.distance_transform_edt(~_skeleton(ink > 0.5))
    return (width / 2 + 0.5 - away).clip(0, 1)


def _skeleton(mask: np.ndarray) -> np.ndarray:
    """Thin strokes to lines one pixel wide (Zhang and Suen, 1984)."""
    around = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]  # clockwise from the top
    mask, before = np.pad(mask, 1), 0
    while mask.sum() != before:
        before = mask.sum()
        for one, other in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            ring = np.stack([np.roll(mask, (-dy, -dx), (0, 1)) for dy, dx in around])
            count, starts = ring.sum(0), (~ring & np.roll(ring, -1, 0)).sum(0)
            outer = (count >= 2) & (count <= 6) & (starts == 1)
            mask = mask & ~(outer & ~ring[list(one)].all(0) & ~ring[list(other)].all(0))
    return mask[1:-1, 1:-1]


def widen(ink: np.ndarray, by: float) -> np.ndarray:
    """Return strokes that reach `by` pixels further on either side."""
    away = ndimage.distance_transform_edt(ink < 0.5)
    return (by + 0.5 - away).clip(0, 1)


Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # a digit's ink -> a picture
CONDITIONS: dict[str, Condition] = {
    "clean drawing": lambda ink, rng: scan(ink),
    "photo, uneven light and noise": photo,
    "photo, sharp shadow edge": lambda ink, rng: photo(ink, rng, shadow(ink.shape, rng)),
    "photo, thin pen": lambda ink, rng: photo(
        0.8 * ndimage.gaussian_filter(pen_line(ink, rng.uniform(1, 2.5)), 1), rng
    ),
    "very thick pen": lambda ink, rng: scan(widen(ink, rng.uniform(7, 11))),
    "frame": lambda ink, rng: scan(framed(ink, rng)),
    "photo, ruled lines": lambda ink, rng: photo(ruled(ink, rng), rng),
    "photo, squared paper": lambda ink, rng: photo(squared(ink, rng), rng),
}


def picture(digit: Tensor, condition: str, seed: int) -> np.ndarray:
    """Return a digit (28, 28) uint8 of MNIST as the picture, (H, W) uint8, that `condition` makes of it."""
    rng = np.random.default_rng(seed)
    return CONDITIONS[condition](enlarge(digit.numpy(), rng), rng)


# -------------------------------------------------------------------------------------------------- Photographs

# A digit is its strokes, each a curve through points (x, y) in widths of the digit.
STROKES = {
    "three": [
        [(0.05, 0.18), (0.35, 0), (0.7, 0.15), (0.62, 0.42), (0.3, 0.54)],
        [(0.3, 0.54), (0.68, 0.62), (0.8, 0.92), (0.56, 1.2), (0.2, 1.22), (0, 1.08)],
    ],
    "seven": [[(0, 0.06), (0.3, 0.1), (0.82, 0.02)], [(0.82, 0.02), (0.62, 0.42), (0.46, 0.8), (0.4, 1.25)]],
}


def draw_photo(name: str, seed: int) -> Image.Image:
    """Draw a digit with a blue pen on ruled paper, as a camera held a little askew would see it by a window."""
    rng, (height, width) = np.random.default_rng(seed), (720, 600)
    rules = np.abs((np.arange(height) + 20) % 62 - 31) < 1.2
    pale = 0.4 * ndimage.gaussian_filter1d(rules.astype(float), 0.7)[:, None, None]
    fibres = 0.04 * ndimage.gaussian_filter(rng.standard_normal((height, width, 1)), (1.5, 1.5, 0))
    ink = 0.92 * pen_strokes(STROKES[name], (height, width))[..., None]
    sheet = np.array([0.93, 0.92, 0.88]) + fibres
    for share, colour in ((pale, [0.45, 0.6, 0.8]), (ink, [0.1, 0.13, 0.36])):
        sheet = sheet * (1 - share) + share * np.array(colour)
    askew = (0.99, -0.04, 70, 0.04, 0.98, 45, 5e-5, 8e-5)  # turned by 2 degrees, the top nearer than the bottom
    seen = Image.fromarray((255 * sheet.clip(0, 1)).astype(np.uint8))
    seen = seen.transform((480, 600), Image.Transform.PERSPECTIVE, askew, Image.Resampling.BICUBIC)
    y, x = np.mgrid[-1:1:600j, -1:1:480j]
    light = 0.84 + 0.13 * x - 0.1 * y - 0.07 * (x**2 + y**2)
    pixels = ndimage.gaussian_filter(np.asarray(seen) * light[..., None], (0.8, 0.8, 0))
    return Image.fromarray((pixels + 3 * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8))


def pen_strokes(strokes: list[list[tuple[float, float]]], shape: tuple[int, int]) -> np.ndarray:
    """Return the ink (H, W) of strokes in the middle of a sheet, drawn with a felt pen."""
    paper = np.ones(shape, dtype=bool)
    for points in strokes:
        along = CubicSpline(np.linspace(0, 1, len(points)), points)(np.linspace(0, 1, 2000))
        x, y = np.round(210 + 190 * along[:, 0]).astype(int), np.round(230 + 190 * along[:, 1]).astype(int)
        paper[y, x] = False
    return (9 / 2 + 0.5 - ndimage.distance_transform_edt(paper)).clip(0, 1)


# --------------------------------------------------------------------------------------------------- The figures


def read(network: nn.Module, data: utils.ImageData, condition: str, statistics: utils.ImageData) -> tuple[float, int]:
    """Return how many of the digits in `data` are read correctly under `condition`, in percent, and how many refused.

    statistics: the data set that `network` was trained on. A picture that `prepare_digit` refuses counts as misread.
    """
    prepared, labels = [], []
    digits = tqdm(data.images[:, 0], condition, disable=None)
    for seed, (digit, label) in enumerate(zip(digits, data.labels.tolist(), strict=True)):
        try:
            prepared.append(utils.prepare_digit(picture(digit, condition, seed)))
            labels.append(label)
        except ValueError:
            continue
    if not prepared:
        return 0.0, len(data)
    answers = utils.predict(network, torch.stack(prepared), data=statistics).argmax(1)
    return 100 * int((answers == torch.tensor(labels)).sum()) / len(data), len(data) - len(prepared)


def load_network(checkpoint: Path | None, train: utils.ImageData, test: utils.ImageData) -> nn.Module:
    """Return `Net` with the weights in `checkpoint`, or trained now where that is None."""
    network = model.Net()
    if checkpoint is None:
        utils.seed_everything(0)
        network = model.Net()
        utils.train_network(network, train, test, utils.Recipe(), seed=0)
    else:
        network.load_state_dict(utils.load_checkpoint(checkpoint)["model"])
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="how many digits to read (%(default)s)")
    parser.add_argument("--split", choices=["test", "train"], default="test", help="train: those from 50,000 on")
    parser.add_argument("--checkpoint", type=Path, help="a trained Net; without it, one is trained first")
    parser.add_argument("--photos", action="store_true", help="draw the pictures in examples/photos and do no more")
    parser.add_argument("--results", type=Path, default=records.RESULTS / "handwriting.json", help="the file to write")
    options = parser.parse_args()
    if options.photos:
        for seed, name in enumerate(STROKES):
            draw_photo(name, seed).save(PHOTOS / f"{name}.jpg", quality=85)
        return
    train, test = utils.load_mnist()
    if options.split == "train":  # to choose settings by, so that the test digits stay unseen
        train, test = train[:50_000], train[50_000:]
    network, digits = load_network(options.checkpoint, train, test), test[: options.images]
    original = utils.predict(network, digits.images, data=train).argmax(1) == digits.labels
    results = {condition: read(network, digits, condition, train) for condition in CONDITIONS}
    report = {
        "network": "Net",
        "parameters": model.count_parameters(network),
        "images": len(digits),
        "split": options.split,
        "original": round(100 * original.double().mean().item(), 2),
        "read": {condition: round(percent, 2) for condition, (percent, _) in results.items()},
        "refused": {condition: refused for condition, (_, refused) in results.items()},
        "versions": records.versions(),
        "commit": records.commit(),
    }
    records.write(options.results, report)
    print(json.dumps(report["read"], indent=1))


if __name__ == "__main__":
    main()
