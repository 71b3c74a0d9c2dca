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
from torch import Tensor, nn
from tqdm import tqdm

import model
import utils
from benchmarks import records

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
    away = np.cos(angle) * (x - shape[1] * rng.uniform(0.25, 0.75)) + np.sin(angle) * (
        y - shape[0] * rng.uniform(0.25, 0.75)
    )
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
    away = ndimage.distance_transform_edt(~_skeleton(ndimage.gaussian_filter(ink, 2) > 0.4))
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
    "photo, thin pen": lambda ink, rng: photo(pen_line(ink, rng.uniform(1, 3)), rng),
    "very thick pen": lambda ink, rng: scan(widen(ink, rng.uniform(7, 11))),
    "frame": lambda ink, rng: scan(framed(ink, rng)),
    "photo, ruled lines": lambda ink, rng: photo(ruled(ink, rng), rng),
    "photo, squared paper": lambda ink, rng: photo(squared(ink, rng), rng),
}


def picture(digit: np.ndarray, condition: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return CONDITIONS[condition](enlarge(digit, rng), rng)
