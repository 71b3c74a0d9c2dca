"""The optimizer and the learning-rate schedule of the default recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from kit.settings import real_number, whole_number


class Muon(Optimizer):
    """Momentum whose steps are orthogonalised (Muon; Jordan et al., 2024).

    The weight of a convolutional or linear layer is treated as a matrix (out, rest), a vector as a matrix of one row.
    With lr=1 the elements of a step have a root mean square of about 0.2, whatever the shape (Liu et al., 2025), as
    Adam's steps do. `weight_decay` is decoupled, as in AdamW, and applies to matrices only.

    Raises ValueError for an option out of range and for `maximize`, RuntimeError for sparse gradients and complex
    parameters.
    """

    def __init__(self, params: Any, lr: float | Tensor, *, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    # The first call of any of these would import torch's compiler, only to tell it to leave them alone: a second, and
    # 100 MB. So they are taken out of their wrappers.
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which may have an lr, momentum and weight_decay of its own."""
        options = self.defaults | param_group
        for name, limit in {"lr": math.inf, "momentum": 1, "weight_decay": math.inf}.items():
            value = options[name]
            if (isinstance(value, Tensor) and value.numel() != 1) or not 0 <= value < limit:
                below = "" if limit == math.inf else f" and below {limit}"
                raise ValueError(f"{name} is {value!r}; expected a finite number of at least 0{below}")
        if options.get("maximize"):
            raise ValueError("maximize is True, but Muon only minimises; negate the loss instead")
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step along the gradients; return the loss of `closure`, which is called first if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            if any(gradient.is_sparse for gradient in gradients):
                raise RuntimeError("Muon does not support sparse gradients; use nn.Embedding(..., sparse=False)")
            if any(gradient.is_complex() for gradient in gradients):
                raise RuntimeError("Muon does not support complex parameters; use torch.optim.AdamW")
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look-ahead
            lr = float(group["lr"])  # torch allows a tensor, too
            matrices = [weight for weight in weights if weight.ndim > 1]
            if group["weight_decay"] and matrices:
                torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
            torch._foreach_add_(weights, _orthogonalised(list(directions)), alpha=-lr)
        return loss


def _orthogonalised(tensors: list[Tensor]) -> list[Tensor]:
    """Bring all singular values near 1, keep the singular vectors, and scale to a root mean square of 0.2.

    This takes five Newton-Schulz iterations. Tensors of one shape are stacked: they are small, and there are many.
    """
    alike: dict[Any, list[int]] = {}
    for place, tensor in enumerate(tensors):
        alike.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(place)
    results = list(tensors)
    for (shape, _, _), places in alike.items():
        rows = shape[0] if len(shape) > 1 else 1
        matrices = torch.stack([tensors[place] for place in places]).reshape(len(places), rows, -1)
        matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
        scale = 0.2 * math.sqrt(max(matrices.shape[1:]))
        tall = matrices.shape[1] > matrices.shape[2]
        matrices = matrices.mT if tall else matrices
        for _ in range(5 if rows > 1 else 0):
            gram = matrices @ matrices.mT
            factors = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
            matrices = torch.baddbmm(matrices, factors, matrices, beta=3.4445)
        matrices = (matrices.mT if tall else matrices) * scale
        for place, matrix in zip(places, matrices, strict=True):
            results[place] = matrix.reshape(shape)
    return results


def linear_schedule(optimizer: Optimizer, steps: int, warmup: float = 0.05) -> LRScheduler:
    """Raise the learning rate linearly over the share `warmup` of all `steps`, then lower it linearly to zero.

    Call the scheduler's step() after every batch. Raises ValueError for bad arguments.
    """
    total = whole_number("steps", steps, 1)
    rising = max(1, round(real_number("warmup", warmup, 1) * total))
    falling = max(1, total - rising)
    return LambdaLR(optimizer, lambda step: min((step + 1) / rising, max(0.0, (total - step) / falling)))


def what_steps(optimizer: Optimizer, scheduler: Any, scheduler_step: str) -> str:
    """Return what `fit` steps `scheduler` after: "batch", "epoch" or "test loss"; an error if it cannot."""
    if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer is {optimizer!r}; expected one such as torch.optim.SGD(net.parameters(), lr=0.1)")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer is {type(optimizer).__name__}, whose step needs a closure that fit does not have; "
            "take another one, or write the loop yourself"
        )
    if scheduler_step not in ("batch", "epoch"):
        raise ValueError(f"scheduler_step is {scheduler_step!r}; expected 'batch' or 'epoch'")
    return "test loss" if isinstance(scheduler, ReduceLROnPlateau) else scheduler_step
