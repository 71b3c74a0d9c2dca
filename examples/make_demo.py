"""Write demo.html: draw a digit in the browser and watch a trained network read it, layer by layer.

The page is one file with the weights inside. It opens by double click and needs neither network nor server:

    python make_demo.py --checkpoint runs/s7-net-15-epochs-seed-0.pt --output demo.html
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import model
import utils
from kit.data import ImageData
from kit.runtime import write_atomically

TEMPLATE = Path(__file__).with_name("demo_template.html")
SIDE = 28


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a page in which a trained network reads what you draw.")
    parser.add_argument(
        "--checkpoint", default="runs/s7-net-15-epochs-seed-0.pt", help="what the training saved (%(default)s)"
    )
    parser.add_argument("--network", default="Net", choices=["Net", "Nano", "Attempt2"], help="default: %(default)s")
    parser.add_argument("--output", default="demo.html", help="the page to write (%(default)s)")
    arguments = parser.parse_args()

    network = getattr(model, arguments.network)()
    state = _load(arguments.checkpoint, network)
    train, _ = utils.load_mnist()
    trained_on = state.get("settings", {}).get("training images", "unknown")
    if trained_on not in ("unknown", str(len(train))):
        raise SystemExit(
            f"{arguments.checkpoint} was trained on {trained_on} images, but {len(train)} are here, and the page "
            "has to normalise as the training did: connect once or set MNIST_ROOT, then run this command again."
        )
    page = make_page(network, train).encode()
    write_atomically(arguments.output, page)
    print(f"{arguments.output}: {len(page) / 1000:.0f} kB, {arguments.network} inside. Open it by double click.")


def _load(checkpoint: str, network: nn.Module) -> dict[str, Any]:
    """Put the weights in `checkpoint` into `network` and return all that the file holds."""
    try:
        state = utils.load_checkpoint(checkpoint)
        network.load_state_dict(state["model"])
    except FileNotFoundError:
        raise SystemExit(
            f"{checkpoint} is missing: train a network first, by running s7.ipynb from top to bottom, or name "
            "another file with --checkpoint."
        ) from None
    except (KeyError, RuntimeError) as error:
        raise SystemExit(
            f"{checkpoint} does not hold the weights of {type(network).__name__}: name the network that was trained "
            f"with --network, or train it again if its layers have changed since. {error}"
        ) from None
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return state


def make_page(network: nn.Module, train: ImageData) -> str:
    """The whole page: the template with `network` and the statistics of `train`, its training images, inside.

    Raises TypeError or ValueError for a network that cannot be exported, as `export_layers` does.
    """
    exported = {
        "name": type(network).__name__,
        "parameters": model.count_parameters(network),
        "classes": train.classes,
        "mean": train.mean[0],
        "std": train.std[0],
        "layers": export_layers(network),
    }
    text = json.dumps(exported, separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )  # no tag may end the script early
    return TEMPLATE.read_text(encoding="utf-8").replace("__NETWORK__", text)


def export_layers(network: nn.Module) -> list[dict[str, Any]]:
    """`network.layers`, an nn.Sequential for images (N, 1, 28, 28), as plain operations for JSON.

    Each is {"kind": …} and the numbers that it needs: "conv", "scale" (batch normalisation as it is after the
    training), "silu", "relu", "max" and "average".
    Raises TypeError for a module that the page does not know, ValueError for an option that it does not know.
    """
    if not isinstance(getattr(network, "layers", None), nn.Sequential):
        raise TypeError(f"network is {type(network).__name__}; expected a module with an nn.Sequential named layers")
    layers = copy.deepcopy(network.layers).cpu().double().eval()  # the network itself stays as it was
    maps = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    operations = []
    for name, module in layers.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Sequential, nn.Dropout, nn.Dropout2d)):
            continue  # what a Sequential holds comes next by itself; dropout does nothing after the training
        if isinstance(module, nn.Flatten) and maps.shape[2:] == (1, 1):
            continue  # numbers stay the same numbers
        try:
            operations.append(_operation(module, maps))
        except (TypeError, ValueError) as error:
            raise type(error)(f"layers.{name}: {error}") from None
        with torch.no_grad():
            maps = module(maps)
    return operations


def _operation(module: nn.Module, maps: Tensor) -> dict[str, Any]:
    """One module as a plain operation; `maps` (1, C, H, W) are of the shape that reaches it."""
    if isinstance(module, nn.Conv2d):
        _check_options(module, dilation=(1, 1), padding_mode="zeros")
        return {
            "kind": "conv",
            "size": _square(module, "kernel_size"),
            "stride": _square(module, "stride"),
            "padding": _square(module, "padding"),
            "groups": module.groups,
            "bias": [0] * module.out_channels if module.bias is None else _numbers(module.bias),
            "weight": _numbers(module.weight),  # (outputs, inputs / groups, size, size), flattened
        }
    if isinstance(module, nn.BatchNorm2d):
        _check_options(module, affine=True, track_running_stats=True)
        factor = module.weight / (module.running_var + module.eps).sqrt()
        return {
            "kind": "scale",
            "factor": _numbers(factor),
            "shift": _numbers(module.bias - factor * module.running_mean),
        }
    if isinstance(module, nn.SiLU):
        return {"kind": "silu"}
    if isinstance(module, nn.ReLU):
        return {"kind": "relu"}
    if isinstance(module, nn.MaxPool2d):
        _check_options(module, padding=0, dilation=1, ceil_mode=False)
        return {"kind": "max", "size": _square(module, "kernel_size"), "stride": _square(module, "stride")}
    if isinstance(module, nn.AvgPool2d):
        _check_options(module, padding=0, ceil_mode=False, divisor_override=None)
        return {"kind": "average", "size": _square(module, "kernel_size"), "stride": _square(module, "stride")}
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if module.output_size not in (1, (1, 1)):
            raise ValueError(f"AdaptiveAvgPool2d has output_size={module.output_size!r}; the page knows 1 alone")
        return {"kind": "average", "size": maps.shape[-1], "stride": maps.shape[-1]}
    raise TypeError(
        f"the page does not know {type(module).__name__}; it knows Conv2d, BatchNorm2d, SiLU, ReLU, MaxPool2d, "
        "AvgPool2d, AdaptiveAvgPool2d, Dropout and a last Flatten. Teach it more in make_demo.py and its template"
    )


def _check_options(module: nn.Module, **expected: Any) -> None:
    for option, value in expected.items():
        if getattr(module, option) != value:
            raise ValueError(
                f"{type(module).__name__} has {option}={getattr(module, option)!r}; the page knows "
                f"{option}={value!r} alone"
            )


def _square(module: nn.Module, option: str) -> int:
    """A size that PyTorch takes as one whole number or as a pair."""
    value = getattr(module, option)
    height, width = value if isinstance(value, tuple) else (value, value)
    if not isinstance(height, int) or height != width:
        raise ValueError(
            f"{type(module).__name__} has {option}={value!r}; the page knows one whole number for both sides"
        )
    return height


def _numbers(values: Tensor) -> list[float]:
    """All values in a row, to the seven digits that a float32 holds."""
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]


if __name__ == "__main__":
    main()
