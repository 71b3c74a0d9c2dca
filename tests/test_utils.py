"""Batches, augmentation, training and prediction: what the loops promise to any data set and any model."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import model
import utils
from utils import Augment, Batches, ImageData

ROOT = Path(__file__).resolve().parent.parent


def random_data(count: int = 64, classes: int = 10, channels: int = 1, seed: int = 0) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, 28, 28), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.arange(count) % classes)


def train_a_little(seed: int, epochs: int = 2) -> utils.History:
    utils.seed_everything(seed)
    net = model.Net(dropout=0.1)
    batches = Batches(random_data(), 16, augment=Augment(), shuffle=True, seed=seed)
    recipe = dataclasses.replace(utils.Recipe(), epochs=epochs).arguments(net, len(batches))
    return utils.fit(net, batches, batches_of(), verbose=False, **recipe)


def batches_of(batch_size: int = 16) -> Batches:
    return Batches(random_data(seed=1), batch_size)


# --- Setup


def test_importing_the_kit_changes_no_global_state():
    code = """
import random, sys, warnings
import numpy, torch
torch.manual_seed(1), random.seed(1), numpy.random.seed(1)
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
            torch.get_default_dtype(), torch.get_num_threads(), list(warnings.filters))
before = state()
import model, utils
assert state() == before
print(sorted({name.split(".")[0] for name in sys.modules} & {"matplotlib", "torchvision", "torchsummary", "scipy"}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_get_device_refuses_what_is_not_there():
    assert utils.get_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="prefer is 'abacus'"):
        utils.get_device("abacus")


def test_seed_everything_seeds_torch_python_and_numpy():
    import random

    import numpy

    def draw():
        utils.seed_everything(3)
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    assert draw() == draw()
    with pytest.raises(ValueError, match="seed is -1"):
        utils.seed_everything(-1)


# --- Batches


def test_batches_without_shuffle_are_ordered_repeatable_and_normalised():
    data = random_data()
    batches = Batches(data, 10)
    assert len(batches) == len(list(batches)) == 7
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(labels, data.labels)
    expected = (data.images.float() / 255 - data.mean[0]) / data.std[0]
    assert torch.allclose(images, expected, atol=1e-5)
    again = torch.cat([images for images, _ in batches])
    assert torch.equal(images, again)


def test_shuffle_visits_every_image_once_in_an_order_that_the_seed_decides():
    data = ImageData(torch.zeros(50, 1, 4, 4, dtype=torch.uint8), torch.arange(50), mean=(0.0,), std=(1.0,))

    def order(batches):
        return torch.cat([labels for _, labels in batches]).tolist()

    batches = Batches(data, 8, shuffle=True, seed=5)
    first, second = order(batches), order(batches)
    assert sorted(first) == list(range(50)) and first != second
    assert order(Batches(data, 8, shuffle=True, seed=5)) == first
    assert order(Batches(data, 8, shuffle=True, seed=6)) != first


def test_augmented_batches_are_reproducible_whatever_the_global_generator_and_threads():
    def draw(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        try:
            return [images for images, _ in Batches(random_data(), 16, augment=Augment(), shuffle=True, seed=1)]
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(one, two) for one, two in zip(draw(1), draw(2), strict=True))


def test_test_batches_use_the_statistics_of_the_training_images():
    train = random_data()
    dark = train.images // 4
    test = ImageData(dark, train.labels, train.classes, mean=train.mean, std=train.std)
    images, _ = next(iter(Batches(test, 64)))
    assert torch.allclose(images, (dark.float() / 255 - train.mean[0]) / train.std[0], atol=1e-5)


def test_batches_refuse_what_is_no_data_set_and_impossible_sizes():
    with pytest.raises(TypeError, match="as_tensors"):
        Batches([(1, 2)], 4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Batches(random_data(), 0)


# --- Augment


def test_augmentation_differs_within_a_batch_and_keeps_shape_dtype_and_background():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 10:18, 12:16] = 1.0
    changed = Augment()(image.expand(16, -1, -1, -1), torch.Generator().manual_seed(0))
    assert changed.shape == (16, 1, 28, 28) and changed.dtype == torch.float32
    assert len({tuple(one.flatten().tolist()) for one in changed}) == 16
    assert changed.min() == 0 and changed.max() <= 1
    assert (changed[..., 0, :] == 0).all() and (changed[..., :, 0] == 0).all()


def test_augmentation_is_reproducible_and_no_change_is_no_change():
    images = torch.rand(8, 3, 20, 30)
    augment = Augment(elastic=1.0, erasing=0.5)
    once, twice = (augment(images, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(once, twice)
    still = Augment(rotation=0, translation=0, scale=0, shear=0)
    assert torch.allclose(still(images), images, atol=1e-4)


@pytest.mark.parametrize(
    ("limits", "moved"),
    [({"translation": 0.25}, 7.0), ({"rotation": 90}, None), ({"scale": 0.5}, None), ({"shear": 45}, None)],
)
def test_each_kind_of_change_stays_within_its_limit(limits, moved):
    none = {"rotation": 0, "translation": 0, "scale": 0, "shear": 0}
    images = torch.zeros(500, 1, 28, 28)
    images[..., 11:17, 11:17] = 1.0
    changed = Augment(**{**none, **limits})(images, torch.Generator().manual_seed(0))
    mass = changed.sum((1, 2, 3))
    places = torch.arange(28.0)
    centre_x = (changed.sum((1, 2)) * places).sum(1) / mass - 13.5
    centre_y = (changed.sum((1, 3)) * places).sum(1) / mass - 13.5
    if moved:  # a quarter of 28 pixels, either way
        assert 0.95 * moved < centre_x.abs().max() <= moved + 0.01
        assert 0.95 * moved < centre_y.abs().max() <= moved + 0.01
    else:  # all others keep the centre
        assert centre_x.abs().max() < 0.05 and centre_y.abs().max() < 0.05
    if "scale" in limits:  # areas from (1 - 0.5)**2 to (1 + 0.5)**2
        assert mass.min() < 36 * 0.35 and 36 * 1.9 < mass.max() < 36 * 2.35
    elif not moved:  # rotation and shear keep the area
        assert (mass - 36).abs().max() < 1.5


def test_rotation_keeps_lengths_in_images_that_are_not_square():
    images = torch.zeros(1, 1, 28, 56)
    images[..., 13:15, 18:38] = 1.0  # a bar 20 wide and 2 high
    turned = Augment(rotation=90, translation=0, scale=0, shear=0)(images.expand(64, -1, -1, -1), None)
    assert (turned.sum((1, 2, 3)) - 40).abs().max() < 2


def test_erasing_blanks_some_images_and_not_others():
    changed = Augment(rotation=0, translation=0, scale=0, shear=0, erasing=0.5)(torch.ones(400, 1, 28, 28))
    blank = (changed < 0.5).float().mean((1, 2, 3))
    erased = blank[blank > 0]
    assert 150 < len(erased) < 250
    assert erased.min() > 0.005 and erased.max() < 0.25


@pytest.mark.parametrize(("name", "value"), [("erasing", 1.5), ("rotation", -1), ("scale", math.nan)])
def test_augment_refuses_impossible_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        Augment(**{name: value})


def test_augment_refuses_uint8():
    with pytest.raises(ValueError, match=r"expected floats \(N, C, H, W\)"):
        Augment()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


# --- Training


def test_overfits_64_images():
    utils.seed_everything(0)
    net = model.Net()
    batches = Batches(random_data(), 64)
    recipe = dataclasses.replace(utils.Recipe(), epochs=60).arguments(net, 1)
    history = utils.fit(net, batches, batches, verbose=False, **recipe)
    assert history.train_accuracy[-1] == 100


def test_the_same_seed_gives_the_same_losses_to_the_bit_and_another_does_not():
    first, second, other = train_a_little(0), train_a_little(0), train_a_little(1)
    assert first.train_loss == second.train_loss and first.test_loss == second.test_loss
    assert first.train_loss != other.train_loss


def test_history_has_one_entry_per_epoch_and_plain_numbers():
    history = train_a_little(0, epochs=3)
    assert len(history) == 3
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds"):
        values = getattr(history, name)
        assert len(values) == 3 and all(type(value) is float for value in values)


def test_evaluate_changes_nothing_and_does_not_depend_on_the_batch_size():
    net = model.Net(dropout=0.5).train()
    net(torch.randn(32, 1, 28, 28))  # BatchNorm statistics that are not the initial ones
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    one, all_at_once = utils.evaluate(net, batches_of(7)), utils.evaluate(net, batches_of(64))
    assert one.loss == pytest.approx(all_at_once.loss, abs=1e-5) and one.accuracy == all_at_once.accuracy
    assert net.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_evaluate_leaves_frozen_layers_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10).eval())
    utils.evaluate(net.train(), batches_of())
    net[2].eval()
    utils.evaluate(net, batches_of())
    assert net.training and net[1].training and not net[2].training


def test_metrics_are_weighted_by_batch_size():
    logits = torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 9.0]])
    batches = [(logits[:3], torch.tensor([0, 0, 0])), (logits[3:], torch.tensor([0]))]
    metrics = utils.evaluate(nn.Identity(), batches)
    assert metrics.accuracy == 75.0
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)).item())


def test_fit_trains_a_linear_model_with_another_loss_from_a_stock_dataloader(capsys):
    torch.manual_seed(0)
    inputs = torch.randn(200, 5)
    labels = (inputs[:, 0] > 0).long()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=20, shuffle=True)
    net = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    seen = []
    history = utils.fit(
        net,
        loader,
        loader,
        epochs=4,
        optimizer=optimizer,
        criterion=nn.MultiMarginLoss(),
        on_epoch=lambda h: seen.append(len(h)),
    )
    assert history.test_accuracy[-1] > 95
    assert seen == [1, 2, 3, 4]
    assert capsys.readouterr().out.count("\n") == 4  # one line an epoch


def test_the_scheduler_is_stepped_as_the_caller_says():
    for step, expected in (("epoch", [1.0, 0.5]), ("batch", [1.0, 0.5**4])):
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        history = utils.fit(
            net,
            batches_of(),
            batches_of(),
            epochs=2,
            optimizer=optimizer,
            scheduler=scheduler,
            scheduler_step=step,
            verbose=False,
        )
        assert history.learning_rate == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where():
    data = random_data(32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    calls = []
    test_batch = next(iter(Batches(data, 32)))

    def criterion(logits, labels):
        calls.append(1)
        return F.cross_entropy(logits, labels) * (math.nan if len(calls) == 5 else 1)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with pytest.raises(utils.NonFiniteLoss, match=r"epoch 2: the loss is nan at batch 2, learning rate 0.01") as caught:
        utils.fit(
            net,
            Batches(data, 16),
            [test_batch],
            epochs=3,
            optimizer=optimizer,
            criterion=criterion,
            verbose=False,
        )
    assert len(caught.value.history) == 1


def test_nan_in_the_inputs_is_named_as_such():
    inputs = torch.zeros(4, 5)
    inputs[2, 3] = math.nan
    net = nn.Linear(5, 2)
    with pytest.raises(utils.NonFiniteLoss, match="the inputs of batch 1 hold NaN"):
        utils.train_epoch(net, [(inputs, torch.zeros(4, dtype=torch.long))], torch.optim.SGD(net.parameters(), 0.1))


@pytest.mark.parametrize(("argument", "value"), [("epochs", 0), ("epochs", 1.5), ("scheduler_step", "week")])
def test_fit_refuses_bad_arguments_by_name(argument, value):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        utils.fit(
            net,
            batches_of(),
            batches_of(),
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
            **{argument: value},
        )


def test_an_empty_iterable_is_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no images"):
        utils.train_epoch(net, [], torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(ValueError, match="no images"):
        utils.evaluate(net, [])


# --- Prediction


def test_predict_gives_probabilities_for_one_image_and_for_many():
    data, net = random_data(), model.Net()
    many = utils.predict(net, data.images, data=data)
    assert many.shape == (64, 10) and torch.allclose(many.sum(1), torch.ones(64))
    assert torch.allclose(utils.predict(net, data.images[3], data=data), many[3], atol=1e-6)
    normalised, _ = next(iter(Batches(data, 64)))
    assert torch.allclose(utils.predict(net, normalised), many, atol=1e-5)
    assert net.training


def test_predict_says_what_uint8_images_need():
    with pytest.raises(ValueError, match="data=train"):
        utils.predict(model.Net(), random_data().images)


def test_the_bar_shows_running_loss_and_accuracy(monkeypatch):
    shown = []
    monkeypatch.setattr(utils.tqdm, "set_postfix_str", lambda self, text: shown.append(text), raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    batches = [(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))] * 50
    net = nn.Linear(2, 2)
    nn.init.eye_(net.weight), nn.init.zeros_(net.bias)
    utils.train_epoch(net, batches, torch.optim.SGD(net.parameters(), lr=0.0), progress="epoch 1/1")
    assert shown == ["loss 4.5001, accuracy 50.00 %"]


@pytest.mark.parametrize("own_generator", [False, True])
def test_the_number_of_a_dataloaders_workers_changes_nothing(own_generator):
    data = random_data()
    dataset = TensorDataset(data.images.float() / 255, data.labels)

    def losses(workers):
        utils.seed_everything(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        generator = torch.Generator().manual_seed(0) if own_generator else None
        loader = DataLoader(dataset, 16, shuffle=True, num_workers=workers, generator=generator)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return utils.fit(net, loader, batches_of(), epochs=2, optimizer=optimizer, verbose=False).train_loss

    assert losses(0) == losses(2)


def test_an_epoch_iterates_the_batches_once():
    class Counting(list):
        passes = 0

        def __iter__(self):
            Counting.passes += 1
            return super().__iter__()

    net = nn.Linear(2, 2)
    batches = Counting([(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))])
    utils.train_epoch(net, batches, torch.optim.SGD(net.parameters(), lr=0.1))
    assert Counting.passes == 1


def full_gpu(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_a_full_gpu_is_answered_with_what_to_do(monkeypatch):
    data = utils.ImageData(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4))
    batches, net = (
        utils.Batches(data, 2, device="cpu"),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 4)),
    )
    monkeypatch.setattr(net[1], "forward", full_gpu)
    with pytest.raises(torch.OutOfMemoryError, match=r"epoch 1: .*smaller batches.*\n.*Tried to allocate 2 GiB"):
        utils.fit(net, batches, batches, epochs=1, optimizer=torch.optim.SGD(net.parameters(), 0.1), verbose=False)
    monkeypatch.setattr(torch.Tensor, "to", full_gpu)
    with pytest.raises(torch.OutOfMemoryError, match="give device='cpu'"):
        utils.Batches(data, 2, device="cpu")


def test_later_epochs_show_the_images_as_they_are():
    data = random_data()
    plain = torch.cat([images for images, _ in Batches(data, 16, device="cpu")])
    batches = Batches(data, 16, augment=Augment(), augment_epochs=1, device="cpu", seed=0)
    seen = []
    for epoch in (0, 1, 2, 0):
        batches.set_epoch(epoch)
        seen.append(torch.cat([images for images, _ in batches]))
    assert torch.equal(seen[1], plain) and torch.equal(seen[2], plain)
    assert not torch.equal(seen[0], plain) and not torch.equal(seen[3], plain)
    with pytest.raises(ValueError, match="augment_epochs is -1"):
        Batches(data, 16, augment_epochs=-1)


def test_fit_tells_batches_and_samplers_which_epoch_it_is():
    class Sampler(torch.utils.data.SequentialSampler):
        told: typing.ClassVar[list] = []

        def set_epoch(self, epoch):
            self.told.append(epoch)

    data = torch.utils.data.TensorDataset(torch.rand(8, 3), torch.arange(8) % 2)
    loader = torch.utils.data.DataLoader(data, 4, sampler=Sampler(data))
    net = torch.nn.Linear(3, 2)
    utils.fit(net, loader, loader, epochs=3, optimizer=torch.optim.SGD(net.parameters(), 0.1), verbose=False)
    assert Sampler.told == [0, 1, 2]


def test_shifted_views_are_the_mean_over_the_image_and_its_neighbours():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, stride=2), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    images = torch.zeros(2, 1, 12, 12)
    images[:, :, 4:8, 4:8] = torch.rand(2, 1, 4, 4)  # away from the border, where rolling is shifting
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    expected = torch.stack([net(images.roll(shift, (2, 3))) for shift in shifts]).mean(0)
    views = utils.ShiftedViews(net)
    torch.testing.assert_close(views(images), expected)
    assert views(torch.rand(2, 1, 12, 12)).shape == (2, 4)
    assert sum(p.numel() for p in views.parameters()) == sum(p.numel() for p in net.parameters())


PAGE_FAULTS = """
import resource, torch, utils
utils.keep_freed_memory()
take = lambda: [torch.ones(1 << 20) for _ in range(4)]  # four times 4 MB, gone at once
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back at once")
def test_freed_memory_is_kept_and_settings_of_the_environment_stay():
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def page_faults(**settings) -> int:
        command = [sys.executable, "-c", PAGE_FAULTS]
        done = subprocess.run(command, cwd=ROOT, env={**bare, **settings}, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert page_faults() < 5_000 < 20_000 < page_faults(MALLOC_TRIM_THRESHOLD_="0")
