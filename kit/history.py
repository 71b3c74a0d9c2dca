"""What training measures, batch by batch and epoch by epoch, and how it ends early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from kit.runtime import (
    device_of,
    end_cell_after_interrupt,
    in_cell_interrupted_now,
    interrupt_later,
    rank_and_world,
    sum_over_processes,
)

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
            getattr(self, field.name).append(float(value))


class NonFiniteLoss(ValueError):
    """The loss became NaN or infinite; `history`, if `fit` raised it, holds the epochs finished before."""

    history: History | None = None


def epoch_line(history: History, epochs: int) -> str:
    """Return the line that `fit` prints for the last epoch."""
    return (
        f"epoch {len(history):>{len(str(epochs))}}/{epochs}"
        f"   train loss {history.train_loss[-1]:.4f}, accuracy {history.train_accuracy[-1]:.2f} %"
        f"   test loss {history.test_loss[-1]:.4f}, accuracy {history.test_accuracy[-1]:.2f} %"
        f"   {history.seconds[-1]:.1f} s"
    )


class Tally:
    """Sums over the batches of an epoch, kept on their device until somebody reads them.

    The accuracy is NaN unless every batch has logits (N, K) of at least two classes and whole-numbered labels (N,).
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.count = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of at least one image, and its mean loss."""
        loss = loss.detach()
        self.losses.append(loss * len(labels))
        counts = is_classification(logits, labels)
        self.hits.append((logits.argmax(1) == labels).sum() if counts else torch.full_like(loss, math.nan))
        self.count += len(labels)

    def so_far(self) -> Metrics:
        """Return the metrics of this process alone."""
        return _metrics(self._sums())

    def metrics(self) -> Metrics:
        """Return the metrics over all processes, each of which has to call this; ValueError if none had an image."""
        return _metrics(sum_over_processes(self._sums()))

    def _sums(self) -> Tensor:
        """Loss, hits and images (3,), on the CPU."""
        sums = [0.0, 0.0]
        if self.count:
            sums = torch.stack([torch.stack(self.losses).sum(), torch.stack(self.hits).sum()]).tolist()
        return torch.tensor([*sums, self.count], dtype=torch.float64, device="cpu")


def is_classification(logits: Tensor, labels: Tensor) -> bool:
    """Return whether each image has a logit for each of at least two classes, (N, K), and a whole number, (N,)."""
    whole = not labels.is_floating_point() and not labels.is_complex()
    return whole and logits.ndim == 2 and logits.shape[1] > 1 and labels.shape == logits.shape[:1]


def _metrics(sums: Tensor) -> Metrics:
    loss, hits, count = sums.tolist()
    if not count:
        raise ValueError("batches held no images; expected at least one batch")
    return Metrics(loss / count, 100 * hits / count)


def mean_loss(criterion: Criterion, logits: Any, labels: Tensor) -> Tensor:
    """Return the mean loss of a batch in full precision; errors name the shapes."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"model returned {type(logits).__name__}; expected its logits, a tensor (N, K)")
    try:
        loss = criterion(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_classification(logits, labels):
            _refuse_unknown_classes(logits, labels, error)
            raise
        raise ValueError(
            f"criterion failed for {_shapes(logits, labels)}; expected logits (N, K) and labels (N,) int64, or a "
            f"criterion that accepts other shapes: {error}"
        ) from error
    if not isinstance(loss, Tensor):
        raise TypeError(f"criterion returned {type(loss).__name__}; expected a tensor, the mean loss")
    if loss.numel() != 1:
        raise ValueError(
            f"criterion returned {tuple(loss.shape)} for {_shapes(logits, labels)}; expected one number, the mean loss"
        )
    return loss


def _refuse_unknown_classes(logits: Tensor, labels: Tensor, error: Exception) -> None:
    """Raise ValueError if labels without a logit explain `error`; -100 is what PyTorch's criteria leave out."""
    labels, count = labels.long(), logits.shape[1]
    labels = labels[labels != -100]
    if not len(labels) or (labels.min() >= 0 and labels.max() < count):
        return
    raise ValueError(
        f"labels go from {int(labels.min())} to {int(labels.max())}, but model returns {count} logits, for classes 0 "
        f"to {count - 1}: number the classes from 0, and give the network as many logits ({error})"
    ) from error


def _shapes(logits: Tensor, labels: Tensor) -> str:
    return f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} {labels.dtype}"


def refuse_non_finite(loss: Tensor, batch: int, inputs: Tensor, optimizer: Optimizer) -> None:
    """Raise NonFiniteLoss, in all processes at once, if `loss` is NaN or infinite in one of them."""
    value = sum_over_processes(loss.detach()).item()
    if math.isfinite(value):
        return
    if sum_over_processes(inputs.isfinite().logical_not().any().float()):
        raise NonFiniteLoss(f"the inputs of batch {batch} hold NaN or infinite numbers: repair the data")
    raise NonFiniteLoss(f"the loss is {value} at batch {batch}, {_rates(optimizer)}: try a tenth of it")


def refuse_non_finite_weights(optimizer: Optimizer) -> None:
    """Raise NonFiniteLoss if a weight that `optimizer` trains is NaN or infinite, though the last loss was not."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad)
    if not all(is_lazy(weight) or weight.isfinite().all() for weight in weights):
        raise NonFiniteLoss(f"weights are NaN or infinite after the last batch, {_rates(optimizer)}: try a tenth of it")


def _rates(optimizer: Optimizer) -> str:
    return "learning rate " + ", ".join(f"{group['lr']:.3g}" for group in optimizer.param_groups)


@contextmanager
def early_endings(history: History, epochs: int, model: nn.Module, checkpoint: Any, verbose: bool) -> Iterator[None]:
    """What happens when the training within the block ends early: by Ctrl-C, a full GPU or a loss that diverges."""
    end_cell_after_interrupt()
    try:
        with interrupt_later() if rank_and_world()[1] > 1 else nullcontext():  # all processes end together
            yield
    except KeyboardInterrupt as error:
        error.history = history  # type: ignore[attr-defined]
        if verbose:
            kept = "the same call goes on from here" if checkpoint else "give `checkpoint` a file to go on another time"
            print(f"Interrupted after {len(history)} of {epochs} epochs: {kept}.", flush=True)
        if not in_cell_interrupted_now():
            raise
    except torch.OutOfMemoryError as error:
        hint = f"{device_of(model)} is full: take smaller batches, end what else uses it, or get_device('cpu')"
        error.args = (f"epoch {len(history) + 1}: {hint}\n{error}",)
        raise
    except NonFiniteLoss as error:
        error.history = history
        error.args = (f"epoch {len(history) + 1}: {error}",)
        raise
