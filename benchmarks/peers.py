"""Time a training step of the same network in other frameworks, each by its own loop, on a batch in memory.

All train with SGD with momentum in fp32 on the CPU, with as many threads as they take by default. The parameter count
of each network is checked against model.py's, and the loss must be finite. `pip install -r requirements-peers.txt`
installs the frameworks; those that are absent are reported as absent.

    python -m benchmarks.speed peers              # all of them, in turns, each in its own process
    python -m benchmarks.peers Net Lightning      # one of them
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

BATCH_SIZE, STEPS, EPOCHS = 128, 30, 6  # steps on the same batch in each epoch; the first epoch warms up
LR, MOMENTUM = 0.01, 0.9


class Outcome:
    """What a framework reports: the clock at the start and end of each epoch, the last loss, the parameters."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.loss = math.nan
        self.parameters = 0

    def start_epoch(self, *_: Any, **__: Any) -> None:
        self.starts.append(time.perf_counter())

    def end_epoch(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def step_seconds(self) -> float:
        """The median over the epochs but the first."""
        return median(end - start for start, end in zip(self.starts[1:], self.ends[1:], strict=True)) / STEPS


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """One batch: images (N, 1, 28, 28) and labels (N,)."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((BATCH_SIZE, 1, 28, 28), dtype=np.float32)
    return images, generator.integers(10, size=BATCH_SIZE)


# ------------------------------------------------------------------------------------------------- On PyTorch


def torch_parts(network: str, outcome: Outcome) -> tuple[Any, list[Any], Any]:
    """The network of model.py, one epoch of batches and the optimizer."""
    import torch

    import model

    net = getattr(model, network)()
    outcome.parameters = model.count_parameters(net)
    images, labels = arrays()
    batches = [(torch.from_numpy(images), torch.from_numpy(labels))] * STEPS
    return net, batches, torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)


def run_kit(network: str, outcome: Outcome) -> None:
    import utils

    net, batches, optimizer = torch_parts(network, outcome)
    # `fit` also tests after each epoch, here on one batch; its clock counts that as well.
    history = utils.fit(net, batches, batches[:1], optimizer=optimizer, epochs=EPOCHS, verbose=False)
    outcome.starts, outcome.ends = [0.0] * EPOCHS, history.seconds
    outcome.loss = history.train_loss[-1]


def run_pytorch(network: str, outcome: Outcome) -> None:
    import torch.nn.functional as F

    net, batches, optimizer = torch_parts(network, outcome)
    for _ in range(EPOCHS):
        outcome.start_epoch()
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            outcome.loss = loss.item()
        outcome.end_epoch()


def run_lightning(network: str, outcome: Outcome) -> None:
    import lightning
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    net, batches, optimizer = torch_parts(network, outcome)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, _: int) -> Any:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
            self.last = outputs["loss"]

        def configure_optimizers(self) -> Any:
            return optimizer

    clock = lightning.pytorch.callbacks.LambdaCallback(
        on_train_epoch_start=outcome.start_epoch, on_train_epoch_end=outcome.end_epoch
    )
    module = Module()
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=1, callbacks=[clock], **off)
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    outcome.loss = module.last.item()


def run_fastai(network: str, outcome: Outcome) -> None:
    import torch.nn.functional as F
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    net, batches, _ = torch_parts(network, outcome)

    class Clock(Callback):
        def before_train(self) -> None:
            outcome.start_epoch()

        def after_train(self) -> None:
            outcome.end_epoch()

        def after_batch(self) -> None:
            self.learn.last = self.learn.loss

    def sgd(params: Any, lr: float) -> Any:
        return SGD(params, lr=lr, mom=MOMENTUM)

    learner = Learner(DataLoaders(batches, batches[:1]), net, F.cross_entropy, opt_func=sgd, lr=LR, cbs=[Clock()])
    with learner.no_logging():
        learner.fit(EPOCHS)
    outcome.loss = float(learner.last)


# --------------------------------------------------------------------------------------------------- On Keras


def keras_attention() -> Any:
    """Return a Keras layer that does what model.ChannelAttention does."""
    from keras import layers, ops

    class ChannelAttention(layers.Layer):
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(3, 1), initializer="zeros")

        def call(self, maps: Any) -> Any:
            means = ops.pad(ops.mean(maps, axis=(1, 2)), ((0, 0), (1, 1)))
            neighbours = ops.stack([means[:, :-2], means[:, 1:-1], means[:, 2:]], axis=-1)
            factors = 2 * ops.sigmoid(ops.matmul(neighbours, self.kernel))  # (N, C, 1)
            return maps * ops.transpose(factors, (0, 2, 1))[:, None]

    return ChannelAttention()


def keras_layers(net: Any) -> list[Any]:
    """The Keras layers that do what the layers of `net`, which run one behind the other, do."""
    from keras import layers
    from torch import nn

    from model import ChannelAttention

    activations = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hard_swish"}
    result: list[Any] = []
    for layer in (module for module in net.modules() if not list(module.children())):
        if isinstance(layer, nn.Conv2d):
            padding = "same" if layer.padding[0] and layer.stride == (1, 1) else "valid"
            if layer.padding[0] and padding == "valid":  # with a stride, Keras's "same" pads one side only
                result.append(layers.ZeroPadding2D(layer.padding))
            common = {"strides": layer.stride, "padding": padding, "use_bias": layer.bias is not None}
            if layer.groups == 1:
                result.append(layers.Conv2D(layer.out_channels, layer.kernel_size, **common))
            else:
                result.append(layers.DepthwiseConv2D(layer.kernel_size, **common))
        elif isinstance(layer, nn.BatchNorm2d):
            result.append(layers.BatchNormalization(momentum=0.9, epsilon=layer.eps))
        elif type(layer) in activations:
            result.append(layers.Activation(activations[type(layer)]))
        elif isinstance(layer, ChannelAttention):
            result.append(keras_attention())
        elif isinstance(layer, nn.MaxPool2d):
            result.append(layers.MaxPooling2D(layer.kernel_size, layer.stride))
        elif isinstance(layer, nn.AvgPool2d):
            result += [layers.ZeroPadding2D(layer.padding)] if layer.padding else []
            result.append(layers.AveragePooling2D(layer.kernel_size, layer.stride))
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1:
            result.append(layers.GlobalAveragePooling2D(keepdims=True))
        elif not (isinstance(layer, nn.Flatten) or (isinstance(layer, nn.Dropout) and layer.p == 0)):
            raise NotImplementedError(f"{type(layer).__name__} has no counterpart in keras_layers: add it")
    return [*result, layers.Flatten()]


def run_keras(network: str, outcome: Outcome) -> None:
    import keras

    import model

    images, labels = arrays()
    images = np.tile(images.transpose(0, 2, 3, 1), (STEPS, 1, 1, 1))
    net = keras.Sequential([keras.Input((28, 28, 1)), *keras_layers(getattr(model, network)())])
    outcome.parameters = sum(math.prod(weight.shape) for weight in net.trainable_weights)
    net.compile(
        optimizer=keras.optimizers.SGD(LR, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    clock = keras.callbacks.LambdaCallback(on_epoch_begin=outcome.start_epoch, on_epoch_end=outcome.end_epoch)
    options = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "shuffle": False, "verbose": 0, "callbacks": [clock]}
    outcome.loss = net.fit(images, np.tile(labels, STEPS), **options).history["loss"][-1]


def run_keras_on(backend: str) -> Callable[[str, Outcome], None]:
    def run(network: str, outcome: Outcome) -> None:
        os.environ["KERAS_BACKEND"] = backend
        run_keras(network, outcome)

    return run


# ------------------------------------------------------------------------------------------------- All of them

# name: (what must be installed, what runs it)
FRAMEWORKS: dict[str, tuple[list[str], Callable[[str, Outcome], None]]] = {
    "this kit": (["torch"], run_kit),
    "PyTorch, a plain loop": (["torch"], run_pytorch),
    "Lightning": (["lightning"], run_lightning),
    "fastai": (["fastai"], run_fastai),
    "Keras on TensorFlow": (["keras", "tensorflow"], run_keras_on("tensorflow")),
    "Keras on JAX": (["keras", "jax"], run_keras_on("jax")),
}


def present() -> list[str]:
    """Return the names of the frameworks that are installed here."""
    return [name for name, (packages, _) in FRAMEWORKS.items() if all(map(importlib.util.find_spec, packages))]


def time_step(network: str, framework: str) -> dict[str, Any]:
    """Train `network`, a class of model.py, in `framework`; the seconds of a step and the framework's versions.

    Raises ValueError if the framework trained another number of parameters or the loss is not finite.
    """
    import model

    packages, run = FRAMEWORKS[framework]
    outcome = Outcome()
    run(network, outcome)
    expected = model.count_parameters(getattr(model, network)())
    if outcome.parameters != expected:
        raise ValueError(f"{framework} trained {outcome.parameters:,} parameters; {network} has {expected:,}")
    if not math.isfinite(outcome.loss):
        raise ValueError(f"{framework} ended with the loss {outcome.loss}; expected a finite one")
    versions = {name: importlib.import_module(name).__version__ for name in packages}
    return {"step_s": outcome.step_seconds(), "loss": outcome.loss, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(time_step(*sys.argv[1:])))
