"""The optimizer and the learning-rate schedule of the default recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


class Muon(Optimizer):
    """Momentum whose every step is orthogonalised (Muon: Jordan et al., 2024), so that no direction lags behind.

    A weight of a convolution or linear layer is taken as a matrix (out, rest), a vector as a matrix of one row.
    A step of learning rate 1 has about the root mean square 0.2, whatever the shape (Liu et al., 2025), as Adam's
    steps have; `weight_decay` is decoupled and acts on matrices alone.
    """

    def __init__(self, params: Any, lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        if not lr >= 0 or not 0 <= momentum < 1 or not weight_decay >= 0:
            raise ValueError(
                f"lr, momentum and weight_decay are {lr}, {momentum} and {weight_decay}; "
                "expected numbers of at least 0, momentum below 1"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

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
    """Let the learning rate rise in a line over the share `warmup` of all `steps`, then fall in a line to zero.

    Step it after every batch.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected a whole number of at least 1: epochs times batches per epoch")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is {warmup!r}; expected a share of the steps, from 0 to 1")
    rising = max(1, round(warmup * steps))
    falling = max(1, steps - rising)
    return LambdaLR(optimizer, lambda step: min((step + 1) / rising, max(0.0, (steps - step) / falling)))
