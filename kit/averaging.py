"""The moving average of the weights that is tested and kept in place of the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kit.settings import positive_number


class WeightAverage:
    """A moving average of the weights of `model` over about the last `share` of the steps so far, from 0 to 1.

    After step t the average moves towards the new weights by k / (t + k - 1) of the way, where k = 1 / share
    (polynomial-decay averaging; Shamir and Zhang, 2013). With a share below 1, the first steps count for less and
    less, however long the training lasts. The running statistics of BatchNorm are averaged as well, other buffers are
    not. Raises ValueError unless `share` is above 0 and at most 1.

    Within `training` the model holds the weights that are trained, outside of it their average:

        average = WeightAverage(net, 0.1)
        for epoch in range(15):
            with average.training(optimizer):
                train_epoch(net, train_batches, optimizer)
            evaluate(net, test_batches)
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.span, self.steps = 1 / positive_number("share", share, 1), 0
        self._model, self._in_training = model, False
        # Both are empty until the first step, and within `training` the first holds the model's own tensors.
        self._trained: list[Tensor] = []
        self._average: list[Tensor] = []

    @contextmanager
    def training(self, optimizer: Optimizer) -> Iterator[None]:
        """Give the model back the weights that are trained, and average over the steps of `optimizer`.

        Raises TypeError if `optimizer` calls no hook after a step, RuntimeError for one `training` within another.
        """
        if self._in_training:
            raise RuntimeError("this average is in training already; leave the outer `with` first")
        no_hook = TypeError(
            f"optimizer is {type(optimizer).__name__}, which calls no hook after a step, as torch's own optimizers do; "
            "train without an average, fit with average=0"
        )
        try:
            handle = optimizer.register_step_post_hook(lambda *_: self._add())
        except AttributeError:
            raise no_hook from None
        with handle:
            in_model = _weights_of(self._model)  # anew each time: `Module.to` makes other buffers
            if self.steps:
                _copy(self._trained, in_model)
            steps, before = self.steps, self._trained or [_clone(tensor) for tensor in in_model]
            self._trained, self._in_training = in_model, True
            try:
                yield
                if self.steps == steps and not _same_parameters(before, in_model):
                    raise no_hook
            finally:
                self._in_training = False
                self._trained = [_clone(tensor) for tensor in in_model] if self.steps else []
                if self.steps:
                    self._keep_infinities()
                    _copy(self._average, in_model)

    def _keep_infinities(self) -> None:
        """Infinity less infinity is no number, so an infinite weight (a frozen mask) is taken as it is."""
        for average, weights in zip(self._average, self._trained, strict=True):
            average.copy_(average.where(~average.isnan(), weights.to(average.dtype)))

    def _add(self) -> None:
        self.steps += 1
        if self.steps == 1:
            self._average = _precise(self._trained)
            return
        weight = self.span / (self.steps + self.span - 1)
        weights = [tensor.to(average.dtype) for tensor, average in zip(self._trained, self._average, strict=True)]
        get_ema_multi_avg_fn(1 - weight)(self._average, weights, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved beside the model: the weights that are trained, the average, and the steps."""
        return {"trained": self._trained, "average": self._average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`, outside of `training`; ValueError for one of another network."""
        now = _weights_of(self._model) if state["steps"] else []
        for saved in (state["trained"], state["average"]):
            if [tensor.shape for tensor in saved] != [tensor.shape for tensor in now]:
                raise ValueError("state is the average of another network: its weights have other shapes")
        self._trained = [tensor.detach().clone() for tensor in now]
        self._average, self.steps = _precise(now), state["steps"]
        _copy(state["trained"], self._trained)
        _copy(state["average"], self._average)


def _precise(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies in single precision at least: in half precision an average's small moves would be rounded away."""
    return [tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True) for tensor in tensors]


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for tensor, other in zip(source, target, strict=True):
        other.copy_(tensor)


def _clone(tensor: Tensor) -> Tensor:
    """Return a copy of `tensor`, or a lazy layer's itself: it has no values before the first forward pass."""
    return tensor if is_lazy(tensor) else tensor.detach().clone()


def _same_parameters(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether the parameters among `others` have the values of `tensors`; statistics change without any step."""
    pairs = zip(tensors, others, strict=True)
    return all(torch.equal(tensor, other) for tensor, other in pairs if isinstance(other, nn.Parameter))


def _weights_of(model: nn.Module) -> list[Tensor]:
    """Return the parameters of `model` and the running statistics of its normalisations, each once."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    statistics = chain.from_iterable((norm.running_mean, norm.running_var) for norm in norms)
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), statistics) if tensor is not None}
    return [tensor for tensor in tensors.values() if tensor.is_floating_point() or tensor.is_complex()]
