"""Write demo.html: draw a digit in the browser and watch a trained network read it, layer by layer.

The page is one file with the weights inside. It opens offline with a double click. From the kit's folder:

    python -m examples.make_demo --checkpoint runs/s7-net-15-epochs-seed-0.pt --output demo.html
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import model
import utils
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

    state = _load(arguments.checkpoint)
    data = state.get("data") or _mnist_statistics()
    if not data.get("unit_scale", True):
        raise SystemExit(
            f"{arguments.checkpoint}: its training images are floats on a scale of their own, but what is drawn on the "
            "page is from 0 to 1. Train on uint8 images, or on floats from 0 to 1."
        )
    network = getattr(model, arguments.network)(in_channels=len(data["mean"]), num_classes=len(data["classes"]))
    try:
        network.load_state_dict(state["model"])
        page = make_page(network, data["classes"], data["mean"], data["std"]).encode()
    except (KeyError, RuntimeError) as error:
        raise SystemExit(
            f"{arguments.checkpoint} does not hold the weights of {arguments.network}: name the network that was "
            f"trained with --network, or train it again if its layers have changed since. {error}"
        ) from None
    except (TypeError, ValueError) as error:
        raise SystemExit(f"{arguments.checkpoint}: {error}") from None
    write_atomically(arguments.output, page)
    print(f"{arguments.output}: {len(page) / 1000:.0f} kB, {arguments.network} inside. Open it with a double click.")


def _load(checkpoint: str) -> dict[str, Any]:
    try:
        return utils.load_checkpoint(checkpoint)
    except FileNotFoundError:
        raise SystemExit(
            f"{checkpoint} is missing: train a network first, by running s7.ipynb from top to bottom, or name "
            "another file with --checkpoint."
        ) from None
    except ValueError as error:
        raise SystemExit(str(error)) from None


def _mnist_statistics() -> dict[str, Any]:
    """What a checkpoint says of its training images, for one that says nothing: MNIST's are taken."""
    train, _ = utils.load_mnist()
    print("The checkpoint holds no statistics of its training images; the page normalises as for all of MNIST.")
    return {"mean": train.mean, "std": train.std, "classes": train.classes}


def make_page(network: nn.Module, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> str:
    """Return the page: the template with `network` inside.

    classes, mean, std: the names of the classes and the statistics that the training normalised by, as an ImageData
        holds them.
    Raises TypeError or ValueError, naming the layer, for a network that the page cannot run.
    """
    if len(mean) != 1:
        raise ValueError(f"the network takes {len(mean)} channels, but what is drawn on the page has 1, grey")
    layers = export_layers(network)
    logits = utils.predict(network, torch.zeros(1, SIDE, SIDE)).numel()
    if logits != len(classes):
        raise ValueError(f"classes has {len(classes)} names, but the network returns {logits} logits")
    exported = {
        "name": type(network).__name__,
        "parameters": model.count_parameters(network),
        "classes": list(classes),
        "mean": mean[0],
        "std": std[0],
        "layers": layers,
    }
    # No class name may end the script early.
    text = json.dumps(exported, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("__NETWORK__", text)


# ---- Layers as plain operations ----


def export_layers(network: nn.Module) -> list[dict[str, Any]]:
    """Return `network.layers`, an nn.Sequential for images (N, 1, 28, 28), as plain operations for JSON.

    Each is {"kind": …} and the numbers that it needs; `operations` in the template runs them. Batch normalisation is
    exported as it is after the training. Raises TypeError for a module that the page does not know, ValueError for an
    option that it does not know or a network that does more than its layers.
    """
    if type(getattr(network, "layers", None)) is not nn.Sequential:
        raise TypeError(f"network is {type(network).__name__}; expected a module with an nn.Sequential named layers")
    twin = copy.deepcopy(network).cpu().double().eval()  # the network itself stays as it was
    layers: Any = twin.layers
    images = torch.linspace(0, 1, SIDE * SIDE, dtype=torch.float64, device="cpu").sin().view(1, 1, SIDE, SIDE)
    maps, exported = images.clone(), []
    with torch.no_grad():
        for name, module in layers.named_modules(remove_duplicate=False):
            if type(module) in (nn.Sequential, nn.Dropout, nn.Dropout2d):
                continue  # what a Sequential holds comes next by itself; dropout does nothing after the training
            if type(module) is nn.Flatten and maps.shape[2:] == (1, 1):
                continue  # numbers stay the same numbers
            try:
                exported.append(_operation(module, maps))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layers.{name}: {error}") from None
            maps = module(maps)
        logits = twin(images)
    if not logits.isfinite().all():
        raise ValueError(f"{type(network).__name__} returns NaN or infinite logits; train it again")
    if maps.numel() != logits.numel() or not torch.allclose(maps.flatten(), logits.flatten()):
        raise ValueError(f"{type(network).__name__} does more than its layers, one after the other; the page cannot")
    return exported


def _operation(module: nn.Module, maps: Tensor) -> dict[str, Any]:
    """One module as a plain operation; `maps` (N, C, H, W) have the shape that reaches it."""
    # The type itself: a subclass may compute something else.
    export = EXPORTS.get(type(module))
    if export is None:
        known = ", ".join(kind.__name__ for kind in (*EXPORTS, nn.Dropout))
        raise TypeError(
            f"the page does not know {type(module).__name__}; it knows {known} and a last Flatten. Teach it more with "
            "an entry in EXPORTS of make_demo.py and one in `operations` of its template"
        )
    return export(module, maps)


def _convolution(module: Any, maps: Tensor) -> dict[str, Any]:
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


def _batch_norm(module: Any, maps: Tensor) -> dict[str, Any]:
    _check_options(module, affine=True, track_running_stats=True)
    factor = module.weight / (module.running_var + module.eps).sqrt()
    return {"kind": "scale", "factor": _numbers(factor), "shift": _numbers(module.bias - factor * module.running_mean)}


def _channel_attention(module: Any, maps: Tensor) -> dict[str, Any]:
    return {"kind": "attention", "weight": _numbers(module.weight)}  # of the channel before, itself, the one behind


def _max_pool(module: Any, maps: Tensor) -> dict[str, Any]:
    _check_options(module, padding=0, dilation=1, ceil_mode=False)
    return {"kind": "max", "size": _square(module, "kernel_size"), "stride": _square(module, "stride"), "padding": 0}


def _average_pool(module: Any, maps: Tensor) -> dict[str, Any]:
    _check_options(module, ceil_mode=False, count_include_pad=True, divisor_override=None)
    sizes = {option: _square(module, option) for option in ("stride", "padding")}
    return {"kind": "average", "size": _square(module, "kernel_size"), **sizes}


def _global_average(module: Any, maps: Tensor) -> dict[str, Any]:
    if module.output_size not in (1, (1, 1)):
        raise ValueError(f"AdaptiveAvgPool2d has output_size={module.output_size!r}; the page knows 1 alone")
    return {"kind": "average", "size": maps.shape[-1], "stride": maps.shape[-1], "padding": 0}


EXPORTS: dict[type[nn.Module], Callable[[Any, Tensor], dict[str, Any]]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.SiLU: lambda module, maps: {"kind": "silu"},
    nn.ReLU: lambda module, maps: {"kind": "relu"},
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _global_average,
    model.GlobalAvgPool: _global_average,
    model.ChannelAttention: _channel_attention,
}


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
