"""Plots of what a network sees, what it learns and what it gets wrong.

Every function returns a matplotlib Figure. A notebook shows it if it is the last expression of a cell; a script saves
it with `figure.savefig("name.png")`. pyplot is not used, and your backend and settings stay as they are. The
background is white, so that figures are legible in light and dark themes.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor, nn

from kit.digits import read_picture, to_grey
from kit.runtime import device_of, eval_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
Indices = Tensor | Sequence[int]
# The colour-blind safe palette of Okabe and Ito, "Color Universal Design" (2008).
BLUE, SKY, ORANGE, RED = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
GREEN, PURPLE = "#009E73", "#CC79A7"
INK, GREY, PALE = "#222222", "#707070", "#E8E8E8"
SHADES: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
SIZED = (
    "font.size",
    "axes.titlesize",
    "axes.labelsize",
    "legend.fontsize",
    "xtick.labelsize",
    "ytick.labelsize",
)
COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
STYLE = dict.fromkeys(SIZED, 10) | dict.fromkeys(COLOURED, INK)
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
STYLE |= {"text.parse_math": False}  # a class may be called "$5 to $10"
STYLE |= {"grid.color": PALE, "axes.axisbelow": True, "legend.frameon": False, "lines.markersize": 4}


# ---- Shared helpers ----


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make `draw` use the kit's style, not the caller's, and let IPython show its Figure without pyplot."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib.style

        with matplotlib.style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made at the first draw: make them in this style
        # IPython shows Figures only once pyplot is imported with the inline backend: do not wait for that.
        figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
        return figure

    return in_style


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def new_figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a Figure of that size in inches, and its axes: one, or `columns` side by side."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100, layout="constrained")
    return figure, figure.subplots(1, columns, **options)


def _grid(
    tiles: Sequence[Any],
    columns: int,
    captions: Sequence[str] = (),
    row_names: Sequence[str] = (),
    title: str = "",
    side: float = 0.84,  # inches: three pixels for each of a 28-pixel image
    **options: Any,
) -> Figure:
    """Draw tiles (H, W[, 3]) row by row, None as a blank; captions above the first tiles, names left of rows."""
    columns = min(columns, len(tiles))
    rows, captioned = math.ceil(len(tiles) / columns), math.ceil(len(captions) / columns)
    head = 0.1 + 0.17 * max((caption.count("\n") + 1 for caption in captions), default=0)
    across = max(side + 0.08, 0.1 + 0.08 * widest(captions))
    left, top = 0.1 + 0.09 * widest(row_names), 0.3 if title else 0.0
    tall = side * max(tile.shape[0] / tile.shape[1] for tile in tiles if tile is not None)
    ends = [top + tall * (row + 1) + head * min(row + 1, captioned) + 0.08 * (row + 1) for row in range(rows)]
    figure, axes = new_figure(max(left + columns * across + 0.05, 0.08 * len(title) + 0.2), ends[-1] + 0.1)
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))  # one axes for all tiles, in inches, y down: quick, and sizes are exact
    for index, tile in enumerate(tiles):
        x, end = left + index % columns * across + (across - side) / 2, ends[index // columns]
        if tile is not None:
            axes.imshow(tile, extent=(x, x + side, end, end - tall), interpolation="nearest", **options)
        if index < len(captions):
            place = x + side / 2, end - tall - 0.07
            axes.text(*place, captions[index], ha="center", va="baseline", linespacing=1.1)
    for end, name in zip(ends, row_names, strict=False):
        axes.text(left - 0.05, end - tall / 2, name, ha="right", va="center")
    axes.text(0.1, 0.08, title, va="top")
    width, height = figure.get_size_inches()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure


def widest(texts: Sequence[str]) -> int:
    return max((len(line) for text in texts for line in text.split("\n")), default=0)


def round_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, … between the bounds, for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a whole number, such as {name}=8")
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1, such as {name}=8")


def _check_float(tensor: Any, name: str, shape: str) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} is {kind}, expected a Tensor of floats {shape}")


def _pixels(images: Tensor) -> Tensor:
    """Images ready to show: float (N, H, W) or (N, H, W, 3) between 0 and 1, on the CPU."""
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images is {kind}, expected a Tensor of uint8 or floats: convert it, e.g. by torch.tensor")
    shown = images.unsqueeze(1) if images.ndim == 3 else images
    if shown.ndim != 4 or shown.shape[1] not in (1, 3) or not shown.numel():
        expected = "(N, 1, H, W), (N, 3, H, W) or (N, H, W) and no side 0"
        raise ValueError(f"images has shape {tuple(images.shape)}, expected {expected}: give one image as image[None]")
    shown = shown.detach().cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    low = shown.nan_to_num(math.inf, math.inf, math.inf).amin((0, 2, 3), keepdim=True)
    high = shown.nan_to_num(-math.inf, -math.inf, -math.inf).amax((0, 2, 3), keepdim=True)
    if low.min() < 0 or (high.max() > 1):  # normalised: undo it, channel by channel
        shown = (shown - low) / (high - low).clamp_min(1e-12)
    shown = shown.nan_to_num(0.0).clamp(0, 1)
    return shown[:, 0] if shown.shape[1] == 1 else shown.permute(0, 2, 3, 1)


def _indices(values: Indices, name: str, size: int, classes: int | None = None) -> Tensor:
    """Class indices, checked: int64 (size,) on the CPU."""
    tensor = torch.as_tensor(values, device="cpu").detach()
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} is {tensor.dtype}, expected whole class indices: take probabilities.argmax(1)")
    if tuple(tensor.shape) != (size,):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({size},): one class index per image")
    top = math.inf if classes is None else classes - 1
    if size and (tensor.min() < 0 or tensor.max() > top):
        raise ValueError(f"{name} runs from {tensor.min()} to {tensor.max()}, expected 0 to {top}: check classes")
    return tensor.long()


def _confusion(labels: Indices, predictions: Indices, classes: Sequence[str]) -> Tensor:
    """Counts (K, K): true class down, predicted class across."""
    size, k = len(labels), len(classes)
    if not size or not k:
        raise ValueError(f"labels has {size} entries and classes {k}, expected at least one: pass data.classes")
    pairs = _indices(labels, "labels", size, k) * k + _indices(predictions, "predictions", size, k)
    return torch.bincount(pairs, minlength=k * k).view(k, k)


def _trace(model: nn.Module, inputs: Tensor, wanted: dict[str, nn.Module]) -> list[tuple[str, nn.Module, Any, Any]]:
    """(name, module, input size, output) of each call of a wanted module; the model stays as it was."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []

    def remember(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        size = tuple(arguments[0].shape[2:]) if arguments and isinstance(arguments[0], Tensor) else ()
        # A clone, for an in-place ReLU behind the layer would write into its output.
        kept = output.detach().float().cpu().clone() if isinstance(output, Tensor) else None
        calls.append((name, module, size, kept))

    dtype = next((weight.dtype for weight in model.parameters()), torch.float32)
    hooks = [module.register_forward_hook(functools.partial(remember, name)) for name, module in wanted.items()]
    try:
        with eval_mode(model), torch.no_grad():
            model(inputs.to(device_of(model), dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


# ---- Data ----


@styled
def plot_images(
    images: Any,
    labels: Indices | None = None,
    *,
    classes: Sequence[str] | None = None,
    columns: int = 10,
    count: int = 50,
) -> Figure:
    """Plot the first `count` images in a grid, each under its class name.

    images: (N, C, H, W) or (N, H, W), uint8 or float, grey or colour; or an ImageData, which brings its own
    labels and classes. Float images outside 0 to 1 (normalised ones) are rescaled to be visible.
    labels: (N,) class indices. Raises TypeError or ValueError for types, shapes or labels that do not fit.
    """
    _check_counts(columns=columns, count=count)
    if hasattr(images, "images") and hasattr(images, "labels"):
        labels = images.labels if labels is None else labels
        images, classes = images.images, classes or images.classes
    tiles = _pixels(images[:count] if isinstance(images, Tensor) else images)
    captions = []
    if labels is not None:
        known = _indices(labels, "labels", len(images), len(classes) if classes else None)[:count].tolist()
        captions = [classes[label] if classes else str(label) for label in known]
    return _grid(list(tiles.numpy()), columns, captions, **SHADES)


@styled
def plot_augmentation(
    images: Any, augment: Callable[..., Tensor], *, draws: int = 8, seed: int = 0, count: int = 5
) -> Figure:
    """Plot random draws of an augmentation: one image per row, the original first.

    images: (N, C, H, W) or (N, H, W), uint8 or float from 0 to 1, or an ImageData; `count` of them are shown.
    augment: called as augment(images, generator), as in a training, on float images from 0 to 1, such as Augment().
    The same seed gives the same figure; the global random state is not used.
    """
    _check_counts(draws=draws, count=count)
    if not callable(augment):
        raise TypeError(f"augment is a {type(augment).__name__}, expected a callable, such as Augment()")
    images = getattr(images, "images", images)
    original = _pixels(images[:count] if isinstance(images, Tensor) else images)
    images = images[:count] if images.ndim == 4 else images[:count, None]
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("images leave 0 to 1 or hold NaN, expected images that are not normalised yet")
    generator = torch.Generator(images.device).manual_seed(seed)
    drawn = [_pixels(augment(images.clone(), generator).clamp(0, 1)) for _ in range(draws)]
    tiles = torch.stack([original, *drawn], 1).flatten(0, 1)
    captions = ["original", *(f"draw {draw}" for draw in range(1, draws + 1))]
    return _grid(list(tiles.numpy()), draws + 1, captions, **SHADES)


# ---- Training and results ----


@styled
def plot_confusion(labels: Indices, predictions: Indices, classes: Sequence[str]) -> Figure:
    """Plot the confusion matrix in counts, with the percentage of correct predictions beside each class.

    labels, predictions: (N,) class indices; classes: their K names. The diagonal is grey and empty cells stay
    blank, so that the mistakes stand out.
    """
    counts = _confusion(labels, predictions, classes)
    k, total, right, long = len(classes), int(counts.sum()), int(counts.trace()), widest(classes)
    mistakes = counts.float().fill_diagonal_(math.nan)
    figure, axes = new_figure(2.6 + 0.46 * k + 0.07 * long, 1.4 + 0.38 * k + 0.05 * long)
    worst = max(float(mistakes.nan_to_num().max()), 1.0)
    axes.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=1.6 * worst, aspect="auto")
    axes.set_facecolor(PALE)  # shines through the NaN of the diagonal
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            if row == column:
                axes.text(column, row, f"{count}", ha="center", va="center", color=GREY)
            elif count:
                axes.text(column, row, f"{count}", ha="center", va="center", weight="bold")
        share = f"{100 * line[row] / sum(line):.2f} % right" if sum(line) else "no images"
        axes.annotate(share, (1.02, row), xycoords=("axes fraction", "data"), va="center")
    axes.set_xticks(range(k), classes, rotation=45 if long > 3 else 0, ha="right" if long > 3 else "center")
    axes.set_yticks(range(k), classes)
    axes.set_xticks([edge - 0.5 for edge in range(1, k)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, k)], minor=True)
    axes.grid(which="minor", color="white")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class (images)", ylabel="true class")
    axes.set_title(f"{100 * right / total:.2f} % right, {total - right:,} of {total:,} wrong")
    return figure


@styled
def plot_mistakes(
    images: Tensor, labels: Indices, probabilities: Tensor, classes: Sequence[str], *, count: int = 20
) -> Figure:
    """Plot the worst mistakes: wrong predictions, the most confident first, with true class and probability.

    images: (N, C, H, W) or (N, H, W); labels: (N,); probabilities: (N, K) from 0 to 1, as predict returns
    them; classes: K names. If every prediction is right, the figure says so.
    """
    _check_counts(count=count)
    _check_float(probabilities, "probabilities", "(N, K), as predict(model, images) returns them")
    size, k = len(images), len(classes)
    if not size or tuple(probabilities.shape) != (size, k):
        expected = f"({size}, {k}), one row per image and one column per class"
        raise ValueError(f"probabilities has shape {tuple(probabilities.shape)}, expected {expected}, not empty")
    if not ((probabilities >= 0) & (probabilities <= 1.0001)).all():  # False for NaN too
        raise ValueError("probabilities leaves 0 to 1 or holds NaN: pass logits.softmax(1), not the logits")
    truth = _indices(labels, "labels", size, k)
    confidence, predicted = probabilities.detach().cpu().float().max(1)
    wrong = (predicted != truth).nonzero()[:, 0]
    if not len(wrong):
        figure, axes = new_figure(5, 0.8)
        axes.axis("off")
        axes.text(0.5, 0.5, f"No mistakes: all {size:,} images are right.", ha="center", va="center")
        return figure
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:count]]
    rows = zip(truth[worst].tolist(), predicted[worst].tolist(), confidence[worst].tolist(), strict=True)
    captions = [f"true {classes[t]}\npredicted {classes[p]}\n{100 * c:.1f} %" for t, p, c in rows]
    most = max(1, int(9.4 / (0.1 + 0.08 * widest(captions))))  # columns in a notebook's width
    columns = math.ceil(len(worst) / math.ceil(len(worst) / most))
    title = f"wrong: {len(wrong):,} of {size:,} images, the most confident first"
    return _grid(list(_pixels(images[worst.to(images.device)]).numpy()), columns, captions, title=title, **SHADES)


@styled
def plot_prediction(picture: Any, image: Tensor, probabilities: Tensor, classes: Sequence[str]) -> Figure:
    """Plot a picture of your own, the image that the network saw, and the probability of each class.

    picture: a path, a PIL image or an array (H, W) or (H, W, 3). image: (C, H, W), as `prepare_digit` returns it.
    probabilities: (K,), as `predict` returns them for this image; classes: their K names.
    Raises ValueError if these are not the probabilities of one image.
    """
    if tuple(probabilities.shape) != (len(classes),):
        raise ValueError(
            f"probabilities has shape {tuple(probabilities.shape)}, expected ({len(classes)},): those of one image"
        )
    figure, (left, middle, right) = new_figure(9, 2.9, 3, width_ratios=(1, 1, 1.4))
    left.imshow(_as_read(picture), cmap="gray")
    middle.imshow(_pixels(image[None])[0].numpy(), **SHADES)
    for axes, title in ((left, "the picture"), (middle, "what the network sees")):
        axes.set(title=title, xticks=[], yticks=[])
    values = probabilities.detach().cpu().tolist()
    best = max(range(len(values)), key=values.__getitem__)
    right.barh(range(len(values)), values, color=[BLUE if at == best else GREY for at in range(len(values))])
    right.set_yticks(range(len(values)), classes)  # names may be equal
    right.set(xlim=(0, 1), xlabel="probability", title=f"read as {classes[best]}, {values[best]:.1%}")
    right.invert_yaxis()
    return figure


def _as_read(picture: Any) -> Any:
    """Return a picture upright, as an array in colour, or in grey as `prepare_digit` reads one with see-through parts.

    16 bits become grey as well. Other than matplotlib, this knows all modes of Pillow.
    """
    import numpy
    from PIL import Image, ImageOps

    if isinstance(picture, (str, Path)):
        picture = read_picture(picture)
    elif isinstance(picture, Image.Image):
        picture = ImageOps.exif_transpose(picture)
    else:
        picture = numpy.asarray(picture)
        return picture / 65535 if picture.dtype == numpy.uint16 else picture
    if "A" in picture.getbands() or "transparency" in picture.info or picture.mode[0] in "IF":
        return numpy.repeat(to_grey(picture)[:, :, None], 3, axis=2)
    return numpy.asarray(picture.convert("RGB"))


@styled
def plot_class_accuracy(labels: Indices, predictions: Indices, classes: Sequence[str]) -> Figure:
    """Plot the accuracy of each class in percent on a zoomed axis, with 95 % confidence intervals.

    labels, predictions: (N,) class indices; classes: their K names. The intervals are Wilson's, "Probable
    inference, the law of succession, and statistical inference" (1927).
    """
    counts = _confusion(labels, predictions, classes)
    figure, axes = new_figure(7, 1.2 + 0.28 * len(classes))
    low = 100.0
    for row, (right, of) in enumerate(zip(counts.diag().tolist(), counts.sum(1).tolist(), strict=True)):
        note = "no images"
        if of:
            share, z2 = right / of, 1.96**2
            centre = (share + z2 / (2 * of)) / (1 + z2 / of)
            half = math.sqrt(z2 * share * (1 - share) / of + z2**2 / (4 * of**2)) / (1 + z2 / of)
            axes.plot([100 * (centre - half), 100 * (centre + half)], [row, row], color=SKY, linewidth=4)
            axes.plot([100 * share], [row], "o", color=BLUE, markersize=6)
            low = min(low, 100 * (centre - half))
            note = f"{100 * share:.2f} %   {of - right:,} of {of:,} wrong"
        axes.annotate(note, (1.02, row), xycoords=("axes fraction", "data"), va="center")
    overall = 100 * int(counts.trace()) / int(counts.sum())
    axes.axvline(overall, color=RED, linestyle=":")
    axes.set(
        xlabel="accuracy (%), bar: 95 % interval",
        ylabel="class",
        title=f"dotted: all classes, {overall:.2f} %",
    )
    axes.set(xlim=(low - 0.05 * (100 - low), 100 + 0.03 * (100 - low)), ylim=(len(classes) - 0.5, -0.5))
    axes.set_yticks(range(len(classes)), classes)
    axes.grid(True, axis="x")
    return figure


# ---- Inside the network ----


@styled
def plot_filters(conv_weight: Tensor) -> Figure:
    """Plot the filters of a convolution, on one colour scale with white at 0.

    conv_weight: (out, in, height, width), such as layer.weight. With one input channel the filters fill a
    grid; with more, each row is a filter and each column an input channel.
    """
    _check_float(conv_weight, "conv_weight", "(out, in, height, width), such as layer.weight")
    if conv_weight.ndim != 4 or not conv_weight.numel():
        raise ValueError(f"conv_weight has shape {tuple(conv_weight.shape)}, expected (out, in, height, width)")
    weight = conv_weight.detach().cpu().float()
    limit = float(weight.nan_to_num(0.0, 0.0, 0.0).abs().max()) or 1.0
    colours: dict[str, Any] = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    colours["title"] = f"weights: brown {-limit:.2g}, white 0, violet {limit:.2g}"
    tiles, numbers = list(weight.flatten(0, 1).numpy()), [f"{number}" for number in range(1, len(weight) + 1)]
    if weight.shape[1] == 1:
        return _grid(tiles, 8, numbers, **colours)
    return _grid(tiles, weight.shape[1], row_names=numbers, side=0.5, **colours)


@styled
def plot_feature_maps(
    model: nn.Module, image: Tensor, *, layers: Sequence[str] | None = None, channels: int = 20
) -> Figure:
    """Plot the feature maps of one image: one row per layer, in the order in which the layers run.

    image: (C, H, W) or (1, C, H, W) float, normalised as in training; moved to the model's device.
    layers: names from model.named_modules(), None for every Conv2d; their outputs must be (1, C, H, W).
    Each row shows at most `channels` maps on a scale of its own; bright is high. The model runs once in eval mode
    without gradients and is left as it was.
    """
    _check_counts(channels=channels)
    _check_float(image, "image", "(C, H, W), normalised as in training")
    image = image.unsqueeze(0) if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected one image (C, H, W): index the batch")
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)] if layers is None else layers
    if not names or not set(names) <= set(modules):
        unknown = ", ".join(sorted(set(names) - set(modules))) or "no convolution"
        raise ValueError(f"layers: {unknown}, expected names from model.named_modules()")
    rows: list[tuple[str, Tensor]] = [("input", image.detach().float().cpu())]
    for name, _, _, output in _trace(model, image, {name: modules[name] for name in names}):
        if output is None or output.ndim != 4:
            raise ValueError(f"layers: {name} does not return (1, C, H, W), expected convolutions or poolings")
        rows.append((name, output))
    across = min(channels, max(output.shape[1] for _, output in rows))
    tiles: list[Any] = []
    row_names = []
    for name, output in rows:
        maps = output[0, :across].nan_to_num(0.0, 0.0, 0.0)
        maps = (maps - maps.min()) / (maps.max() - maps.min()).clamp_min(1e-12)
        tiles += [*maps.numpy(), *[None] * (across - len(maps))]
        depth, height, width = output.shape[1:]
        shown = f"{across} of {depth}" if depth > across else depth
        row_names.append(f"{name}\n{shown} × {height} × {width}")
    return _grid(tiles, across, row_names=row_names, side=0.42, cmap="viridis", vmin=0, vmax=1)


def _layers(model: nn.Module, input_size: Sequence[int]) -> list[dict[str, Any]]:
    """One entry a convolution, pooling or linear layer, as they run: name, parameters, others, field.

    `others` are the parameters of what follows the layer, such as BatchNorm. The receptive field grows by
    (kernel - 1) · dilation · jump, and the jump by the stride (Araujo, Norris and Sim, "Computing receptive
    fields of convolutional neural networks", 2019): exact for layers in sequence.
    """
    adaptive = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, *adaptive)
    modules = dict(model.named_modules())
    wanted = {n: m for n, m in modules.items() if isinstance(m, kinds) or [*m.parameters(recurse=False)]}
    rows: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    field, jump, last = [1, 1], [1, 1], list(input_size[1:])
    for path, module, size, output in _trace(model, torch.zeros(1, *input_size, device="cpu"), wanted):
        fresh = set(module.parameters(recurse=False)) - seen  # a shared weight counts once
        seen |= fresh
        parameters = sum(weight.numel() for weight in fresh)
        if rows and not isinstance(module, kinds):
            rows[-1]["others"] += parameters
            continue
        if output is None or (output.ndim == 4 and len(size) != 2):
            raise ValueError(f"model's layer {path!r} does not take a tensor by position and return one")
        for axis in (0, 1):
            before, after = (size[axis], output.shape[2 + axis]) if output.ndim == 4 else (1, 1)
            if before == 1 < last[axis]:  # a mean or a flatten on the way has seen every place
                field[axis] += (last[axis] - 1) * jump[axis]
            kernel, stride, dilation = (
                value if isinstance(value, int) else value[axis]
                for value in (getattr(module, key, 1) for key in ("kernel_size", "stride", "dilation"))
            )
            if isinstance(module, adaptive):
                stride = before // after
                kernel = before - (after - 1) * stride
            field[axis] += (kernel - 1) * dilation * jump[axis]
            jump[axis], last[axis] = jump[axis] * stride, after
        name = type(module).__name__.removesuffix("2d").lower()
        if kernel := getattr(module, "kernel_size", None):
            name += " " + "×".join(map(str, kernel if isinstance(kernel, tuple) else (kernel, kernel)))
        name += " → " + " × ".join(map(str, output.shape[1:]))
        rows.append({"name": name, "parameters": parameters, "others": 0, "field": max(field)})
    if not rows:
        raise ValueError("model has neither parameters nor poolings, expected a network with layers")
    return rows


@styled
def plot_parameters(model: nn.Module, input_size: Sequence[int] = (1, 28, 28)) -> Figure:
    """Plot the parameters and the receptive field (in input pixels) of each layer, in the order in which they run.

    input_size: (C, H, W). What follows a layer (such as BatchNorm) is counted with it. The receptive field is right
    for convolutions, poolings and linear layers in sequence. The model runs once in eval mode without gradients and
    is left as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected an nn.Module, such as Net()")
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size is {tuple(input_size)}, expected (channels, height, width), such as (1, 28, 28)")
    rows = _layers(model, input_size)
    places, own, others = (
        range(len(rows)),
        [row["parameters"] for row in rows],
        [row["others"] for row in rows],
    )
    figure, (bars, fields) = new_figure(9, 1.3 + 0.26 * len(rows), 2, sharey=True, width_ratios=(3, 2))
    bars.barh(places, own, color=BLUE, label="the layer")
    bars.barh(places, others, left=own, color=SKY, label="BatchNorm and others behind it")
    fields.plot([row["field"] for row in rows], places, "o-", color=ORANGE)
    for place, row in enumerate(rows):
        parameters, beside = (
            row["parameters"] + row["others"],
            {"textcoords": "offset points", "va": "center"},
        )
        bars.annotate(f"{parameters:,}", (parameters, place), (6, 0), **beside)
        fields.annotate(f"{row['field']}", (row["field"], place), (6, 0), **beside)
    side, most = max(input_size[1:]), max(map(sum, zip(own, others, strict=True)))
    fields.axvline(side, color=GREY, linestyle=":", label=f"image side, {side}")
    bars.set(xlabel="parameters", title=f"{sum(own) + sum(others):,} parameters", xlim=(0, 1.15 * most + 1))
    fields.set(xlabel="receptive field (pixels)", title="receptive field")
    fields.set_xlim(0, 1.15 * max(side, *(row["field"] for row in rows)))
    bars.set_yticks(places, [row["name"] for row in rows])
    bars.set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
