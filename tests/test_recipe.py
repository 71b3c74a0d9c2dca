"""Recipe and train_network: every setting in one place, and any number of images."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import utils
from kit.settings import as_plain
from utils import Recipe

ROOT = Path(__file__).resolve().parent.parent


def random_data(count: int) -> utils.ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return utils.ImageData(images, torch.arange(count) % 2)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def train(net: nn.Module, count: int, recipe: Recipe, **arguments) -> utils.History:
    return utils.train_network(net, random_data(count), random_data(20), recipe, verbose=False, **arguments)


# --- The settings


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 2.0, ValueError),
        ("epochs", True, ValueError),
        ("batch_size", "128", ValueError),
        ("plain_epochs", -1, ValueError),
        ("plain_epochs", math.nan, ValueError),
        ("lr", 0, ValueError),
        ("lr", math.nan, ValueError),
        ("lr", math.inf, ValueError),
        ("lr", True, ValueError),
        ("lr", "0.1", ValueError),
        ("subsample", 0, ValueError),
        ("subsample", 1.01, ValueError),
        ("warmup", 1.1, ValueError),
        ("warmup", math.nan, ValueError),
        ("optimizer", "SGD", TypeError),
        ("augment", True, TypeError),
        ("criterion", None, TypeError),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, value, error):
    with pytest.raises(error, match=f"{setting} is {value!r}; expected"):
        Recipe(**{setting: value})


def test_a_class_where_an_object_is_called_is_refused():
    with pytest.raises(TypeError, match=r"criterion is the class CrossEntropyLoss; .*: CrossEntropyLoss\(\)"):
        Recipe(criterion=nn.CrossEntropyLoss)
    with pytest.raises(TypeError, match="augment is False; expected something to call"):
        Recipe(augment=False)


def test_numpy_numbers_become_plain_numbers():
    recipe = Recipe(epochs=np.int64(2), batch_size=np.int32(16), lr=np.float32(0.5), warmup=np.float64(0.5))
    assert recipe == Recipe(epochs=2, batch_size=16, lr=0.5, warmup=0.5)
    assert {type(getattr(recipe, name)) for name in ("epochs", "batch_size")} == {int}
    assert {type(getattr(recipe, name)) for name in ("lr", "warmup")} == {float}


def test_a_recipe_is_plain_data_and_the_same_in_every_process():
    code = "import json, utils; from kit.settings import as_plain; print(json.dumps(as_plain(utils.Recipe())))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(as_plain(Recipe()))) == as_plain(Recipe())
    assert as_plain(Recipe()) != as_plain(replace(Recipe(), augment=utils.Augment(rotation=5)))


# --- Training


def test_five_epochs_are_five_epochs_and_end_at_a_learning_rate_of_zero():
    made = []

    class Recorder(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            made.append(self)

    recipe = replace(Recipe(), epochs=5, batch_size=16, optimizer=Recorder, lr=0.1)
    history = train(small_net(), 64, recipe)
    assert len(history) == 5 and made[0].param_groups[0]["lr"] == 0
    assert max(history.learning_rate) == pytest.approx(0.1)


def test_a_share_of_the_images_is_trained_on_and_the_learning_rate_still_ends_at_zero():
    made, sizes = [], []

    class Recorder(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            made.append(self)

    def augment(images, generator):
        sizes.append(len(images))
        return images

    settings = {"epochs": 3, "batch_size": 16, "optimizer": Recorder, "lr": 0.1, "augment": augment, "plain_epochs": 0}
    train(small_net(), 100, replace(Recipe(), **settings, subsample=0.5))
    assert sizes == [16] * 6 + [4] + [16] * 3 + [16] * 3
    assert made[0].param_groups[0]["lr"] == 0


def test_the_losses_of_a_training_are_those_of_its_network():
    net, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), random_data(100)
    batches = utils.Batches(data, 16, shuffle=True, subsample=0.5, seed=0)
    utils.fit(net, batches, utils.Batches(data), epochs=1, optimizer=torch.optim.SGD(net.parameters(), lr=1e-9))
    ((images, labels),) = utils.Batches(data, 100)
    assert torch.allclose(batches.losses, nn.CrossEntropyLoss(reduction="none")(net(images), labels), atol=1e-4)


def test_a_recipe_shows_every_setting_on_a_line_of_its_own():
    lines = repr(Recipe(optimizer=functools.partial(torch.optim.SGD, momentum=0.9))).splitlines()
    assert lines[0] == "Recipe(" and lines[-1] == ")" and len(lines) == 2 + len(fields(Recipe))
    assert "    epochs=15," in lines and "    schedule=linear_schedule," in lines
    assert any(line.startswith("    optimizer=functools.partial(") and "momentum=0.9" in line for line in lines)


@pytest.mark.parametrize(("plain_epochs", "augmented"), [(0, 3), (1, 2), (3, 0), (99, 0)])
def test_the_last_epochs_are_not_augmented(plain_epochs, augmented):
    calls = []

    def augment(images, generator):
        calls.append(len(images))
        return images

    recipe = Recipe(epochs=3, batch_size=16, augment=augment, plain_epochs=plain_epochs)
    train(small_net(), 32, recipe)
    assert len(calls) == 2 * augmented


@pytest.mark.parametrize(("count", "steps"), [(32, 2), (33, 2), (34, 3), (17, 1), (2, 1)])
def test_any_number_of_images_trains_a_network_with_batchnorm(count, steps):
    net = small_net()
    train(net, count, Recipe(epochs=1, batch_size=16))
    assert net[2].num_batches_tracked == steps


def test_one_image_and_batches_of_one_train_where_the_network_can():
    for recipe in (Recipe(epochs=1), Recipe(epochs=1, batch_size=1)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        before = net[1].weight.clone()
        train(net, 1, recipe)
        assert not torch.equal(net[1].weight, before)


def test_the_seed_determines_the_run():
    losses = [train(small_net(), 33, Recipe(epochs=2, batch_size=16), seed=seed).train_loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_arguments_train_on_batches_of_your_own():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 2), batch_size=10
    )
    net = small_net()
    momentum = functools.partial(torch.optim.SGD, momentum=0.9)
    recipe = Recipe(epochs=2, optimizer=momentum, test_criterion=nn.MultiMarginLoss())
    history = utils.fit(net, loader, loader, verbose=False, **recipe.arguments(net, len(loader)))
    assert len(history) == 2
    assert history.test_loss[-1] == utils.evaluate(net, loader, criterion=nn.MultiMarginLoss()).loss


def test_the_checkpoint_holds_the_recipe_as_plain_data(tmp_path):
    recipe = Recipe(epochs=1, batch_size=8, warmup=0.5)
    train(small_net(), 16, recipe, checkpoint=tmp_path / "net.pt")
    assert utils.load_checkpoint(tmp_path / "net.pt")["settings"]["recipe"] == as_plain(recipe)
