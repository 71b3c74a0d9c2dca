"""The networks: `Net` reads MNIST at 99.6 % with fewer than 8,000 parameters, `Nano` with fewer than 2,000.

    from model import Net, count_parameters, summary

    net = Net()  # images (N, 1, 28, 28) -> logits (N, 10)
    print(count_parameters(net))

`Attempt2` is the network of an earlier attempt. To train one, see `utils.py`. Each line of a network names the side of
its output for a 28 x 28 image and its receptive field (RF), in pixels.
"""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_block(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A padded convolution, batch normalisation and SiLU; the bias of the convolution is BatchNorm's.

    SiLU (Elfwing et al., 2018), x * sigmoid(x), is smooth where ReLU has its corner.
    """
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),  # in place is slower: the backward pass needs the input, which then has to be copied first
    ]


def separable_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A 1x1 transition that mixes the channels, then a 3x3 block on each channel by itself.

    Blueprint separable convolution (Haase and Amthor, 2020): at these widths a seventh of a full 3x3's weights.
    """
    return [
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        *conv_block(out_channels, out_channels, 3, groups=out_channels),
    ]


def blur_pool() -> list[nn.Module]:
    """Halve the side: the maximum of each 2 x 2, then the mean of 3 x 3 with stride 2.

    Without the blur, a shift of one pixel changes the result much more (anti-aliased pooling: Zhang, 2019).
    """
    return [nn.MaxPool2d(2, stride=1), nn.AvgPool2d(3, stride=2, padding=1)]


class ChannelAttention(nn.Module):
    """Scale each channel by a factor between 0 and 2 that depends on the means of the channel and its two neighbours.

    Efficient channel attention, ECA (Wang et al., 2020): three parameters, and no scaling at the start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) -> (N, C, H, W)."""
        # The backward pass of `sum` is a view; that of `mean` writes a whole map. Three terms are too few for Conv1d.
        means = maps.sum((2, 3)) / (maps.shape[2] * maps.shape[3])
        neighbours = F.pad(means, (1, 1)).unfold(1, 3, 1)  # (N, C, 3)
        factors = 2 * F.linear(neighbours, self.weight).sigmoid()  # (N, C, 1)
        return maps * factors.unsqueeze(3)


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d(1)`, but its gradient keeps the channels of a pixel side by side, which is faster."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) -> (N, C, 1, 1)."""
        return F.avg_pool2d(maps, maps.shape[2:])


class _Stack(nn.Module):
    """Layers one behind the other, the channels of a pixel side by side: on the CPU mostly the fastest order."""

    def __init__(self, *layers: nn.Module, memory_format: torch.memory_format = torch.channels_last) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=memory_format)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Net(_Stack):
    """The kit's network: images (N, in_channels, H, W) of 20 to 64 pixels a side -> logits (N, num_classes).

    stem: channels of the first convolution.
    early: channels of each separable block at half the side of the images; late: of each at a quarter of the side.
    stem_stride: 2 for a 5x5 stem that halves the side itself; 1 for a 3x3 stem at full resolution with a pooling
        behind it, which is slower, has fewer weights and is the better choice for the smallest networks.

    Raises ValueError for another stem_stride.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        *,
        dropout: float = 0.0,
        stem: int = 24,
        early: tuple[int, ...] = (32, 32),
        late: tuple[int, ...] = (32, 32, 32),
        stem_stride: int = 2,
    ) -> None:
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride is {stem_stride!r}; expected 1 or 2")
        widths = (stem, *early, *late)
        blocks = [separable_block(*pair) for pair in pairwise(widths)]
        if stem_stride == 2:  # built behind the blocks: the order decides which weights a seed draws
            halving = conv_block(in_channels, stem, 5, stride=2)  # 28 -> 14, RF 5
        else:
            halving = [*conv_block(in_channels, stem, 3), *blur_pool()]  # 28 -> 27 -> 14, RF 6; from here on one more
        super().__init__(
            *halving,
            *chain(*blocks[: len(early)]),  # 14, RF 9, 13
            *blur_pool(),  # 14 -> 13 -> 7, RF 15, 19
            *chain(*([*block, ChannelAttention()] for block in blocks[len(early) :])),  # 7, RF 27, 35, 43
            GlobalAvgPool(),  # 7 -> 1: the whole image
            nn.Dropout(dropout),
            nn.Conv2d(widths[-1], num_classes, 1),  # 1
            nn.Flatten(),
        )


class Nano(Net):
    """A small network of the same family, at the edge of the target."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, dropout: float = 0.0) -> None:
        super().__init__(
            in_channels, num_classes, dropout=dropout, stem=12, early=(16, 16), late=(16, 16), stem_stride=1
        )


class Attempt2(_Stack):
    """The network of the earlier attempt, layer by layer: images (N, in_channels, 28, 28) -> (N, num_classes).

    Convolutions have neither bias nor padding, and ReLU comes before BatchNorm. Raises ValueError for another size.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, dropout: float = 0.0) -> None:
        def block(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, bias=False)
            return [convolution, nn.ReLU(), nn.BatchNorm2d(outputs), nn.Dropout(dropout)]

        super().__init__(
            *block(in_channels, 10),  # 28 -> 26, RF 3
            *block(10, 10),  # 26 -> 24, RF 5
            nn.Conv2d(10, 5, 1, bias=False),  # 24, RF 5
            nn.MaxPool2d(2),  # 24 -> 12, RF 6
            *block(5, 10),  # 12 -> 10, RF 10
            *block(10, 10),  # 10 -> 8, RF 14
            *block(10, 20),  # 8 -> 6, RF 18
            nn.Conv2d(20, 5, 1, bias=False),  # 6, RF 18
            *block(5, 20),  # 6 -> 4, RF 22
            nn.AvgPool2d(4),  # 4 -> 1, RF 28
            nn.Conv2d(20, num_classes, 1, bias=False),  # 1, RF 28
            # Ten channels do not fill a cache line: side by side, the sums of BatchNorm's threads would share one.
            memory_format=torch.contiguous_format,
        )

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (28, 28):
            raise ValueError(f"images are {tuple(images.shape)}; expected 28 x 28 pixels")
        return super().forward(images).flatten(1)


def count_parameters(module: nn.Module) -> int:
    """The number of parameters of `module`, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def summary(module: nn.Module, input_size: tuple[int, int, int] = (1, 28, 28)) -> str:
    """Print torchsummary's table for one image of `input_size` (C, H, W), and return it.

    The table is made on a copy on the CPU, in eval mode: the module, its BatchNorm statistics and the random
    generators stay as they were.
    """
    from torchsummary import summary as torchsummary_table

    twin = copy.deepcopy(module).cpu().eval()
    printed = io.StringIO()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad(), redirect_stdout(printed):
        torchsummary_table(twin, input_size, device="cpu")
    print(printed.getvalue(), end="")
    return printed.getvalue()
