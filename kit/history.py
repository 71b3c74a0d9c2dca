"""What training measures: the metrics of one epoch, the history of a run, the error that ends it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


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
