"""Batches, augmentation, training and prediction: what the loops promise to any data set and any model."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import subprocess
import sys
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


def test_seeds_are_whole_numbers_of_python_or_numpy():
    import numpy

    data = utils.ImageData(torch.rand(40, 1, 2, 2), torch.arange(40) % 10)
    calls = (
        utils.seed_everything,
        lambda seed: utils.Batches(data, 4, seed=seed),
        lambda seed: utils.split(data, 9, seed=seed),
    )
    for call in calls:
        call(numpy.int64(3))
        for wrong in (-1, 1.5, True, "3"):
            with pytest.raises(ValueError, match=f"seed is {wrong!r}; expected a whole number of at least 0"):
                call(wrong)
    with pytest.raises(ValueError, match=r"seed is 4294967296; expected a whole number from 0 to 2\*\*32 - 1"):
        utils.seed_everything(2**32)
    assert utils.Batches(data, 4, shuffle=True, seed=numpy.int64(3)).seed == 3


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


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"inputs": torch.zeros(4, 5), "labels": torch.zeros(4)}, "dict"),
        ((torch.zeros(4, 5), torch.zeros(4), torch.zeros(4)), "['Tensor', 'Tensor', 'Tensor']"),
        ((torch.zeros(4, 5), [0, 1, 0, 1]), "['Tensor', 'list']"),
    ],
)
def test_a_batch_that_is_no_pair_of_tensors_is_named(batch, found):
    net = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for call in (lambda: utils.train_epoch(net, [batch], optimizer), lambda: utils.evaluate(net, [batch])):
        with pytest.raises(TypeError, match=re.escape(f"batch 1 is {found}; expected a pair of tensors")):
            call()


@pytest.mark.parametrize("returned", [None, 0.3, (torch.tensor(0.3),)])
def test_a_criterion_that_returns_no_tensor_is_named(returned):
    batches = [(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(TypeError, match=f"criterion returned {type(returned).__name__}; expected a tensor"):
        utils.evaluate(nn.Linear(5, 2), batches, criterion=lambda logits, labels: returned)


def test_a_network_in_double_precision_has_its_loss_in_double_precision():
    torch.manual_seed(0)
    net, weights = nn.Linear(5, 2).double(), torch.tensor([1.0, 3.0], dtype=torch.float64)
    inputs, labels = torch.rand(8, 5, dtype=torch.float64), torch.arange(8) % 2
    expected = F.cross_entropy(net(inputs), labels, weights).item()
    assert utils.evaluate(net, [(inputs, labels)], criterion=nn.CrossEntropyLoss(weights)).loss == pytest.approx(
        expected, rel=1e-12
    )


def test_a_criterion_that_draws_is_still_in_a_test():
    class Noisy(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            return super().forward(F.dropout(logits, training=self.training), labels)

    batches, criterion = [(torch.ones(64, 5), torch.zeros(64, dtype=torch.long))], Noisy()
    net = nn.Linear(5, 2)
    losses = {utils.evaluate(net, batches, criterion=criterion).loss for _ in range(3)}
    assert len(losses) == 1 and criterion.training


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


@pytest.mark.parametrize("in_batch_sampler", [False, True])
def test_fit_tells_batches_and_samplers_which_epoch_it_is(in_batch_sampler):
    class Sampler(torch.utils.data.SequentialSampler):
        def __init__(self, data):
            super().__init__(data)
            self.told = []

        def set_epoch(self, epoch):
            self.told.append(epoch)

    data = torch.utils.data.TensorDataset(torch.rand(8, 3), torch.arange(8) % 2)
    sampler = Sampler(data)
    by_batch = {"batch_sampler": torch.utils.data.BatchSampler(sampler, 4, drop_last=False)}
    given = by_batch if in_batch_sampler else {"sampler": sampler, "batch_size": 4}
    loader = torch.utils.data.DataLoader(data, **given)
    net = torch.nn.Linear(3, 2)
    utils.fit(net, loader, loader, epochs=3, optimizer=torch.optim.SGD(net.parameters(), 0.1), verbose=False)
    assert sampler.told == [0, 1, 2]


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
