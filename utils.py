"""How it is trained, in the order in which data flows: Setup, Data and augmentation, Training, Checkpoints, Plotting.

Names used all through: images (N, C, H, W), labels (N,), logits (N, K), batches, epochs, history. Accuracies are
percentages. Nothing here knows a network, a data set, an optimizer or a number of classes by name.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import difflib
import functools
import hashlib
import io
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from data import ImageData, as_tensors, load_mnist, read_idx, somebody_watches, split, write_atomically
from digits import prepare_digit
from plots import (
    plot_augmentation,
    plot_class_accuracy,
    plot_confusion,
    plot_feature_maps,
    plot_field,
    plot_filters,
    plot_history,
    plot_images,
    plot_mistakes,
    plot_parameters,
)

__all__ = [
    "Augment",
    "Batches",
    "History",
    "ImageData",
    "Metrics",
    "Muon",
    "NonFiniteLoss",
    "ShiftedViews",
    "WeightAverage",
    "as_tensors",
    "evaluate",
    "export_onnx",
    "fit",
    "get_device",
    "linear_schedule",
    "load_checkpoint",
    "load_mnist",
    "plot_augmentation",
    "plot_class_accuracy",
    "plot_confusion",
    "plot_feature_maps",
    "plot_field",
    "plot_filters",
    "plot_history",
    "plot_images",
    "plot_mistakes",
    "plot_parameters",
    "predict",
    "prepare_digit",
    "read_idx",
    "recipe",
    "save_checkpoint",
    "seed_everything",
    "split",
    "start_distributed",
    "train_epoch",
]

# ------------------------------------------------------------------------------------------------------- Setup


def seed_everything(seed: int) -> None:
    """Seed the generators of torch (every device), Python and NumPy with `seed`, a whole number below 2**32."""
    import numpy

    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to 2**32 - 1")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def get_device(prefer: str | None = None) -> torch.device:
    """The device to train on: `prefer` if given ("cpu", "cuda", "cuda:1", "mps"), else cuda, then mps, then cpu.

    Under torchrun each process gets the GPU of its local rank. Raises ValueError where `prefer` is not to be had.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = prefer or next(kind for kind, there in usable.items() if there)
    kind = name.partition(":")[0]
    if not usable.get(kind, False):
        there = ", ".join(kind for kind, yes in usable.items() if yes)
        raise ValueError(f"prefer is {prefer!r}, which this machine does not offer; it has: {there}")
    return torch.device(f"cuda:{local_rank}" if name == "cuda" else name)


def start_distributed() -> None:
    """Join the other processes that torchrun started (nccl with CUDA, else gloo); without torchrun do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _rank_and_world() -> tuple[int, int]:
    """This process's number and how many train together: (0, 1) unless `start_distributed` joined some."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@functools.cache
def _keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, where its C library is glibc.

    By default glibc hands every large tensor's memory back to the system, which zeroes it page by page before the
    next tensor gets it: with a small network that is almost half of a training step on the CPU. Settings made by
    MALLOC_... in the environment stay.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    for option, megabytes in ((m_mmap_threshold, 32), (m_trim_threshold, 1024), (m_top_pad, 64)):
        mallopt(option, megabytes << 20)


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


# --------------------------------------------------------------------------------------- Data and augmentation


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
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
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
        rank, world = _rank_and_world()
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

Criterion = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> the mean loss of the batch


class Metrics(NamedTuple):
    """The mean loss per image, and the accuracy in percent."""

    loss: float
    accuracy: float


@dataclasses.dataclass
class History:
    """What `fit` measured: lists of plain numbers, one entry per finished epoch; `len` counts the epochs.

    Accuracies are percentages; learning_rate is that of the epoch's first batch; seconds cover training and test.
    """

    train_loss: list[float] = dataclasses.field(default_factory=list)
    train_accuracy: list[float] = dataclasses.field(default_factory=list)
    test_loss: list[float] = dataclasses.field(default_factory=list)
    test_accuracy: list[float] = dataclasses.field(default_factory=list)
    learning_rate: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seconds)

    def append(self, train: Metrics, test: Metrics, learning_rate: float, seconds: float) -> None:
        """Add the measurements of one epoch."""
        entry = (*train, *test, learning_rate, seconds)
        for field, value in zip(dataclasses.fields(self), entry, strict=True):
            getattr(self, field.name).append(value)


class NonFiniteLoss(ValueError):
    """The loss became NaN or infinite; `history`, if `fit` raised it, holds the epochs finished before."""

    history: History | None = None


class _Tally:
    """Sums over an epoch, kept on the device until somebody reads them."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.count = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.losses.append(loss.detach() * len(labels))
        self.hits.append((logits.argmax(1) == labels).sum())
        self.count += len(labels)

    def sums(self) -> Tensor:
        """Loss, hits and images so far, in this process: (3,) on the CPU."""
        if not self.count:
            raise ValueError("batches held no images; expected at least one batch")
        loss, hits = torch.stack([torch.stack(self.losses).sum(), torch.stack(self.hits).sum()]).tolist()
        return torch.tensor([loss, hits, self.count], dtype=torch.float64)

    def metrics(self) -> Metrics:
        """Over all processes."""
        sums = self.sums()
        if _rank_and_world()[1] > 1:
            sums = sums.to(self.losses[0].device)
            torch.distributed.all_reduce(sums)
        return _metrics(sums)


def _metrics(sums: Tensor) -> Metrics:
    loss, hits, count = sums.tolist()
    return Metrics(loss / count, 100 * hits / count)


class WeightAverage:
    """A moving average of the weights and buffers of `model`, taken after every step (Polyak and Juditsky, 1992).

    It forgets by the factor `decay` a step; until it has seen 1 / (1 - decay) steps, all count the same. `model`
    of the average has the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"average is {decay!r}; expected a decay between 0 and 1, such as 0.999, or None")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights that `model` has now."""
        self.steps += 1
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        means, values = zip(*((mean, value) for mean, value in pairs if mean.is_floating_point()), strict=True)
        torch._foreach_lerp_(means, values, max(1 - self.decay, 1 / self.steps))
        for mean, value in pairs:
            if not mean.is_floating_point():  # BatchNorm's count of batches
                mean.copy_(value)


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    *,
    criterion: Criterion = F.cross_entropy,
    scheduler: LRScheduler | None = None,
    average: WeightAverage | None = None,
    precision: torch.dtype = torch.float32,
    progress: str | None = None,
) -> Metrics:
    """Train `model` for one pass over `batches`; the metrics are those seen on the way, augmentation included.

    `model` returns logits (N, K) for inputs (N, ...); labels are (N,). After every batch `scheduler` is stepped
    and `average` updated. `precision` is the type of autocast: torch.bfloat16 is faster where the hardware has
    it. `progress` names a progress bar. Raises NonFiniteLoss, before the step is taken on the CPU, within 50
    batches elsewhere.
    """
    model.train()
    _keep_freed_memory()
    device, tally = _device_of(model), _Tally()
    # Reading a number makes a GPU wait for all work before it, so there it is done now and then only.
    read_every = 1 if device.type == "cpu" else 50
    hidden = progress is None or not somebody_watches()
    total = len(batches) if isinstance(batches, Sized) else None
    # The bar is not given the batches themselves: it would call iter() on them once too often, which in a
    # DataLoader starts the workers twice and draws an order that nobody sees.
    with tqdm(total=total, desc=progress, unit="batch", leave=False, disable=hidden, file=sys.stdout) as bar:
        for number, (inputs, labels) in enumerate(batches, start=1):
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = model(inputs)
            loss = criterion(logits.float(), labels)
            if number % read_every == 0 and not math.isfinite(value := loss.item()):
                raise NonFiniteLoss(_why_not_finite(value, number, inputs, optimizer))
            optimizer.zero_grad()
            (loss * _share(len(labels), device)).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if average is not None:
                average.update(getattr(model, "module", model))  # DistributedDataParallel wraps the model
            tally.add(loss, logits, labels)
            bar.update()
            if number % 50 == 0 and not bar.disable:
                so_far = _metrics(tally.sums())
                bar.set_postfix_str(f"loss {so_far.loss:.4f}, accuracy {so_far.accuracy:.2f} %")
    metrics = tally.metrics()
    if not math.isfinite(metrics.loss):
        raise NonFiniteLoss(_why_not_finite(metrics.loss, number, inputs, optimizer))
    return metrics


def _share(count: int, device: torch.device) -> float:
    """The weight that makes the processes' averaged gradient that of the whole batch, whose parts may differ."""
    world = _rank_and_world()[1]
    if world == 1:
        return 1.0
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return count * world / total.item()


def _why_not_finite(loss: float, batch: int, inputs: Tensor, optimizer: Optimizer) -> str:
    if not inputs.isfinite().all():
        return f"the inputs of batch {batch} hold NaN or infinite numbers: mend the data"
    rates = ", ".join(f"{group['lr']:.3g}" for group in optimizer.param_groups)
    return f"the loss is {loss} at batch {batch}, learning rate {rates}: try a tenth of that learning rate"


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, criterion: Criterion = F.cross_entropy
) -> Metrics:
    """Loss and accuracy of `model` in eval mode and full precision; changes nothing, draws nothing."""
    _keep_freed_memory()
    device, tally = _device_of(model), _Tally()
    with _eval_mode(model), torch.inference_mode():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = model(inputs).float()
            tally.add(criterion(logits, labels), logits, labels)
    return tally.metrics()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards each module is back in its own mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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


class Muon(Optimizer):
    """Momentum whose every step is orthogonalised (Muon: Jordan et al., 2024), so that no direction lags behind.

    A weight of a convolution or linear layer is taken as a matrix (out, rest), a vector as a matrix of one row.
    A step of learning rate 1 has about the root mean square 0.2, whatever the shape (Liu et al., 2025), as Adam's
    steps have; `weight_decay` is decoupled and acts on matrices alone.
    """

    def __init__(
        self, parameters: Any, learning_rate: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        if not learning_rate >= 0 or not 0 <= momentum < 1 or not weight_decay >= 0:
            raise ValueError(
                f"learning_rate, momentum and weight_decay are {learning_rate}, {momentum} and {weight_decay}; "
                "expected numbers of at least 0, momentum below 1"
            )
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step from the gradients that are there."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look ahead
            matrices = [weight for weight in weights if weight.ndim > 1]
            if group["weight_decay"] and matrices:
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, _orthogonalised(list(directions)), alpha=-group["lr"])


def _orthogonalised(tensors: list[Tensor]) -> list[Tensor]:
    """The same singular vectors, but singular values near 1, times a scale that makes the root mean square 0.2.

    Newton-Schulz in five steps. Tensors of one shape go through it together: they are small, and many.
    """
    results = list(tensors)
    for shape in {tensor.shape for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.shape == shape]
        rows = shape[0] if len(shape) > 1 else 1
        matrices = torch.stack([tensors[place] for place in places]).reshape(len(places), rows, -1)
        matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
        scale = 0.2 * math.sqrt(max(matrices.shape[1:]))
        tall = matrices.shape[1] > matrices.shape[2]
        matrices = matrices.mT if tall else matrices
        for _ in range(5 if rows > 1 else 0):
            gram = matrices @ matrices.mT
            matrices = 3.4445 * matrices + (2.0315 * gram @ gram - 4.7750 * gram) @ matrices
        matrices = (matrices.mT if tall else matrices) * scale
        for place, matrix in zip(places, matrices, strict=True):
            results[place] = matrix.reshape(shape)
    return results


def linear_schedule(optimizer: Optimizer, steps: int, warmup: float = 0.2) -> LRScheduler:
    """Learning rates that rise in a line over the share `warmup` of all `steps`, then fall in a line to zero.

    To be stepped after every batch.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected a whole number of at least 1: epochs times batches per epoch")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is {warmup!r}; expected a share of the steps, from 0 to 1")
    rising = max(1, round(warmup * steps))
    falling = max(1, steps - rising)
    return LambdaLR(optimizer, lambda step: min((step + 1) / rising, max(0.0, (steps - step) / falling)))


def recipe(model: nn.Module, *, epochs: int, steps_per_epoch: int, learning_rate: float = 0.05) -> dict[str, Any]:
    """The kit's default recipe, as arguments for `fit`: Muon, and `linear_schedule` stepped after every batch.

    To be used so: fit(net, batches, test_batches, epochs=15, **recipe(net, epochs=15, steps_per_epoch=len(batches)))
    """
    optimizer = Muon(model.parameters(), learning_rate)
    scheduler = linear_schedule(optimizer, epochs * steps_per_epoch)
    return {"optimizer": optimizer, "scheduler": scheduler}


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
    average: float | None = None,
    precision: torch.dtype = torch.float32,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    verbose: bool = True,
) -> History:
    """Train `model` for `epochs` passes over `train_batches`, testing after each; return what was measured.

    Batches are any re-iterable of (inputs, labels), a DataLoader included; where they, or their sampler, have a
    `set_epoch`, it is called before each epoch with its number, counted from 0. `scheduler` is stepped after every
    "batch" or "epoch", as `scheduler_step` says. `average`, a decay such as 0.999, keeps a moving average of the
    weights (see WeightAverage): it is what is tested after each epoch, and what `model` holds in the end.
    With `checkpoint`, a file, every finished epoch is saved and the same call goes on after the last one saved,
    to the bit as if it had never stopped (on the CPU). Ctrl-C ends the training normally, with the history so
    far. `on_epoch(history)` is called after each epoch; `verbose` shows a bar and prints a line per epoch. Under
    `start_distributed` the gradients are averaged over all processes, and the first alone prints and saves.

    Raises ValueError for bad arguments or a checkpoint of another run, NonFiniteLoss where training diverges.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs is {epochs!r}; expected a whole number of at least 1")
    if scheduler_step not in ("batch", "epoch"):
        raise ValueError(f"scheduler_step is {scheduler_step!r}; expected 'batch' or 'epoch'")
    rank, world = _rank_and_world()
    verbose = verbose and rank == 0
    history = History()
    averaged = WeightAverage(model, average) if average is not None else None
    tested = averaged.model if averaged is not None else model
    run = _Run(model, averaged, optimizer, scheduler, train_batches, history)
    settings = _describe_run(run, epochs, scheduler_step, criterion, precision)
    trained = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    try:
        if checkpoint is not None and _any_rank(Path(checkpoint).exists()):
            _resume(run, settings, checkpoint, verbose)
        while (epoch := len(history) + 1) <= epochs:
            start, learning_rate = time.perf_counter(), optimizer.param_groups[0]["lr"]
            _set_epoch(train_batches, epoch - 1)
            train = train_epoch(
                trained,
                train_batches,
                optimizer,
                criterion=criterion,
                scheduler=scheduler if scheduler_step == "batch" else None,
                average=averaged,
                precision=precision,
                progress=f"epoch {epoch}/{epochs}" if verbose else None,
            )
            test = evaluate(tested, test_batches, criterion=criterion)
            with _interrupt_later():  # an epoch is in the history and on the disk, or in neither
                if scheduler is not None and scheduler_step == "epoch":
                    scheduler.step()
                history.append(train, test, learning_rate, time.perf_counter() - start)
                if checkpoint is not None and rank == 0:
                    save_checkpoint(checkpoint, _snapshot(run, settings))
            if verbose:
                print(_epoch_line(history, epochs), flush=True)
            if on_epoch is not None:
                on_epoch(history)
        if averaged is not None:
            model.load_state_dict(averaged.model.state_dict())
    except KeyboardInterrupt:
        if verbose:
            kept = "the same call goes on from here" if checkpoint else "give `checkpoint` a file to go on another time"
            print(f"Interrupted after {len(history)} of {epochs} epochs: {kept}.", flush=True)
    except torch.OutOfMemoryError as error:
        hint = f"{_device_of(model)} is full: take smaller batches, end what else uses it, or get_device('cpu')"
        error.args = (f"epoch {len(history) + 1}: {hint}\n{error}",)
        raise
    except NonFiniteLoss as error:
        error.history = history
        error.args = (f"epoch {len(history) + 1}: {error}",)
        raise
    return history


def _set_epoch(batches: Any, epoch: int) -> None:
    """Tell `batches`, or the sampler of a DataLoader, which epoch comes: as torch's DistributedSampler wants it."""
    for owner in (batches, getattr(batches, "sampler", None)):
        if owner is not None and hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)


def _epoch_line(history: History, epochs: int) -> str:
    return (
        f"epoch {len(history):>{len(str(epochs))}}/{epochs}"
        f"   train loss {history.train_loss[-1]:.4f}, accuracy {history.train_accuracy[-1]:.2f} %"
        f"   test loss {history.test_loss[-1]:.4f}, accuracy {history.test_accuracy[-1]:.2f} %"
        f"   {history.seconds[-1]:.1f} s"
    )


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block (Python delivers it to the main thread alone)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


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
    single, device = images.ndim == 3, _device_of(model)
    with _eval_mode(model), torch.inference_mode():
        parts = (images[None] if single else images).split(1000)
        probabilities = torch.cat([model(part.to(device)).float().softmax(1).cpu() for part in parts])
    return probabilities[0] if single else probabilities


# ------------------------------------------------------------------------------------------------- Checkpoints

_SEAL = b"KITSHA01"  # a checkpoint is torch.save's bytes, this mark and the SHA-256 of those bytes


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, tensors and plain values, to `path`: whole or not at all, sealed with a checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, payload + _SEAL + hashlib.sha256(payload).digest())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote to `path`, on the CPU; `["model"]` holds the weights `fit` saved.

    Raises FileNotFoundError, or ValueError for a file that is damaged, foreign, or holds anything but tensors
    and plain values: such a file is never unpickled into code.
    """
    whole = Path(path).read_bytes()
    payload, seal, digest = whole[:-40], whole[-40:-32], whole[-32:]
    if seal != _SEAL:
        raise ValueError(f"{path} is cut short or is no checkpoint of this kit: it lacks the closing checksum")
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(f"{path} is damaged: its checksum does not match; delete it, or restore a sound copy")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} was refused: it holds more than tensors and plain values ({error})") from error


class _Run(NamedTuple):
    """All that changes while `fit` trains, and so all that a checkpoint must hold."""

    model: nn.Module
    averaged: WeightAverage | None
    optimizer: Optimizer
    scheduler: Any
    train_batches: Any
    history: History


def _snapshot(run: _Run, settings: dict[str, str]) -> dict[str, Any]:
    averaged = run.averaged
    return {
        "settings": settings,
        "model": averaged.model.state_dict() if averaged is not None else run.model.state_dict(),
        "trained": run.model.state_dict() if averaged is not None else None,
        "averaged_steps": averaged.steps if averaged is not None else 0,
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict() if run.scheduler is not None else None,
        "generators": _generator_states(run),
        "history": dataclasses.asdict(run.history),
    }


def _generator_states(run: _Run) -> dict[str, Any]:
    """The state of every generator that training draws from, as tensors and plain values."""
    import numpy

    numpy_state: Any = numpy.random.get_state()
    kind, keys, *rest = numpy_state
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }
    if (device := _device_of(run.model)).type in ("cuda", "mps"):
        states["device"] = getattr(torch, device.type).get_rng_state()
    states |= {name: generator.get_state() for name, generator in _own_generators(run.train_batches).items()}
    return states


def _own_generators(batches: Any) -> dict[str, torch.Generator]:
    """The generators that `Batches` or a DataLoader and its sampler draw from, where they have their own."""
    owners = {"batches": batches, "sampler": getattr(batches, "sampler", None)}
    generators = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in generators.items() if isinstance(generator, torch.Generator)}


def _resume(run: _Run, settings: dict[str, str], path: str | Path, verbose: bool) -> None:
    """Bring `run` to the state saved in `path`, once it is sure that the very same run saved it."""
    import numpy

    found = [load_checkpoint(path) if _rank_and_world()[0] == 0 else {}]
    if _rank_and_world()[1] > 1:
        torch.distributed.broadcast_object_list(found)
    state = found[0]
    if differences := _differences(state.get("settings", {}), settings):
        raise ValueError(
            f"{path} belongs to another run; give checkpoint another name, or delete the file to start afresh. "
            f"What differs (- in the file, + now):\n" + "\n".join(differences)
        )
    if run.averaged is not None:
        run.averaged.model.load_state_dict(state["model"])
        run.averaged.steps = state["averaged_steps"]
    run.model.load_state_dict(state["model"] if run.averaged is None else state["trained"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    generators = state["generators"]
    torch.set_rng_state(generators["torch"])
    random.setstate(generators["python"])
    numpy.random.set_state(generators["numpy"])
    if "device" in generators:
        getattr(torch, _device_of(run.model).type).set_rng_state(generators["device"])
    for name, generator in _own_generators(run.train_batches).items():
        generator.set_state(generators[name])
    for name, values in state["history"].items():
        getattr(run.history, name)[:] = values
    if verbose:
        print(f"{path} holds {len(run.history)} finished epochs of this run: going on from there.", flush=True)


def _any_rank(here: bool) -> bool:
    """Whether the first process says so: the others may not see its disk."""
    said = [here]
    if _rank_and_world()[1] > 1:
        torch.distributed.broadcast_object_list(said)
    return said[0]


def _describe_run(run: _Run, epochs: int, scheduler_step: str, criterion: Any, precision: Any) -> dict[str, str]:
    """What must be equal for a checkpoint to fit, as text: nothing in it changes while training goes on."""
    moving = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
    steps = run.scheduler.state_dict() if run.scheduler is not None else {}
    steps = {key: value for key, value in steps.items() if key not in moving and not key.startswith("_")}
    batches = run.train_batches
    data = getattr(batches, "data", None) or getattr(batches, "dataset", None)
    return {
        "network": repr(run.model),
        "parameters": "\n".join(f"{name} {tuple(p.shape)}" for name, p in run.model.state_dict().items()),
        "training images": str(len(data)) if data is not None else "unknown",
        "batches": str(len(batches)) if hasattr(batches, "__len__") else "unknown",
        "batch size": str(getattr(batches, "batch_size", "unknown")),
        "seed of the batches": str(getattr(batches, "seed", "unknown")),
        "augmentation": repr(getattr(batches, "augment", None)),
        "augmented epochs": str(getattr(batches, "augment_epochs", None)),
        "epochs": str(epochs),
        "optimizer": f"{type(run.optimizer).__name__} {run.optimizer.defaults}",
        "scheduler": f"{type(run.scheduler).__name__} {steps}, stepped per {scheduler_step}",
        "criterion": _name(criterion),
        "average": str(run.averaged.decay if run.averaged is not None else None),
        "precision": str(precision),
    }


def _name(criterion: Any) -> str:
    """A name without addresses in memory, which differ from run to run."""
    if isinstance(criterion, functools.partial):
        return f"{_name(criterion.func)} {criterion.keywords}"
    return (
        repr(criterion)
        if isinstance(criterion, nn.Module)
        else getattr(criterion, "__qualname__", type(criterion).__name__)
    )


def _differences(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    lines = []
    for key in now:
        if saved.get(key) != now[key]:
            old, new = str(saved.get(key)).splitlines(), now[key].splitlines()
            changed = [line for line in difflib.ndiff(old, new) if line[0] in "-+"]
            lines += [f"{key}:", *(f"  {line}" for line in changed)]
    return lines


def export_onnx(model: nn.Module, path: str | Path, input_size: tuple[int, int, int] = (1, 28, 28)) -> None:
    """Write `model` to `path` as ONNX, opset 18: "images" (N, *input_size), normalised, in; "logits" (N, K) out.

    N is free. Needs the packages onnx and onnxscript (requirements-extra.txt); ImportError says so.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("export_onnx needs more packages: pip install -r requirements-extra.txt") from error
    with _eval_mode(model):
        program = torch.onnx.export(
            model,
            (torch.zeros(2, *input_size, device=_device_of(model)),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("count")},),
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None for the older exporter alone
    write_atomically(path, program.model_proto.SerializeToString())
