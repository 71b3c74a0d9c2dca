"""Test-time augmentation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShiftedViews(nn.Module):
    """Average the logits of `model` over five views of each image: unchanged, and shifted one pixel to each side.

    This is test-time augmentation (Krizhevsky et al., 2012). It adds no parameters and needs no training, but five
    forward passes per image. It helps networks with strides, whose logits change when the image shifts by a pixel.
    Example: evaluate(ShiftedViews(net), test_batches).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W)."""
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        views = [padded[..., y : y + height, x : x + width] for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
        return torch.stack([self.model(view) for view in views]).mean(0)
