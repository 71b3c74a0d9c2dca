"""Your own handwriting: turn a photo, scan or drawing of one digit into an image like MNIST's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE, BOX = 28, 20  # MNIST: the ink fits a 20 x 20 box, centred by mass in 28 x 28
WORK = (
    256  # larger pictures are shrunk to this many pixels: ample for a 20 px digit, and it averages noise away
)
LUMA = np.array([0.299, 0.587, 0.114])  # grey from red, green, blue (ITU-R BT.601, as Pillow)


def prepare_digit(image: Any) -> Tensor:
    """Turn a picture of one handwritten digit into a (1, 28, 28) uint8 image like MNIST's, bright ink on black.

    `image`: a path, a PIL image, a numpy array (H, W), (H, W, 3) or (H, W, 4), or a tensor (H, W) or (C, H, W);
    uint8, uint16, bool, or float in 0..1; dark on light or light on dark, any size, off-centre, unevenly lit.
    As for MNIST (LeCun et al., 1998): the ink's longer side becomes 20 px, its centre of mass the centre.
    Raises ValueError for a picture without clear ink, TypeError or ValueError for what is no picture.
    """
    grey = _to_grey(image)
    small = _shrink(grey)
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    if np.median(border) > (small.min() + small.max()) / 2:
        grey = 1 - grey  # dark ink on light paper
    top, bottom, left, right = _box(_ink(_shrink(grey)), grey.shape)  # a first look finds the digit ...
    margin = (max(bottom - top, right - left) + 3) // 4
    grey = grey[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
    ink = _ink(_shrink(grey))  # ... a second look from nearby sees it in detail
    top, bottom, left, right = _box(ink, ink.shape)
    ink = ink[top:bottom, left:right]
    scale = BOX / max(ink.shape)
    ink = _resize(ink, *(max(1, round(n * scale)) for n in ink.shape))
    out = np.zeros((SIDE, SIDE))
    y, x = (_offset(ink.sum(1 - axis)) for axis in (0, 1))
    out[y : y + ink.shape[0], x : x + ink.shape[1]] = ink / ink.max()
    return torch.from_numpy(np.floor(255 * out + 0.5).astype(np.uint8))[None]


def _offset(mass: np.ndarray) -> int:
    """Where ink with this mass per row starts, so that its centre lies on pixel 14 to the nearest whole pixel."""
    centre = (mass * np.arange(len(mass))).sum() / mass.sum()
    return int(np.clip(np.floor(SIDE / 2 - centre + 0.5), 0, SIDE - len(mass)))


def _ink(grey: np.ndarray) -> np.ndarray:
    """How much ink each pixel holds, 0..1, given bright ink on uneven dark ground (H, W)."""
    contrast = grey - _background(grey)
    threshold = _otsu(contrast)
    paper, strokes = contrast[contrast <= threshold], contrast[contrast > threshold]
    low, high = np.median(paper), np.quantile(strokes, 0.9) if len(strokes) else 0.0
    steps = np.concatenate([np.abs(np.diff(grey, axis=0)).ravel(), np.abs(np.diff(grey, axis=1)).ravel()])
    noise = (
        np.median(steps) / 0.954
    )  # standard deviation, as the difference of two normal draws has this median
    if high - low < max(0.06, 4 * noise):
        raise ValueError(
            f"image holds no clear ink: its contrast is {100 * (high - low):.1f} % of full range with noise of "
            f"{100 * noise:.1f} %. Draw one digit on plain paper with a darker or thicker pen, and fill the picture with it."
        )
    kept = _drop_specks(contrast > threshold)
    kept = _slide(_slide(kept, 5, np.max, 0), 5, np.max, 1)  # keep the soft edges around the strokes
    return np.clip((contrast - low) / (high - low), 0, 1) * kept


def _background(grey: np.ndarray) -> np.ndarray:
    """The ground below bright ink: a quadratic surface (lamps, vignetting) plus what remains of steps (shadows).

    Both are taken from a morphological opening, which removes whatever is narrower than a third of the picture.
    """
    scale = min(1, 32 / max(grey.shape))
    ground = _resize(grey, *(max(1, round(n * scale)) for n in grey.shape))
    y, x = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in ground.shape)
    y, x = y[:, None], x[None]
    y2, x2 = y**2 - (y**2).mean(), x**2 - (x**2).mean()
    surface = np.zeros_like(ground)
    for _ in range(ROUNDS):
        level = _open(ground - surface)
        for term in np.broadcast_arrays(np.ones_like(ground), y, x, y * x, y2, x2):  # orthogonal: one after the other
            surface = surface + term * (term * level).sum() / max((term**2).sum(), 1e-9)
    return _resize(surface + _open(ground - surface), *grey.shape)

ROUNDS = 2

def _open(ground):
    size = max(ground.shape) // 6 * 2 + 1
    for reduce in (np.min, np.max):
        ground = _slide(_slide(ground, size, reduce, 0), size, reduce, 1)
    return ground

def _slide(image: np.ndarray, size: int, reduce: Any, axis: int) -> np.ndarray:
    """`reduce` (np.min or np.max) over a sliding window of odd `size` along one axis, cut off at the border."""
    pad = [(size // 2, size // 2) if a == axis else (0, 0) for a in (0, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, pad, mode="edge"), size, axis=axis)
    return reduce(windows, axis=-1)


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts the values into the two classes furthest apart (Otsu, 1979), without a histogram."""
    values = np.sort(values, axis=None)
    below = np.arange(1, len(values))
    total = np.cumsum(values)
    means = total[:-1] / below, (total[-1] - total[:-1]) / (len(values) - below)
    best = int(np.argmax(below * (len(values) - below) * (means[1] - means[0]) ** 2))
    return float(values[best] + values[best + 1]) / 2


def _drop_specks(mask: np.ndarray) -> np.ndarray:
    """Keep the connected parts (8 neighbours) that have at least 4 % of the largest one's pixels."""
    todo = np.pad(mask, 1)
    parts = []
    for start in zip(*np.nonzero(todo), strict=True):
        if not todo[start]:
            continue
        todo[start] = False
        part = [start]
        for y, x in part:  # grows while we walk along it
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if todo[near]:
                    todo[near] = False
                    part.append(near)
        parts.append(part)
    kept = np.zeros_like(todo)
    for part in parts:
        if len(part) >= 0.04 * max(map(len, parts)):
            kept[tuple(np.array(part).T)] = True
    return kept[1:-1, 1:-1]


def _box(ink: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the ink, in the pixels of a picture of that shape of which `ink` is a copy."""
    edges = []
    for axis in (0, 1):
        where = np.nonzero((ink > 0.25).any(axis=1 - axis))[0]
        scale = shape[axis] / ink.shape[axis]
        edges += [int(where[0] * scale), int(np.ceil((where[-1] + 1) * scale))]
    return edges[0], edges[1], edges[2], edges[3]


def _shrink(grey: np.ndarray) -> np.ndarray:
    scale = min(1, WORK / max(grey.shape))
    return _resize(grey, *(max(1, round(n * scale)) for n in grey.shape))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averaging when shrinking, linear interpolation when enlarging (H, W) -> (height, width)."""
    return _weights(image.shape[0], height) @ image @ _weights(image.shape[1], width).T


def _weights(old: int, new: int) -> np.ndarray:
    """(new, old): the share of each old pixel in a window, never narrower than one pixel, around each new one."""
    reach = max(old / new, 1) / 2
    centre = (np.arange(new)[:, None] + 0.5) * old / new
    start = np.arange(old)
    overlap = np.clip(np.minimum(centre + reach, start + 1) - np.maximum(centre - reach, start), 0, None)
    return overlap / overlap.sum(axis=1, keepdims=True)


def _to_grey(image: Any) -> np.ndarray:
    """Any kind of picture -> (H, W) float in 0..1, transparent parts filled so that the ink stands out."""
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            return _to_grey(ImageOps.exif_transpose(opened))
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey
            pixels = np.asarray(image).astype(np.uint16)
        elif image.mode == "F":
            pixels = np.asarray(image)
        else:
            pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    elif isinstance(image, Tensor):
        pixels = image.detach().cpu().numpy()
        pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise TypeError(
            f"image must be a path, a PIL image, a numpy array or a tensor, not {type(image).__name__}"
        )
    if (
        pixels.ndim not in (2, 3)
        or pixels.size == 0
        or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4))
    ):
        raise ValueError(
            f"image has shape {tuple(image.shape if not isinstance(image, Image.Image) else pixels.shape)}, expected one picture: an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (H, W) or (C, H, W)."
        )
    full = {"uint8": 255, "uint16": 65535, "bool": 1}.get(pixels.dtype.name, 1)
    pixels = pixels.astype(np.float64) / full
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError("range")
    if pixels.ndim == 2:
        return pixels
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else np.ones(pixels.shape[:2])
    grey = pixels[..., :3] @ LUMA if pixels.shape[2] >= 3 else pixels[..., 0]
    if alpha.min() == 1:
        return grey
    if alpha.mean() > 0.5:
        fill = np.median(grey[alpha > 0.5])
    else:
        fill = float((grey * alpha).sum() < 0.5 * alpha.sum())
    return grey * alpha + fill * (1 - alpha)
