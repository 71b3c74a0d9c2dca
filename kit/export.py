"""Export a trained network to ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kit.runtime import device_of, eval_mode, write_atomically
from kit.settings import whole_number


def export_onnx(model: nn.Module, path: str | Path, input_size: tuple[int, int, int] = (1, 28, 28)) -> None:
    """Write `model` to `path` as ONNX, opset 18: "images" (N, *input_size), normalised, in; "logits" (N, K) out.

    N is free. Needs the packages onnx and onnxscript (requirements-extra.txt); ImportError says so. Raises ValueError
    for an `input_size` (C, H, W) that `model` does not read.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("export_onnx needs more packages: pip install -r requirements-extra.txt") from error
    if len(input_size) != 3:
        raise ValueError(f"input_size is {input_size!r}; expected (C, H, W)")
    sides = [whole_number("input_size", side) for side in input_size]
    floats = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    example = torch.zeros(2, *sides, device=device_of(model), dtype=next(floats, torch.float32))
    with eval_mode(model):
        try:
            model(example)
        except Exception as error:  # a network may refuse a size as it likes
            raise ValueError(f"model does not read images of input_size {input_size}: {error}") from error
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("count")},),
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None for the older exporter alone
    write_atomically(Path(path).expanduser(), program.model_proto.SerializeToString())
