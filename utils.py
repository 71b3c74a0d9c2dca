"""Train a small network on images and see what it learnt: 15 epochs of MNIST, 99.6 %, in a few minutes on a CPU.

    from model import Net
    from utils import Recipe, load_mnist, train_network

    train, test = load_mnist()
    history = train_network(Net(), train, test, Recipe(epochs=2))

Read it from top to bottom as the story of one training run: augment images, batch them, train and evaluate for an
epoch, repeat (`fit`), all of it from one `Recipe` (`train_network`), predict. What stands behind lives in `kit/`:
`data.py` (any data set as tensors), `idx.py` (MNIST and IDX files), `optim.py` (Muon and the schedule),
`checkpoints.py`, `runtime.py` (devices, seeds, processes), `plots.py`, `digits.py` (your own handwriting) and
`export.py` (ONNX). Everything public is imported here, so `utils` is all that you need beside `model`.

Names used throughout: images (N, C, H, W), labels (N,), logits (N, K). Accuracies are percentages.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from kit.checkpoints import (
    Run,
    describe_run,
    load_checkpoint,
    resume,
    save_checkpoint,
    save_run,
    use_python_numbers,
)
from kit.data import ImageData, as_tensors, split
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
    mean_loss,
    refuse_non_finite,
)
from kit.idx import load_idx, load_mnist, read_idx
from kit.optim import Muon, linear_schedule
from kit.plots import (
    plot_augmentation,
    plot_class_accuracy,
    plot_confusion,
    plot_feature_maps,
    plot_filters,
    plot_history,
    plot_images,
    plot_mistakes,
    plot_parameters,
)
from kit.runtime import (
    device_of,
    eval_mode,
    get_device,
    interrupt_later,
    keep_freed_memory,
    note_interrupt,
    one_of_several,
    raise_interrupt,
    rank_and_world,
    seed_everything,
    share_buffers,
    somebody_watches,
    start_distributed,
    sum_over_processes,
    train_mode,
)
from kit.settings import whole_number

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

Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # floats (N, C, H, W) from 0 to 1, changed


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of a batch of images, one draw PER IMAGE, on the batch's own device.

    rotation: up to so many degrees either way. translation: up to this fraction of the side, each way.
    scale: up to this fraction smaller or larger. shear: up to so many degrees either way. elastic: standard
    deviation of a smooth random displacement, in pixels (Simard et al., 2003, on a 5 x 5 grid of draws).
    erasing: probability that a rectangle of 2 to 20 % of the area is blanked (Zhong et al., 2017).
    What moves in from outside is zero, the background of images that are bright on black.
    """

    rotation: float = 15.0
    translation: float = 0.1
    scale: float = 0.15
    shear: float = 10.0
    elastic: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        limits = {"rotation": 180, "translation": 1, "scale": 0.9, "shear": 80, "elastic": 10, "erasing": 1}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"{name} is {value!r}; expected a number from 0 to {limit}")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Changed copies of `images` (N, C, H, W), floats from 0 to 1; `generator` must live on their device."""
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected floats (N, C, H, W)")
        draws = torch.rand(len(images), 9, 1, 1, generator=generator, device=images.device)
        images = F.grid_sample(images, self._grid(images, draws[:, :5], generator), align_corners=False)
        return self._erased(images, draws[:, 5:]) if self.erasing else images

    def _grid(self, images: Tensor, draws: Tensor, generator: torch.Generator | None) -> Tensor:
        """Where each pixel of the result comes from: (N, H, W, 2), x and y from -1 to 1."""
        height, width = images.shape[-2:]
        y = torch.arange(height, device=images.device).sub((height - 1) / 2)[:, None]
        x = torch.arange(width, device=images.device).sub((width - 1) / 2)
        limits = [
            math.radians(self.rotation),
            math.radians(self.shear),
            self.scale,
            self.translation,
            self.translation,
        ]
        spread = draws.new_tensor(limits)[:, None, None]
        angle, shear, scale, right, down = ((2 * draws - 1) * spread).unbind(1)
        cos, sin, zoom, slope = angle.cos(), angle.sin(), 1 / (1 + scale), shear.tan()
        from_x = zoom * (cos * x + (slope * cos - sin) * y) + right * width
        from_y = zoom * (sin * x + (slope * sin + cos) * y) + down * height
        if self.elastic:
            coarse = torch.randn(len(images), 2, 5, 5, generator=generator, device=images.device) * self.elastic
            smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
            from_x, from_y = from_x + smooth[:, 0], from_y + smooth[:, 1]
        return torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=-1)

    def _erased(self, images: Tensor, draws: Tensor) -> Tensor:
        """Blank one rectangle in each image, with probability `erasing`."""
        height, width = images.shape[-2:]
        chance, size, place_x, place_y = draws.unbind(1)
        area, shape = (
            0.02 + 0.18 * size,
            3.0 ** (2 * chance / self.erasing - 1),
        )  # height / width from 1/3 to 3
        tall, wide = (area * shape).sqrt() * height, (area / shape).sqrt() * width
        y = torch.arange(height, device=images.device)[:, None] - place_y * (height - tall)
        x = torch.arange(width, device=images.device) - place_x * (width - wide)
        blank = (y >= 0) & (y < tall) & (x >= 0) & (x < wide) & (chance < self.erasing)
        return images.masked_fill(blank[:, None], 0.0)


class Batches:
    """Batches of (images, labels) from `data`, which lives on `device` whole: any number of passes over it.

    Images come as floats (N, C, H, W), augmented if `augment` is given, then normalised with the statistics
    that `data` carries; labels as int64 (N,). `shuffle` draws a new order for every pass, from `generator`, a
    stream of its own that `seed` starts. Without either the batches are in order and the same in every pass.
    With `augment_epochs` only so many epochs are augmented, and the later ones show the images as they are; `fit`
    says which epoch it is, other loops call `set_epoch`. Under `start_distributed` each process gets its share of
    every batch.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int = 128,
        *,
        augment: Augmentation | None = None,
        augment_epochs: int | None = None,
        shuffle: bool = False,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(data, ImageData):
            raise TypeError(f"data is {type(data).__name__}; expected ImageData: as_tensors(dataset) makes it")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        if augment_epochs is not None and (not isinstance(augment_epochs, int) or augment_epochs < 0):
            raise ValueError(f"augment_epochs is {augment_epochs!r}; expected a whole number of at least 0, or None")
        self.data, self.batch_size, self.augment, self.shuffle = data, batch_size, augment, shuffle
        self.augment_epochs, self.epoch = augment_epochs, 0
        self.device = get_device() if device is None else torch.device(device)
        if seed is None:  # drawn only where it is used: batches in order leave the global generator alone
            seed = int(torch.randint(2**31, ())) if shuffle or augment is not None else 0
        self.seed = seed
        self.generator = torch.Generator().manual_seed(self.seed)
        try:
            self._images, self._labels = data.images.to(self.device), data.labels.to(self.device)
        except torch.OutOfMemoryError as error:
            error.args = (f"data does not fit on {self.device}: give device='cpu', and only batches go there\n{error}",)
            raise
        self._scale = 1 / 255 if data.images.dtype == torch.uint8 else 1.0
        self._mean = torch.tensor(data.mean, device=self.device).view(1, -1, 1, 1)
        self._std = torch.tensor(data.std, device=self.device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return math.ceil(len(self.data) / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next pass is: it tells whether that pass is augmented."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world = rank_and_world()
        order, draws = self._draw_order(rank)
        augment = self.augment if self.augment_epochs is None or self.epoch < self.augment_epochs else None
        for chosen in order.to(self.device).split(self.batch_size):
            mine = chosen[rank::world]
            if len(chosen) < world:  # too few for every process: all of them leave this last batch out
                return
            images = self._images[mine].float().mul_(self._scale)
            if augment is not None:
                images = augment(images, draws)
            yield images.sub_(self._mean).div_(self._std), self._labels[mine]

    def _draw_order(self, rank: int) -> tuple[Tensor, torch.Generator]:
        """This pass's order, the same in every process, and a generator for augmentation, each process its own."""
        draws = torch.Generator(self.device)
        if not self.shuffle and self.augment is None:
            return torch.arange(len(self.data)), draws
        order = torch.randperm(len(self.data), generator=self.generator)
        draws.manual_seed(int(torch.randint(2**62, (), generator=self.generator)) + rank)
        return order if self.shuffle else torch.arange(len(self.data)), draws


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

    `model` returns logits (N, K) for inputs (N, ...); labels are (N,). Other shapes are trained on as well if
    `criterion` accepts them; the accuracy is then NaN. A module that is in eval mode while `model` is in train mode
    stays so: frozen BatchNorm keeps its statistics. `scheduler` is stepped after every batch. `progress` names a
    progress bar.
    Raises ValueError for an empty batch or wrong shapes, NonFiniteLoss if the loss is NaN or infinite: before the
    step is taken on the CPU, within 50 batches on other devices or with several processes.
    """
    train_mode(model)
    device, tally, several = device_of(model), Tally(), rank_and_world()[1] > 1
    # Reading a number makes a GPU, or the other processes, wait, so there it is done now and then only.
    read_every = 1 if device.type == "cpu" and not several else 50
    hidden = progress is None or not somebody_watches()
    # The bar is not given the batches themselves: it would call iter() on them once too often, which in a
    # DataLoader starts the workers twice and draws an order that nobody sees.
    with tqdm(total=_length(batches), desc=progress, unit="batch", leave=False, disable=hidden, file=sys.stdout) as bar:
        for number, (inputs, labels) in enumerate(batches, start=1):
            if not len(labels):
                raise ValueError(f"batch {number} is empty; leave out batches without images")
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = model(inputs)
            loss = mean_loss(criterion, logits, labels)
            if number % read_every == 0:
                refuse_non_finite(loss, number, inputs, optimizer)
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
    refuse_non_finite(torch.tensor(metrics.loss), number, inputs, optimizer)
    return metrics


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
    device, tally = device_of(model), Tally()
    # Not inference_mode: what a model keeps from this pass, a table of positions for instance, must still be of use
    # in training.
    with eval_mode(model), torch.no_grad():
        for inputs, labels in batches:
            if not len(labels):
                continue
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
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
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    verbose: bool = True,
) -> History:
    """Train `model` for `epochs` passes over `train_batches`, testing after each; return what was measured.

    Batches are any re-iterable of (inputs, labels), a DataLoader included; where they, or their sampler, have a
    `set_epoch`, it is called before each epoch with its number, counted from 0. `scheduler` is stepped after every
    "batch" or "epoch", as `scheduler_step` says; a ReduceLROnPlateau after every epoch, with the test loss.
    `on_epoch(history)` is called after each epoch. `verbose` shows a bar and prints a line per epoch.

    With `checkpoint`, a file, every finished epoch is saved, after `on_epoch`, and the same call goes on after the
    last one saved, to the bit as if it had never stopped (on the CPU). A run whose data or settings differ is
    refused, with a list of the differences.

    Ctrl-C, or KeyboardInterrupt from `on_epoch`, ends the training. In a notebook `fit` then returns the history of
    the finished epochs, and another `fit` in the same cell raises KeyboardInterrupt, so that a loop over seeds ends
    as well. In a script `fit` raises KeyboardInterrupt, with that history as its attribute `history`.

    Under `start_distributed` the gradients are averaged over all processes, all of them end together, and the first
    alone prints and saves. On Linux this process keeps the memory that tensors free from here on, which almost
    halves the time of a step; set MALLOC_TRIM_THRESHOLD_ in the environment to switch this off.

    Raises ValueError for bad arguments or a checkpoint of another run, NonFiniteLoss where training diverges.
    """
    epochs = whole_number("epochs", epochs)
    step_after = _check_steps(optimizer, scheduler, scheduler_step)
    keep_freed_memory()
    verbose = verbose and rank_and_world()[0] == 0
    history = History()
    run = Run(model, optimizer, scheduler, train_batches, test_batches, history)
    use_python_numbers(run)
    with early_endings(history, epochs, model, checkpoint, verbose):
        if checkpoint is not None:
            criteria = {"criterion": criterion, "test_criterion": test_criterion}
            settings = describe_run(run, epochs=epochs, scheduler_step=step_after, **criteria)
            resume(run, settings, checkpoint, verbose)
        trained = one_of_several(model)
        while (epoch := len(history) + 1) <= epochs:
            start, learning_rate = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
            _set_epoch(train_batches, epoch - 1)
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


def _check_steps(optimizer: Optimizer, scheduler: Any, scheduler_step: str) -> str:
    """What the scheduler is stepped after: "batch", "epoch" or "test loss"."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer is {type(optimizer).__name__}, whose step needs a closure that fit does not have; "
            "take another one, or write the loop yourself"
        )
    if scheduler_step not in ("batch", "epoch"):
        raise ValueError(f"scheduler_step is {scheduler_step!r}; expected 'batch' or 'epoch'")
    return "test loss" if isinstance(scheduler, ReduceLROnPlateau) else scheduler_step


def _set_epoch(batches: Any, epoch: int) -> None:
    """Tell `batches`, or the sampler of a DataLoader, which epoch comes: as torch's DistributedSampler wants it."""
    for owner in (batches, getattr(batches, "sampler", None)):
        if owner is not None and hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)


# ------------------------------------------------------------------------------------------- The default recipe


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every setting of the default training, in one place; the defaults are those that the README reports.

    Vary it with `dataclasses.replace(Recipe(), epochs=5)`.

    epochs: passes over the training images.
    batch_size: images per step.
    augment: random changes of the training images, called as augment(images, generator); None for none.
    plain_epochs: the last epochs, which show the images unchanged, so that BatchNorm's statistics settle on what
        the test shows.
    optimizer: called as optimizer(params, lr=lr): a class, or functools.partial(torch.optim.SGD, momentum=0.9).
    lr: the peak learning rate.
    schedule: called as schedule(optimizer, steps, warmup), and stepped after every batch.
    warmup: the share of all steps in which the learning rate rises.
    criterion: called as criterion(logits, labels): the mean loss of a batch.
    test_criterion: the same, for the test loss; None takes `criterion`.
    """

    epochs: int = 15
    batch_size: int = 128
    augment: Augmentation | None = Augment()
    plain_epochs: int = 1
    optimizer: Callable[..., Optimizer] = Muon
    lr: float = 0.05
    schedule: Callable[[Optimizer, int, float], LRScheduler] = linear_schedule
    warmup: float = 0.2
    criterion: Criterion = F.cross_entropy
    test_criterion: Criterion | None = None

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "plain_epochs": 0}.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr!r}; expected a number above 0")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is {self.warmup!r}; expected a share of the steps, from 0 to 1")

    def arguments(self, model: nn.Module, steps_per_epoch: int) -> dict[str, Any]:
        """Return the arguments of `fit` for `model`, for batches of your own: a DataLoader, for instance.

        Example: fit(net, loader, test_loader, **Recipe().arguments(net, len(loader)))
        """
        optimizer = self.optimizer(model.parameters(), lr=self.lr)
        return {
            "optimizer": optimizer,
            "scheduler": self.schedule(optimizer, self.epochs * steps_per_epoch, self.warmup),
            "epochs": self.epochs,
            "criterion": self.criterion,
            "test_criterion": self.test_criterion,
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
    """Train `model` on `train` by `recipe`, on the device where it is, testing on `test` after each epoch.

    `seed` decides the order of the images, their augmentation and every other draw; call `seed_everything` before
    you make the model, and its first weights are decided as well. The other arguments are those of `fit`.
    """
    seed_everything(seed)
    device = device_of(model)
    train_batches = Batches(
        train,
        recipe.batch_size,
        augment=recipe.augment,
        augment_epochs=max(0, recipe.epochs - recipe.plain_epochs),
        shuffle=True,
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
        **recipe.arguments(model, len(train_batches)),
    )


# -------------------------------------------------------------------------------------------------- Using a network


def predict(model: nn.Module, images: Tensor, *, data: ImageData | None = None) -> Tensor:
    """Class probabilities of `images` (N, C, H, W) -> (N, K), or of one image (C, H, W) -> (K,).

    uint8 images are scaled and normalised with the statistics that `data`, any part of the data set trained on,
    carries; float images are taken as `Batches` yields them, normalised already.
    """
    if images.ndim not in (3, 4):
        raise ValueError(f"images have the shape {tuple(images.shape)}; expected (N, C, H, W) or (C, H, W)")
    if images.dtype == torch.uint8:
        if data is None:
            raise ValueError("images are uint8 and data is None; give data=train, whose statistics normalise them")
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (data.mean, data.std))
        images = (images.float() / 255 - mean) / std
    single, device = images.ndim == 3, device_of(model)
    with eval_mode(model), torch.inference_mode():
        parts = (images[None] if single else images).split(1000)
        probabilities = torch.cat([model(part.to(device)).float().softmax(1).cpu() for part in parts])
    return probabilities[0] if single else probabilities


class ShiftedViews(nn.Module):
    """`model` with its logits averaged over five views of each image: as it is, and one pixel to each side.

    This is test-time augmentation (Krizhevsky et al., 2012): nothing is trained and no parameter added, but each
    image costs five passes. It suits networks that step over pixels, whose logits a shift of one pixel moves:
    evaluate(ShiftedViews(net), test_batches).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        views = [padded[..., y : y + height, x : x + width] for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
        return torch.stack([self.model(view) for view in views]).mean(0)
