"""Your own handwriting: convert a photo, scan or drawing of one digit to an image like MNIST's."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

SIDE, BOX = 28, 20  # MNIST: the longer side of the ink is 20 px, its centre of mass the centre of 28 x 28
WORK, COARSE = 176, 64  # px on the longer side: what a digit is worked out on, and what its background is


def prepare_digit(image: Any) -> Tensor:
    """Convert a picture of one handwritten digit to a (1, 28, 28) uint8 image like MNIST's, bright ink on black.

    `image` is a path, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (H, W) or (C, H, W), of
    uint8, uint16, bool or float from 0 to 1. The digit may be dark on light or light on dark, of any size, off-centre
    and unevenly lit. It is scaled and centred as in LeCun et al. (1998). Raises ValueError if there is no clear ink,
    TypeError or ValueError for anything that is not a picture of at least 4 x 4 pixels.
    """
    grey = _cut_frame(to_grey(image))
    if _is_dark_on_light(_shrink(grey, WORK)):
        grey = 1 - grey
    grey = _erase_lines(grey)
    grey = grey[_box(_ink(_shrink(grey, WORK)), grey.shape, margin=0.25)]  # a first look finds the digit,
    ink = _fit_pen(_ink(_shrink(grey, WORK)))  # a second one, from nearby, sees its details
    ink = _shrink(ink[_box(ink, ink.shape)], BOX, enlarge=True)
    rows, columns = (_place(ink.sum(axis=1 - axis)) for axis in (0, 1))
    out = np.zeros((SIDE, SIDE))
    out[rows, columns] = ink / ink.max()
    return torch.from_numpy(np.floor(255 * out + 0.5).astype(np.uint8))[None]


def _cut_frame(grey: np.ndarray) -> np.ndarray:
    """Cut off a frame on the rim of the picture, bright or dark: rows and columns of ink with a sharp inner edge."""
    small = _shrink(grey, WORK)
    away = np.abs(small - np.median(small))
    far = away > 0.5 * away.max()
    depths = [int(np.argmax(turned.mean(axis=1) < 0.9)) for turned in (far, far[::-1], far.T, far.T[::-1])]
    cut = max(depths) + 2  # soft edges
    inside = far[cut:-cut, cut:-cut]
    if min(depths) == 0 or cut > 0.1 * min(far.shape) or _on_rim(inside).mean() > 0.5:
        return grey
    cut = int(np.ceil(cut * max(grey.shape) / max(small.shape)))
    return grey[cut:-cut, cut:-cut]


def _is_dark_on_light(grey: np.ndarray) -> bool:
    """Whether the rim is nearer to the brightest than to the darkest, as seen and with the lighting evened.

    In the shadow it is neither; then the ink is dark or bright, whichever keeps away from the rim.
    """
    score = 0.0
    for weight, picture in ((1, grey), (3, grey - _quadratic(grey))):
        rim = _on_rim(picture)
        low, high = picture.min(), picture.max()
        score += weight * (np.median(rim) - (low + high) / 2) / max(high - low, 1e-9)
    if abs(score) < 0.2:
        dark, bright = _keeps_from_rim(1 - grey), _keeps_from_rim(grey)
        if dark != bright:
            return dark
    return bool(score > 0)


def _keeps_from_rim(grey: np.ndarray) -> bool:
    """Whether there is clear ink, bright on dark, and none of it on the rim of the picture."""
    try:
        return not _on_rim(_drop_specks(_strokes(grey)[1])).any()
    except ValueError:
        return False


def _ink(grey: np.ndarray) -> np.ndarray:
    """How much ink each pixel holds, 0..1, where the ink is bright and the ground dark and uneven (H, W)."""
    from scipy import ndimage

    ink, strokes = _strokes(grey)
    near = ndimage.maximum_filter(_drop_specks(strokes), 5)  # the strokes and their soft edges
    return np.clip(ink, 0, 1) * near


def _strokes(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ink of each pixel, 0 on the ground and 1 where it is typical, and which pixels are clearly inked."""
    paper = _background(grey)
    contrast = (grey - paper) / np.sqrt(np.maximum(1 - paper, 0.2))  # the same ink differs less in the shadow
    steps = [np.abs(np.diff(contrast, axis=axis)).ravel() for axis in (0, 1)]
    noise = np.quantile(np.concatenate(steps), 0.4) / 0.742  # so for two draws of spread 1; strokes stay out of it
    low = np.median(contrast)
    threshold = max(_otsu(contrast), low + 3.5 * noise)
    mask = contrast > threshold
    high = np.median(contrast[mask]) if mask.any() else low
    if high - low < max(0.06, 3.8 * noise):
        raise ValueError(
            f"image has no clear ink: a contrast of {100 * (high - low):.1f} % over noise of {100 * noise:.1f} %. "
            "Write one digit on plain paper with a pen that stands out, and let it fill the picture."
        )
    return (contrast - low) / (high - low), mask


def _erase_lines(grey: np.ndarray) -> np.ndarray:
    """Paint over ruled lines and a frame, if what is left may well be the whole digit.

    A digit that fills its picture may have straight strokes from side to side, but the rest comes near to the rim as
    well, or such a stroke is the only line and as thick as the rest. Strokes thicker than a line that they cross stay.
    """
    from scipy import ndimage

    ink, strokes = _strokes(_shrink(grey, WORK))
    frame = _find_frame(strokes)
    masks = [_level_lines(ink > 0.3, frame), _level_lines(ink.T > 0.3, frame.T).T]
    if not any(mask.any() for mask in masks):
        return grey
    erased, single = _shrink(grey, 4 * WORK), 0.0
    for axis, mask in enumerate(masks):
        starts = (mask & np.diff(mask, axis=axis, prepend=False)).sum()
        thickness = mask.sum() / max(starts, 1)
        if starts < 1.5 * mask.shape[1 - axis]:
            single = max(single, thickness)
        size = round((thickness + 2) * max(erased.shape) / max(mask.shape))  # with soft edges
        mask = _resize(ndimage.maximum_filter(mask, 3).astype(float), *erased.shape) > 0.25
        erased = np.where(mask, ndimage.grey_opening(erased, (size, 1) if axis == 0 else (1, size)), erased)
    try:
        left = _drop_specks(_strokes(_shrink(erased, WORK))[1] & ~frame)
    except ValueError:  # the lines were all there was
        return grey
    margin = round(0.06 * WORK)
    speck, inside = left.sum() < 0.04 * strokes.sum(), left[margin:-margin, margin:-margin]
    return grey if speck or inside.sum() < left.sum() or single > 0.75 * _pen(left) else erased


def _find_frame(strokes: np.ndarray) -> np.ndarray:
    """The connected part, if there is one, that is the four sides of a box with all other ink inside."""
    from scipy import ndimage

    parts, count = ndimage.label(strokes, np.ones((3, 3)))
    inked = np.argwhere(strokes)
    (top, left), (bottom, right) = inked.min(axis=0), inked.max(axis=0) + 1
    box = parts[top:bottom, left:right]
    y, x = (-(-n // 10) for n in box.shape)  # an ellipse is so near to a side along 60 % of it
    for part in np.unique(_on_rim(box)) if count > 1 else ():
        own = box == part
        sides = own[:y].any(axis=0), own[-y:].any(axis=0), own[:, :x].any(axis=1), own[:, -x:].any(axis=1)
        if part and min(side.mean() for side in sides) > 0.9 and not own[y:-y, x:-x].any():
            return parts == part
    return np.zeros_like(strokes)


def _level_lines(inked: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The pixels of thin, straight lines from the left rim to the right, up to 5 degrees askew, or of the frame."""
    from scipy import ndimage

    height, width = inked.shape
    thin = inked & ~ndimage.binary_opening(inked, np.ones((max(3, round(0.04 * max(inked.shape))) + 1, 1)))
    near, found, reach = ndimage.maximum_filter(inked, (3, 1)), frame.copy(), 0.09 * width
    if (ndimage.maximum_filter(near, (2 * round(reach / 2) + 1, 1)).mean(axis=1) > 0.9).any():  # else there is none
        x, ends = np.arange(width), max(1, width // 50)
        for rise in np.arange(-reach, reach + 1, 2):
            rows = np.arange(height)[:, None] + np.round(rise * (x / width - 0.5)).astype(int)
            inside, rows = (rows >= 0) & (rows < height), rows.clip(0, height - 1)
            along = near[rows, x] & inside
            whole = (along.mean(axis=1) > 0.9) & along[:, :ends].any(axis=1) & along[:, -ends:].any(axis=1)
            whole &= (thin[rows, x] & inside).mean(axis=1) > 0.4  # strokes of the digit may cross it
            found[rows[whole], x] = True
    return ndimage.maximum_filter(found, (5, 1)) & thin


def _background(grey: np.ndarray) -> np.ndarray:
    """The ground under bright ink: what is left of it where all that is narrower than a third is taken away.

    Steps, such as the edge of a shadow, are left as they are; hills, such as vignetting, only after a quadratic
    surface is subtracted. Neither way gives too high a ground, so the higher one is nearer.
    """
    ground = _shrink(grey, COARSE)
    surface = np.zeros_like(ground)
    for _ in range(3):  # ink still biases the first surface
        surface = surface + _quadratic(_open(ground - surface))
    return _resize(np.maximum(_open(ground), surface + _open(ground - surface)), *grey.shape)


def _open(image: np.ndarray) -> np.ndarray:
    """Take away what is bright and narrower than a third of the picture (a morphological opening)."""
    from scipy import ndimage

    return ndimage.grey_opening(image, (max(image.shape) // 6 * 2 + 1,) * 2)


def _quadratic(image: np.ndarray) -> np.ndarray:
    """Fit a surface of second degree by least squares: its terms are orthogonal on a full grid, so no system to solve.

    On one or two rows or columns some terms are zero everywhere, and drop out.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in image.shape), indexing="ij")
    terms = (y**0, y, x, y * x, y**2 - (y**2).mean(), x**2 - (x**2).mean())
    return sum(term * (term * image).sum() / max((term * term).sum(), 1e-9) for term in terms)


def _otsu(values: np.ndarray) -> float:
    """The threshold whose two classes lie furthest apart (Otsu, 1979), from sorted values without a histogram."""
    values = np.sort(values, axis=None)
    total, below = np.cumsum(values), np.arange(1, len(values))
    above = len(values) - below
    apart = (total[-1] - total[:-1]) / above - total[:-1] / below
    best = int(np.argmax(below * above * apart**2))
    return float(values[best] + values[best + 1]) / 2


def _drop_specks(mask: np.ndarray) -> np.ndarray:
    """Keep the connected parts (8 neighbours) that have at least 4 % of the largest part's pixels.

    If the largest keeps away from the rim of the picture, those on the rim go as well: edges of shadows and sheets.
    """
    from scipy import ndimage

    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # the ground
    keep, rim = sizes >= max(1, 0.04 * sizes.max()), _on_rim(parts)
    if sizes.argmax() not in rim:
        keep[rim] = False
    return keep[parts]


def _on_rim(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _fit_pen(ink: np.ndarray) -> np.ndarray:
    """Widen strokes below a tenth of the digit and narrow those above a fifth: MNIST's pens lie between."""
    from scipy import ndimage

    rows, columns = _box(ink, ink.shape)
    size, width = max(rows.stop - rows.start, columns.stop - columns.start), _pen(ink)
    missing = np.clip(width, 0.1 * size, max(0.2 * size, 0.6 * width)) - width
    change = ndimage.minimum_filter if missing < 0 else ndimage.maximum_filter
    return change(ink, 2 * round(abs(missing) / 2) + 1)


def _pen(ink: np.ndarray) -> float:
    """How thick strokes are: twice their area by the length of their outline."""
    outline = sum(np.abs(np.diff(np.pad(ink.astype(float), 1), axis=axis)).sum() for axis in (0, 1)) * np.pi / 4
    return 2 * ink.sum() / outline


def _box(ink: np.ndarray, shape: tuple[int, ...], margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns that hold the ink, in the pixels of the picture of that shape that `ink` is a copy of."""
    where = np.argwhere(ink > 0.25 * ink.max())
    scale = np.array(shape) / ink.shape
    start, stop = where.min(axis=0) * scale, (where.max(axis=0) + 1) * scale
    reach = margin * (stop - start).max()
    start, stop = np.floor(np.maximum(start - reach, 0)).astype(int), np.ceil(stop + reach).astype(int)
    return slice(start[0], min(stop[0], shape[0])), slice(start[1], min(stop[1], shape[1]))


def _place(mass: np.ndarray) -> slice:
    """Where to put rows of this mass so that their centre comes to pixel 14, to the nearest whole pixel."""
    centre = (mass * np.arange(len(mass))).sum() / mass.sum()
    start = int(np.clip(np.floor(SIDE / 2 - centre + 0.5), 0, SIDE - len(mass)))
    return slice(start, start + len(mass))


def _shrink(image: np.ndarray, side: int, enlarge: bool = False) -> np.ndarray:
    """Bring the longer side down (or up) to `side`, keeping the proportions."""
    scale = side / max(image.shape)
    scale = scale if enlarge else min(scale, 1)
    return _resize(image, *(max(1, round(n * scale)) for n in image.shape))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averaging when shrinking, linear interpolation when enlarging: (H, W) -> (height, width)."""

    def weights(old: int, new: int) -> np.ndarray:  # (new, old): shares of a window never narrower than a pixel
        reach, centre = max(old / new, 1) / 2, (np.arange(new)[:, None] + 0.5) * old / new
        share = np.minimum(centre + reach, np.arange(old) + 1) - np.maximum(centre - reach, np.arange(old))
        return np.maximum(share, 0) / np.maximum(share, 0).sum(axis=1, keepdims=True)

    return weights(image.shape[0], height) @ image @ weights(image.shape[1], width).T


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture file, upright; ValueError, with its name, if it is no picture, damaged or too large."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = Path(path).expanduser().read_bytes()  # what fails from here on is the picture, not the disk
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
        return ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        raise ValueError(f"image {str(path)!r} is no picture that Pillow reads; save it as PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {str(path)!r} is too large: {error}; scale it down first") from None
    except (OSError, RuntimeError, SyntaxError, ValueError, struct.error) as error:
        raise ValueError(f"image {str(path)!r} is damaged: {error}; save it again") from None


def to_grey(image: Any) -> np.ndarray:
    """Any kind of picture -> (H, W) float64 in 0..1; what is transparent is filled so that the ink stands out."""
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path)):
        image = read_picture(image)
    elif isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    if isinstance(image, Image.Image):
        if image.mode.startswith("I"):  # 16-bit grey
            image = np.asarray(image).astype(np.uint16)
        image = np.asarray(image if getattr(image, "mode", "F") == "F" else image.convert("RGBA"))
    shape = tuple(getattr(image, "shape", ()))
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image  # (H, W, C)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image must be a path, PIL image, numpy array or tensor, got {type(image).__name__}")
    if image.ndim not in (2, 3) or min(image.shape[:2]) < 4 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"image has shape {shape}; expected one picture of at least 4 x 4 pixels: an array (H, W), (H, W, 3) or "
            "(H, W, 4), or a tensor (H, W) or (C, H, W). Pass the pictures of a batch one by one."
        )
    kind = image.dtype.name
    if kind not in ("uint8", "uint16", "bool") and not kind.startswith("float"):
        raise TypeError(f"image has dtype {kind}; expected uint8, uint16, bool, or float in 0..1")
    if kind.startswith("float") and not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"image has values {image.min():g} to {image.max():g}; floats must lie in 0..1 (divide by 255 or use uint8)"
        )
    full = {"uint8": 255.0, "uint16": 65535.0}.get(kind, 1.0)
    channels = [image] if image.ndim == 2 else list(np.moveaxis(image, -1, 0))
    channels = [channel.astype(np.float64) / full for channel in channels]
    grey = channels[0]
    if len(channels) > 1:
        grey = 0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]  # ITU-R BT.601
    if len(channels) == 4 and channels[3].min() < 1:
        alpha = channels[3]
        # A drawing on nothing goes on black or white, whichever it differs from.
        fill = float((grey * alpha).sum() < 0.5 * alpha.sum())
        if alpha.mean() > 0.5:  # a picture of paper with see-through parts
            fill = float(np.median(grey[alpha > 0.5]))
        grey = grey * alpha + fill * (1 - alpha)
    return grey
