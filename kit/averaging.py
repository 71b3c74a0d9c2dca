"""The moving average of the weights that is tested and kept in place of the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kit.settings import real_number


class WeightAverage:
    """A moving average of the weights of `model` over about the last `share` of the steps so far, from 0 to 1.

    After step t the average moves towards the new weights by k / (t + k - 1) of the way, where k = 1 / share
    (polynomial-decay averaging; Shamir and Zhang, 2013). So it forgets the first steps however many follow. The
    running statistics of BatchNorm are averaged as well, other buffers are not. Raises ValueError unless `share` is
    above 0 and at most 1.

    Within `training` the model holds the weights that are trained, outside of it their average:

        average = WeightAverage(net, 0.1)
        for epoch in range(15):
            with average.training(optimizer):
                train_epoch(net, train_batches, optimizer)
            evaluate(net, test_batches)
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        if real_number("share", share, 1) == 0:
            raise ValueError("share is 0; expected a number above 0 and at most 1")
        self.span, self.steps = 1 / share, 0
        self._in_model = _weights_of(model)
        self._trained = [tensor.detach().clone() for tensor in self._in_model]
        # In half precision the small moves of an average would be rounded away.
        dtypes = [torch.promote_types(tensor.dtype, torch.float32) for tensor in self._trained]
        self._average = [tensor.to(dtype, copy=True) for tensor, dtype in zip(self._trained, dtypes, strict=True)]

    @contextmanager
    def training(self, optimizer: Optimizer) -> Iterator[None]:
        """Give the model back the weights that are trained, and average over the steps of `optimizer`."""
        _copy(self._trained, self._in_model)
        handle = optimizer.register_step_post_hook(lambda *_: self._add())
        try:
            yield
        finally:
            handle.remove()
            _copy(self._in_model, self._trained)
            _copy(self._average, self._in_model)

    def _add(self) -> None:
        self.steps += 1
        weight = self.span / (self.steps + self.span - 1)
        weights = [tensor.to(average.dtype) for tensor, average in zip(self._in_model, self._average, strict=True)]
        get_ema_multi_avg_fn(1 - weight)(self._average, weights, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved beside the model: the weights that are trained, the average, and the steps."""
        return {"trained": self._trained, "average": self._average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        _copy(state["trained"], self._trained)
        _copy(state["average"], self._average)
        self.steps = state["steps"]


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for tensor, other in zip(source, target, strict=True):
        other.copy_(tensor)


def _weights_of(model: nn.Module) -> list[Tensor]:
    """Return the parameters of `model` and the running statistics of its normalisations, each once."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    statistics = chain.from_iterable((norm.running_mean, norm.running_var) for norm in norms)
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), statistics) if tensor is not None}
    return [tensor for tensor in tensors.values() if tensor.is_floating_point() or tensor.is_complex()]
