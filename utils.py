"""Train a small network on images and see what it learnt: 15 epochs of MNIST, 99.6 %, in a few minutes on a CPU.

    from model import Net
    from utils import Recipe, load_mnist, train_network

    train, test = load_mnist()
    history = train_network(Net(), train, test, Recipe(epochs=2))

Read it from top to bottom as the story of one training run: augment images, batch them, train and evaluate for an
epoch, repeat (`fit`), all of it from one `Recipe` (`train_network`), predict. What stands behind lives in `kit/`:
`data.py` (any dataset as tensors), `idx.py` (MNIST and IDX files), `optim.py` (Muon and the schedule), `averaging.py`
(averaged weights), `checkpoints.py`, `runtime.py` (devices, seeds, processes), `plots.py`, `digits.py` (your own
handwriting) and `export.py` (ONNX). Everything public is imported here, so `utils` is all that you need beside `model`.

Names used throughout: images (N, C, H, W), labels (N,), logits (N, K). Accuracies are percentages.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from kit.averaging import WeightAverage
from kit.checkpoints import (
    Run,
    describe_run,
    load_checkpoint,
    resume,
    save_checkpoint,
    save_run,
    tidy_options,
    try_folder,
)
from kit.data import ImageData, as_tensors, normalise, refuse_other_scale, split, statistics_on, to_floats
from kit.digits import prepare_digit
from kit.export import export_onnx
from kit.history import (
    Criterion,
    History,
    Metrics,
    NonFiniteLoss,
    Tally,
    early_endings,
    epoch_line,
    is_classification,
    mean_loss,
    refuse_non_finite,
    refuse_non_finite_weights,
)
from kit.idx import load_idx, load_mnist, read_idx
from kit.optim import Muon, linear_schedule, what_steps
from kit.plots import (
    plot_augmentation,
    plot_class_accuracy,
    plot_confusion,
    plot_feature_maps,
    plot_filters,
    plot_images,
    plot_mistakes,
    plot_parameters,
    plot_prediction,
)
from kit.plots_history import plot_history
from kit.runtime import (
    device_of,
    eval_mode,
    from_first,
    get_device,
    interrupt_later,
    keep_freed_memory,
    note_interrupt,
    one_of_several,
    raise_interrupt,
    rank_and_world,
    second_interrupt_raises,
    seed_everything,
    share_buffers,
    somebody_watches,
    start_distributed,
    sum_over_processes,
    train_mode,
)
from kit.settings import positive_number, real_number, refuse_uncallable, whole_number
from kit.views import ShiftedViews

__all__ = [
    "Augment",
    "Batches",
    "History",
    "ImageData",
    "Metrics",
    "Muon",
    "NonFiniteLoss",
    "Recipe",
    "ShiftedViews",
    "WeightAverage",
    "as_tensors",
    "evaluate",
    "export_onnx",
    "fit",
    "get_device",
    "linear_schedule",
    "load_checkpoint",
    "load_idx",
    "load_mnist",
    "plot_augmentation",
    "plot_class_accuracy",
    "plot_confusion",
    "plot_feature_maps",
    "plot_filters",
    "plot_history",
    "plot_images",
    "plot_mistakes",
    "plot_parameters",
    "plot_prediction",
    "predict",
    "prepare_digit",
    "read_idx",
    "save_checkpoint",
    "seed_everything",
    "split",
    "start_distributed",
    "train_epoch",
    "train_network",
]

# --------------------------------------------------------------------------------------- Augmentation and batches

Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # floats (N, C, H, W) from 0 to 1 -> the same, changed


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes to a batch of images, drawn for each image separately, on the device of the batch.

    rotation: maximum angle in either direction, in degrees.
    translation: maximum shift in each direction, as a fraction of the side.
    scale: maximum change of size in either direction, as a fraction.
    shear: maximum angle in either direction, in degrees.
    elastic: standard deviation in pixels of a smooth random displacement (Simard et al., 2003), interpolated from
        a 5 x 5 grid.
    erasing: probability that a rectangle of 2 to 20 % of the area is set to zero (Zhong et al., 2017).

    Pixels that move in from outside the image are zero. Raises ValueError for a number out of range.
    """

    rotation: float = 15.0
    translation: float = 0.1
    scale: float = 0.15
    shear: float = 0.0
    elastic: float = 0.5
    erasing: float = 0.0

    def __post_init__(self) -> None:
        limits = {"rotation": 180, "translation": 1, "scale": 0.9, "shear": 80, "elastic": 10, "erasing": 1}
        for name, limit in limits.items():
            object.__setattr__(self, name, real_number(name, getattr(self, name), limit))

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return changed copies of `images`, floats (N, C, H, W) from 0 to 1; `generator` must be on their device."""
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected floats (N, C, H, W)")
        draws = torch.rand(len(images), 9, 1, 1, generator=generator, dtype=images.dtype, device=images.device)
        images = F.grid_sample(images, self._grid(images, draws[:, :5], generator), align_corners=False)
        return self._erased(images, draws[:, 5:]) if self.erasing else images

    def _grid(self, images: Tensor, draws: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return where each pixel of the result comes from: (N, H, W, 2), x and y from -1 to 1."""
        height, width = images.shape[-2:]
        y = torch.arange(height, dtype=draws.dtype, device=draws.device).sub((height - 1) / 2)[:, None]
        x = torch.arange(width, dtype=draws.dtype, device=draws.device).sub((width - 1) / 2)
        # The limits stay Python numbers: a tensor of them would make a GPU wait for its copy in every batch.
        limits = (math.radians(self.rotation), math.radians(self.shear), self.scale, self.translation, self.translation)
        signed = (2 * draws - 1).unbind(1)
        angle, shear, scale, right, down = (draw * limit for draw, limit in zip(signed, limits, strict=True))
        cos, sin, slope = angle.cos(), angle.sin(), shear.tan()
        to_x, to_y = (2 / (side * (1 + scale)) for side in (width, height))
        # What depends on the column and what on the row is small: only their sum is as large as the images.
        grid = draws.new_empty(len(images), height, width, 2)
        from_x, from_y = grid.unbind(-1)
        torch.add(to_x * cos * x, to_x * (slope * cos - sin) * y + 2 * right, out=from_x)
        torch.add(to_y * sin * x, to_y * (slope * sin + cos) * y + 2 * down, out=from_y)
        if self.elastic:
            coarse = draws.new_empty(2, len(images), 5, 5).normal_(generator=generator) * self.elastic
            # Row by row, then column by column: five times as fast as F.interpolate on all of it.
            across, along = (_bicubic(side, coarse) for side in (width, height))
            bent_x, bent_y = along @ (coarse @ across.T)
            from_x.add_(bent_x, alpha=2 / width)
            from_y.add_(bent_y, alpha=2 / height)
        return grid

    def _erased(self, images: Tensor, draws: Tensor) -> Tensor:
        """Set one rectangle in each image to zero, with probability `erasing`."""
        height, width = images.shape[-2:]
        chance, size, place_x, place_y = draws.unbind(1)
        area = 0.02 + 0.18 * size
        shape = 3.0 ** (2 * chance / self.erasing - 1)  # height / width, from 1/3 to 3
        tall, wide = (area * shape).sqrt() * height, (area / shape).sqrt() * width
        y = torch.arange(height, device=images.device)[:, None] - place_y * (height - tall)
        x = torch.arange(width, device=images.device) - place_x * (width - wide)
        blank = (y >= 0) & (y < tall) & (x >= 0) & (x < wide) & (chance < self.erasing)
        return images.masked_fill(blank[:, None], 0.0)


def _bicubic(side: int, like: Tensor) -> Tensor:
    """Return the matrix (side, 5) that interpolates 5 values to `side`, with the dtype and device of `like`."""
    unit = torch.eye(5, dtype=like.dtype, device=like.device)[:, None, :, None]
    return F.interpolate(unit, size=(side, 1), mode="bicubic", align_corners=True)[:, 0, :, 0].T


class Batches:
    """Batches of (images, labels) from `data`, kept on `device` as a whole; iterate over it any number of times.

    Images are floats (N, C, H, W), augmented, then normalised with the mean and std of `data`; labels are int64 (N,).

    augment: called as augment(images, generator), images from 0 to 1; None for none.
    augment_epochs: augment this many epochs only; None for all. `fit` sets the epoch, other loops call `set_epoch`.
    shuffle: visit the images in a new random order in every pass.
    subsample: the share of the images that each pass but the first visits, rounded to whole batches, at least one; 1
        for all. They are drawn with probabilities in proportion to their last losses, so that little time goes to what
        is learnt already (after the online batch selection of Loshchilov and Hutter, 2016, who draw by rank). `fit`
        sets the epoch and notes the losses; other loops call `set_epoch` and, after each batch, `note_losses`. To
        measure training images, use other `Batches` without it.
    drop_last: leave out a last batch smaller than `batch_size`; BatchNorm cannot always train on a single image.
    device: None takes `get_device()`.
    seed: determines the order, what is drawn and the augmentation; None draws one.

    With `subsample` below 1, the attribute `losses` (N,) holds the last cross-entropy of each image, log(K) for K
    classes before the first.

    After `start_distributed` each process gets its share of every batch. With `shuffle` or `augment`, a last batch
    with fewer images than processes is left out. Otherwise every image comes exactly once, and a process without a
    share of the last batch gets an empty one, (0, C, H, W).
    Raises TypeError or ValueError for bad arguments, torch.OutOfMemoryError if `data` does not fit on `device`.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int = 128,
        *,
        augment: Augmentation | None = None,
        augment_epochs: int | None = None,
        shuffle: bool = False,
        subsample: float = 1.0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(data, ImageData):
            raise TypeError(f"data is {type(data).__name__}; expected ImageData: as_tensors(dataset) makes it")
        self.data, self.augment, self.shuffle, self.drop_last = data, augment, shuffle, drop_last
        self.batch_size = whole_number("batch_size", batch_size, 1)
        if augment is not None:
            refuse_uncallable("augment", augment)
        if augment_epochs is not None:
            augment_epochs = whole_number("augment_epochs", augment_epochs, 0)
        self.augment_epochs, self.epoch = augment_epochs, 0
        self.subsample = positive_number("subsample", subsample, 1)
        if self.subsample < 1 and not shuffle:
            raise ValueError(f"subsample is {subsample!r} and shuffle is False; expected shuffle=True, or subsample=1")
        self.device = get_device() if device is None else torch.device(device)
        if seed is None:  # drawn only where it is used: batches in order leave the global generator alone
            seed = int(torch.randint(2**31, (), device="cpu")) if self._trains() else 0
        self.seed = whole_number("seed", seed, 0)
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        try:
            self._images, self._labels = data.images.to(self.device), data.labels.to(self.device)
        except torch.OutOfMemoryError as error:
            error.args = (f"data does not fit on {self.device}: give device='cpu', and only batches go there\n{error}",)
            raise
        self._statistics = statistics_on(self.device, data)
        if self.subsample < 1:
            first = math.log(len(data.classes))
            self.losses = torch.full((len(data),), first, dtype=torch.float32, device=self.device)
        self._batch = torch.empty(0, dtype=torch.int64, device=self.device)  # the images of the batch last given

    def __len__(self) -> int:
        return self._length_of_pass(self.epoch)

    def steps(self, epochs: int) -> int:
        """Return the number of batches in the first `epochs` passes."""
        return sum(map(self._length_of_pass, range(epochs)))

    def _length_of_pass(self, epoch: int) -> int:
        whole, rest = divmod(self._images_in(epoch), self.batch_size)
        least = rank_and_world()[1] if self._trains() else 1
        return whole + (rest >= least and not self.drop_last)

    def _images_in(self, epoch: int) -> int:
        count = max(1, round(self.subsample * len(self.data) / self.batch_size)) * self.batch_size
        return len(self.data) if epoch == 0 or self.subsample == 1 else min(count, len(self.data))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, counted from 0: it decides whether that pass is augmented and complete."""
        self.epoch = epoch

    def note_losses(self, logits: Tensor) -> None:
        """Keep the cross-entropy of each image in the batch last given, from its logits (N, K), for the next draw.

        Nothing happens where all images are visited. Raises ValueError for other shapes.
        """
        if self.subsample == 1:
            return
        labels = self._labels[self._batch]
        classes = len(self.data.classes)
        if not is_classification(logits, labels) or logits.shape[1] < classes:
            raise ValueError(
                f"subsample is {self.subsample}, which needs logits (N, K) with K of at least {classes}, the number of "
                f"classes, but they are {tuple(logits.shape)} for {len(labels)} images; give subsample=1"
            )
        logits = logits.detach().to(self.device, torch.float32)  # the network may be on another device
        self.losses[self._batch] = F.cross_entropy(logits, labels, reduction="none")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world = rank_and_world()
        if self._trains() and self.batch_size < world:
            raise ValueError(
                f"batch_size is {self.batch_size}; expected at least one image for each of {world} processes"
            )
        order, draws = self._draw_order(rank)
        order = order.to(self.device)
        augment = self.augment if self.augment_epochs is None or self.epoch < self.augment_epochs else None
        for chosen in order.split(self.batch_size)[: len(self)]:
            mine = self._batch = chosen[rank::world]
            images = to_floats(self._images[mine])
            if augment is not None:
                images = augment(images, draws)
            yield normalise(images, *self._statistics), self._labels[mine]
        if self.subsample < 1 and world > 1:
            self._share_losses(order, rank, world)

    def _trains(self) -> bool:
        return self.shuffle or self.augment is not None

    def _draw_order(self, rank: int) -> tuple[Tensor, torch.Generator]:
        """Return this pass's order, the same in every process, and a generator of this process for augmentation."""
        draws = torch.Generator(self.device)
        in_order = torch.arange(len(self.data), device="cpu")
        if not self._trains():
            return in_order, draws
        count = self._images_in(self.epoch)
        order = torch.randperm(count, generator=self.generator, device="cpu")
        if count < len(self.data):  # a little is added so that an image without loss can be drawn as well
            losses = from_first(self.losses.cpu)  # they differ if the last pass ended before its last batch
            order = torch.multinomial(losses + 1e-4, count, generator=self.generator)[order]
        draws.manual_seed(int(torch.randint(2**62, (), generator=self.generator, device="cpu")) + rank)
        return order if self.shuffle else in_order, draws

    def _share_losses(self, visited: Tensor, rank: int, world: int) -> None:
        """Give every process the losses that the others have noted in this pass."""
        whole = visited[: len(self) * self.batch_size]
        mine = torch.cat([chosen[rank::world] for chosen in whole.split(self.batch_size)])
        noted = torch.zeros_like(self.losses)
        noted[mine] = self.losses[mine]
        self.losses[whole] = sum_over_processes(noted)[whole]


# ---------------------------------------------------------------------------------------------------- Training


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    *,
    criterion: Criterion = F.cross_entropy,
    scheduler: LRScheduler | None = None,
    progress: str | None = None,
) -> Metrics:
    """Train `model` for one pass over `batches`; the metrics are those seen on the way, augmentation included.

    `model` returns logits (N, K) for inputs (N, ...); labels are (N,). Other shapes, or a single logit, are trained on
    as well if `criterion` accepts them; the accuracy is then NaN. A module that is in eval mode while `model` is in
    train mode stays so: frozen BatchNorm keeps its statistics. `scheduler` is stepped after every batch, and
    `note_losses` of `batches`, where there is one, called with its logits. `progress` names a progress bar.
    Raises TypeError for a batch that is no pair of tensors, ValueError for an empty batch or wrong shapes,
    NonFiniteLoss if the loss is NaN or infinite: before the step is taken on the CPU, within 50 batches on other
    devices or with several processes; and after the last step if a weight is.
    """
    _refuse_images("batches", batches)
    train_mode(model)
    device, tally, several = device_of(model), Tally(), rank_and_world()[1] > 1
    note_losses = getattr(batches, "note_losses", None)
    # Reading a number makes a GPU, or the other processes, wait, so there it is done now and then only.
    read_every = 1 if device.type == "cpu" and not several else 50
    hidden = progress is None or not somebody_watches()
    # The bar is not given the batches themselves: it would call iter() on them once too often, which in a
    # DataLoader starts the workers twice and draws an order that nobody sees.
    with tqdm(total=_length(batches), desc=progress, unit="batch", leave=False, disable=hidden, file=sys.stdout) as bar:
        for number, batch in enumerate(batches, start=1):
            inputs, labels = _on(device, batch, number)
            if not len(labels):
                raise ValueError(f"batch {number} is empty; leave out batches without images")
            logits = model(inputs)
            loss = mean_loss(criterion, logits, labels)
            if number % read_every == 0:
                refuse_non_finite(loss, number, inputs, optimizer)
            if note_losses is not None:
                note_losses(logits)
            optimizer.zero_grad()
            (loss * _share(labels)).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            tally.add(loss, logits, labels)
            bar.update()
            if number % 50 == 0 and not bar.disable:
                so_far = tally.so_far()
                bar.set_postfix_str(f"loss {so_far.loss:.4f}, accuracy {so_far.accuracy:.2f} %")
            if number % 50 == 0 and several:
                raise_interrupt()
    metrics = tally.metrics()
    refuse_non_finite(torch.tensor(metrics.loss, device="cpu"), number, inputs, optimizer)
    refuse_non_finite_weights(optimizer)
    return metrics


def _on(device: torch.device, batch: Any, number: int) -> tuple[Tensor, Tensor]:
    """Return a batch on `device`; TypeError if it is no pair of tensors."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(hasattr(part, "to") for part in batch):
        what = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(f"batch {number} is {what}; expected a pair of tensors, (inputs, labels)")
    inputs, labels = batch
    return inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _refuse_images(name: str, batches: Any) -> None:
    if isinstance(batches, ImageData):
        raise TypeError(f"{name} is ImageData; expected batches, such as Batches(data), or call train_network instead")


def _length(batches: Any) -> int | None:
    """How many batches there are, if they know: those of an IterableDataset do not."""
    try:
        return len(batches)
    except TypeError:
        return None


def _share(labels: Tensor) -> Tensor | float:
    """The weight that makes the processes' averaged gradient that of the whole batch, whose parts may differ."""
    world = rank_and_world()[1]
    if world == 1:
        return 1.0
    count = torch.full((), float(len(labels)), device=labels.device)
    return count * world / sum_over_processes(count)  # a tensor: nobody waits for its value


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, criterion: Criterion = F.cross_entropy
) -> Metrics:
    """Return the loss and accuracy of `model` in eval mode and full precision; nothing changes, nothing is drawn.

    Shapes are those of `train_epoch`. Under `start_distributed` the metrics are those of all processes' batches
    together, of which some may be empty.
    """
    _refuse_images("batches", batches)
    device, tally = device_of(model), Tally()
    # Not inference_mode: what a model keeps from this pass, a table of positions for instance, must still be of use
    # in training.
    still = eval_mode(criterion) if isinstance(criterion, nn.Module) else nullcontext()
    with eval_mode(model), still, torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            inputs, labels = _on(device, batch, number)
            if not len(labels):
                continue
            logits = model(inputs)
            tally.add(mean_loss(criterion, logits, labels), logits, labels)
    return tally.metrics()


def fit(
    model: nn.Module,
    train_batches: Iterable[tuple[Tensor, Tensor]],
    test_batches: Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: Optimizer,
    epochs: int = 15,
    scheduler: Any = None,
    scheduler_step: str = "batch",
    criterion: Criterion = F.cross_entropy,
    test_criterion: Criterion | None = None,
    average: float = 0.0,
    recipe: Recipe | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    verbose: bool = True,
) -> History:
    """Train `model` for `epochs` passes over `train_batches`, testing after each; return what was measured.

    Batches are any re-iterable of (inputs, labels), a DataLoader included; where they, or their samplers, have a
    `set_epoch`, it is called before each epoch with its number, counted from 0; where `train_batches` has a
    `note_losses`, it is called with the logits of each batch. `scheduler` is stepped after every "batch" or "epoch", as
    `scheduler_step` says; a ReduceLROnPlateau after every epoch, with the test loss. `on_epoch(history)` is called
    after each epoch. `verbose` shows a bar and prints a line per epoch.

    With `average` above 0, the weights that are tested, and that `model` has after each epoch, are their moving
    average over about that share of the steps so far (see `WeightAverage`). Training goes on from the last weights,
    whatever `on_epoch` does to the average; another call of `fit` starts from the average that this one leaves.

    With `checkpoint`, a file, every finished epoch is saved, after `on_epoch`, and the same call goes on after the
    last one saved, to the bit as if it had never stopped (on the CPU). A run whose data or settings differ is
    refused, with a list of the differences; so is a DataLoader with persistent_workers, whose random numbers cannot
    be saved. What training changes in plain attributes of your own objects, a counter for instance, is not saved. A
    warning names such changes, what cannot be compared, and code (of the network, augmentation and so on) that has
    been edited since. `recipe`, the one that the arguments were made from, is stored with these settings.

    Ctrl-C, or KeyboardInterrupt from `on_epoch`, ends the training; while `on_epoch` runs, Ctrl-C waits for it and a
    second one does not. In a notebook `fit` then returns the history of
    the finished epochs, and another `fit` in the same cell raises KeyboardInterrupt, so that a loop over seeds ends
    as well. In a script `fit` raises KeyboardInterrupt, with that history as its attribute `history`.

    Under `start_distributed` the gradients are averaged over all processes, all of them end together, and the first
    alone prints and saves. On Linux this process keeps the memory that tensors free from here on, which almost
    halves the time of a step; set MALLOC_TRIM_THRESHOLD_ in the environment to switch this off.

    Raises ValueError or TypeError for bad arguments, ValueError for a checkpoint of another run, OSError if it cannot
    be written, NonFiniteLoss where training diverges.
    """
    epochs, average = whole_number("epochs", epochs), real_number("average", average, 1)
    step_after = what_steps(optimizer, scheduler, scheduler_step)
    _check_parameters(model, criterion, optimizer)
    for name, batches in {"train_batches": train_batches, "test_batches": test_batches}.items():
        _refuse_images(name, batches)
    keep_freed_memory()
    verbose = verbose and rank_and_world()[0] == 0
    history = History()
    averaged = WeightAverage(model, average) if average else None
    criteria = {"criterion": criterion, "test_criterion": test_criterion}
    run = Run(model, optimizer, scheduler, train_batches, test_batches, history, averaged, criteria)
    tidy_options(run)
    with early_endings(history, epochs, model, checkpoint, verbose):
        if checkpoint is not None:
            settings = describe_run(run, recipe=recipe, epochs=epochs, scheduler_step=step_after, average=average)
            resume(run, settings, checkpoint, verbose)
            if len(history) < epochs:
                from_first(lambda: try_folder(checkpoint))
        trained = one_of_several(model)
        while (epoch := len(history) + 1) <= epochs:
            start, learning_rate = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
            _set_epoch(train_batches, epoch - 1)
            with nullcontext() if averaged is None else averaged.training(optimizer):
                train = train_epoch(
                    trained,
                    train_batches,
                    optimizer,
                    criterion=criterion,
                    scheduler=scheduler if step_after == "batch" else None,
                    progress=f"epoch {epoch}/{epochs}" if verbose else None,
                )
            share_buffers(model)
            test = evaluate(model, test_batches, criterion=test_criterion or criterion)
            with interrupt_later():  # an epoch is in the history and on the disk, or in neither
                if step_after != "batch" and scheduler is not None:
                    scheduler.step(*([test.loss] if step_after == "test loss" else []))
                history.append(train, test, learning_rate, time.perf_counter() - start)
                try:
                    if on_epoch is not None:
                        with second_interrupt_raises():
                            on_epoch(history)
                except KeyboardInterrupt:
                    note_interrupt()
                finally:
                    if checkpoint is not None:
                        save_run(run, settings, checkpoint)
                if verbose:
                    print(epoch_line(history, epochs), flush=True)
            raise_interrupt()
    return history


def _check_parameters(model: nn.Module, criterion: Criterion, optimizer: Optimizer) -> None:
    """Raise ValueError if `optimizer` would train another network alone, or `criterion` apart in each process."""
    device_of(model)  # raises TypeError for no network
    own = {*map(id, model.parameters())}
    other = {*map(id, criterion.parameters())} - own if isinstance(criterion, nn.Module) else set()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if rank_and_world()[1] > 1 and trained & other:
        raise ValueError(
            "criterion has weights of its own, which each of several processes would train apart; train in one process"
        )
    if not trained & (own | other):  # a criterion may learn as well
        raise ValueError(
            "optimizer holds no parameter of model, which it would leave as it is; make it from the parameters of "
            "this very network"
        )


def _set_epoch(batches: Any, epoch: int) -> None:
    """Tell `batches`, or the samplers of a DataLoader, which epoch comes: as torch's DistributedSampler wants it."""
    by_batch = getattr(batches, "batch_sampler", None)  # given to a DataLoader, it holds the sampler that counts
    owners = [batches, getattr(batches, "sampler", None), by_batch, getattr(by_batch, "sampler", None)]
    for owner in {id(owner): owner for owner in owners if hasattr(owner, "set_epoch")}.values():
        owner.set_epoch(epoch)


# ------------------------------------------------------------------------------------------- The default recipe


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every setting of the default training, in one place; the README reports results for the defaults.

    Change a setting with `dataclasses.replace(Recipe(), epochs=5)`.

    epochs: passes over the training images.
    batch_size: images per step.
    augment: random changes to the training images, called as augment(images, generator); None for none.
    plain_epochs: the number of last epochs that are not augmented, so that BatchNorm's statistics match the test
        images; at least `epochs` means that no epoch is augmented.
    subsample: the share of the images that each epoch but the first visits; the higher the last cross-entropy of an
        image, the more often it comes (see `Batches`). 1 for all.
    optimizer: called as optimizer(params, lr=lr): a class, or functools.partial(torch.optim.SGD, momentum=0.9).
    lr: the peak learning rate.
    schedule: called as schedule(optimizer, steps, warmup); its step() is called after every batch.
    warmup: the share of all steps in which the learning rate rises.
    average: the weights that are tested and kept are a moving average over about this share of the steps so far (see
        `WeightAverage`); 0 for the last weights, which are better in trainings of fewer than about 200 steps.
    criterion: called as criterion(logits, labels); returns the mean loss of a batch.
    test_criterion: the same for the test loss; None takes `criterion`.

    Raises ValueError for a number out of range, TypeError for a setting that should be callable and is not.
    """

    epochs: int = 15
    batch_size: int = 128
    augment: Augmentation | None = Augment()
    plain_epochs: int = 2
    subsample: float = 1.0
    optimizer: Callable[..., Optimizer] = Muon
    lr: float = 0.05
    schedule: Callable[[Optimizer, int, float], LRScheduler] = linear_schedule
    warmup: float = 0.05
    average: float = 0.1
    criterion: Criterion = F.cross_entropy
    test_criterion: Criterion | None = None

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "plain_epochs": 0}.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        for name, most in {"warmup": 1, "average": 1}.items():
            object.__setattr__(self, name, real_number(name, getattr(self, name), most))
        for name, limit in {"lr": math.inf, "subsample": 1}.items():
            object.__setattr__(self, name, positive_number(name, getattr(self, name), limit))
        for name in ("optimizer", "schedule", "criterion", "augment", "test_criterion"):
            value = getattr(self, name)
            if value is not None or name not in ("augment", "test_criterion"):
                refuse_uncallable(name, value, or_class=name in ("optimizer", "schedule"))

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lines = [f"    {name}={getattr(value, '__name__', repr(value))},\n" for name, value in values.items()]
        return f"Recipe(\n{''.join(lines)})"

    def arguments(self, model: nn.Module, steps_per_epoch: float) -> dict[str, Any]:
        """Return the arguments of `fit` for `model`, to train on batches of your own, such as a DataLoader.

        steps_per_epoch: the number of batches in an epoch, such as len(loader). Where epochs differ, their mean:
            batches.steps(epochs) / epochs for `Batches` with `subsample`.

        Example: fit(net, loader, test_loader, **Recipe().arguments(net, len(loader)))
        """
        optimizer = self.optimizer(model.parameters(), lr=self.lr)
        return {
            "optimizer": optimizer,
            "scheduler": self.schedule(optimizer, round(self.epochs * steps_per_epoch), self.warmup),
            "epochs": self.epochs,
            "criterion": self.criterion,
            "test_criterion": self.test_criterion,
            "average": self.average,
            "recipe": self,
        }


def train_network(
    model: nn.Module,
    train: ImageData,
    test: ImageData,
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    verbose: bool = True,
) -> History:
    """Train `model` on `train` as `recipe` says, on the device of `model`, and test it on `test` after each epoch.

    `seed` determines the order of the images, their augmentation and every other random number; call
    `seed_everything` before you create the model to determine its initial weights as well. A last batch with fewer
    than two images per process is left out, because BatchNorm cannot always train on one image. The other arguments
    and the errors are those of `fit`.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is {recipe!r}; expected a Recipe, such as Recipe(epochs=3)")
    device = device_of(model)
    seed_everything(seed)
    rest = len(train) % recipe.batch_size
    train_batches = Batches(
        train,
        recipe.batch_size,
        augment=recipe.augment,
        augment_epochs=max(0, recipe.epochs - recipe.plain_epochs),
        shuffle=True,
        subsample=recipe.subsample,
        drop_last=rest < 2 * rank_and_world()[1] and len(train) > recipe.batch_size,
        device=device,
        seed=seed,
    )
    return fit(
        model,
        train_batches,
        Batches(test, 1000, device=device),
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        verbose=verbose,
        **recipe.arguments(model, train_batches.steps(recipe.epochs) / recipe.epochs),
    )


# -------------------------------------------------------------------------------------------------- Using a network


def predict(model: nn.Module, images: Tensor, *, data: ImageData | None = None) -> Tensor:
    """Return class probabilities, on the CPU: images (N, C, H, W) -> (N, K), or one image (C, H, W) -> (K,).

    With `data`, any part of the dataset that `model` was trained on, images are normalised with its mean and std,
    exactly as `Batches` does: uint8 from 0 to 255, or floats on the scale of `data` (0 to 1 where `data` is uint8).
    Without `data`, images must be floats that are normalised already. Raises ValueError for other images and for a
    model with fewer than two logits, TypeError if images are no tensor.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images is {type(images).__name__}; expected a tensor, such as test.images, torch.from_numpy(array), or "
            "prepare_digit(picture)"
        )
    if images.ndim not in (3, 4) or (images.dtype != torch.uint8 and not images.is_floating_point()):
        found = f"images are {images.dtype} {tuple(images.shape)}"
        raise ValueError(f"{found}; expected uint8 or floats of shape (N, C, H, W) or (C, H, W)")
    if images.dtype == torch.uint8 and data is None:
        raise ValueError("images are uint8 and data is None; give data=train, whose statistics normalise them")
    if data is not None:
        if images.shape[-3] != len(data.mean):
            found = f"images have the shape {tuple(images.shape)}, {images.shape[-3]} channels"
            raise ValueError(f"{found}; expected {len(data.mean)} as in data; grey images (N, H, W) need unsqueeze(1)")
        refuse_other_scale("images", images, data)
    device, probabilities = device_of(model), []
    statistics = None if data is None else statistics_on(device, data)
    with eval_mode(model), torch.no_grad():
        for part in (images[None] if images.ndim == 3 else images).split(1000):
            part = to_floats(part.to(device, non_blocking=True))
            # A copy: the first layer may work in place, and the images are somebody else's.
            logits = model(part.clone() if statistics is None else normalise(part, *statistics))
            if logits.ndim < 2 or logits.shape[1] < 2:
                raise ValueError(
                    f"model returned {tuple(logits.shape)}; expected (N, K), a logit for each of K classes"
                )
            probabilities.append(logits.softmax(1))
    together = torch.cat(probabilities).cpu()
    return together[0] if images.ndim == 3 else together
