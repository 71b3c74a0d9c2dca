"""Nothing lost, nothing silent: exact resume, interrupts, and files that are damaged, foreign or hostile."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, TensorDataset

import model
import utils
from kit import checkpoints

EPOCHS = 3


def small_data(seed: int = 0, count: int = 48) -> utils.ImageData:
    generator = torch.Generator().manual_seed(seed)
    return utils.ImageData(
        torch.randint(0, 256, (count, 1, 20, 20), generator=generator, dtype=torch.uint8), torch.arange(count) % 10
    )


OPTIMIZERS = {
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=0.01),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "muon": lambda net: utils.Muon(net.parameters(), 0.05),
}


def run(path, optimizer="adamw", *, seed=0, epochs=EPOCHS, dropout=0.2, count=48, subsample=1, **arguments):
    """One whole call as a user writes it, everything made anew; returns network, optimizer, history."""
    utils.seed_everything(seed)
    net = model.Net(dropout=dropout)
    options = {"augment": utils.Augment(erasing=0.3), "shuffle": True, "subsample": subsample, "seed": seed}
    batches = utils.Batches(small_data(count=count), 16, **options)
    optimizer = OPTIMIZERS[optimizer](net)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(batches))
    test = utils.Batches(small_data(1), 16)
    history = fit(
        net, batches, test, epochs=epochs, optimizer=optimizer, scheduler=scheduler, checkpoint=path, **arguments
    )
    return net, optimizer, history


def fit(*positional, **arguments) -> utils.History:
    """`utils.fit`, silent; after an interrupt the history of the finished epochs, as in a notebook."""
    try:
        return utils.fit(*positional, **{"verbose": False, **arguments})
    except KeyboardInterrupt as stop:
        return stop.history


def stop_after(epoch: int):
    def on_epoch(history):
        if len(history) == epoch:
            raise KeyboardInterrupt

    return on_epoch


def tensors_of(state) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return list(itertools.chain.from_iterable(map(tensors_of, state.values())))
    if isinstance(state, list | tuple):
        return list(itertools.chain.from_iterable(map(tensors_of, state)))
    return []


def assert_equal_to_the_bit(one, two) -> None:
    (net, optimizer, history), (other_net, other_optimizer, other_history) = one, two
    for mine, theirs in ((net, other_net), (optimizer, other_optimizer)):
        first, second = tensors_of(mine.state_dict()), tensors_of(theirs.state_dict())
        assert len(first) == len(second) > 0
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate"):
        assert getattr(history, name) == getattr(other_history, name), name


# --- Exact resume


@pytest.mark.parametrize("average", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, optimizer, epoch, average):
    whole = run(None, optimizer, average=average)
    *_, history = run(tmp_path / "net.pt", optimizer, average=average, on_epoch=stop_after(epoch))
    assert len(history) == epoch
    random.random(), torch.rand(5)  # whatever happens in between must not matter
    assert_equal_to_the_bit(run(tmp_path / "net.pt", optimizer, average=average), whole)


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_the_last_losses_that_images_are_drawn_by_are_resumed_too(tmp_path, epoch):
    whole = run(None, subsample=0.34)
    run(tmp_path / "net.pt", subsample=0.34, on_epoch=stop_after(epoch))
    assert_equal_to_the_bit(run(tmp_path / "net.pt", subsample=0.34), whole)
    with pytest.raises(ValueError, match=r"train_batches\.subsample: saved 0\.34, now 0\.67"):
        run(tmp_path / "net.pt", subsample=0.67)


class Stopping(utils.Batches):
    """Batches that press Ctrl-C in the second epoch."""

    stops = False

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if self.stops and self.epoch == 1 and number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_from_the_last_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "Batches", Stopping)
    monkeypatch.setattr(Stopping, "stops", True)
    *_, history = run(tmp_path / "net.pt", average=0.3)
    assert len(history) == 1
    monkeypatch.setattr(Stopping, "stops", False)
    assert_equal_to_the_bit(run(tmp_path / "net.pt", average=0.3), run(None, average=0.3))


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_stock_dataloader_resumes_to_the_bit_too(tmp_path, own_generator):
    def train(path, **arguments):
        utils.seed_everything(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        inputs = torch.randn(64, 5)
        dataset = TensorDataset(inputs, (inputs.sum(1) > 0).long())
        optimizer = OPTIMIZERS["sgd"](net)
        generator = torch.Generator().manual_seed(1) if own_generator else None
        history = fit(
            net,
            DataLoader(dataset, 16, sampler=RandomSampler(dataset, generator=generator)),
            DataLoader(dataset, 16),
            epochs=4,
            optimizer=optimizer,
            checkpoint=path,
            **arguments,
        )
        return net, optimizer, history

    train(tmp_path / "net.pt", on_epoch=stop_after(2))
    assert_equal_to_the_bit(train(tmp_path / "net.pt"), train(None))


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    first = run(tmp_path / "net.pt")
    before = (tmp_path / "net.pt").read_bytes()
    assert_equal_to_the_bit(run(tmp_path / "net.pt", verbose=True), first)
    assert (tmp_path / "net.pt").read_bytes() == before
    assert "3 finished epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dropout": 0.3}, "model.modules.layers.*: saved 0.2, now 0.3"),
        ({"epochs": 4}, "epochs: saved 3, now 4"),
        ({"optimizer": "sgd"}, "optimizer.class"),
        ({"count": 64}, "train_batches.data.images"),
        ({"seed": 1}, "train_batches.seed: saved 0, now 1"),
        ({"average": 0.1}, "average: saved 0.0, now 0.1"),
        ({"criterion": nn.MultiMarginLoss()}, "criterion"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, change, named):
    run(tmp_path / "net.pt", on_epoch=stop_after(1))
    before = (tmp_path / "net.pt").read_bytes()
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{named}"):
        run(tmp_path / "net.pt", **change)
    assert (tmp_path / "net.pt").read_bytes() == before


# --- Settings: a run is known by its data and its settings


class Noise:
    """A transform, or an augmentation, with a setting: a plain object, printed with its address in memory."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, images, generator=None):
        return images + self.scale * torch.rand(images.shape, generator=generator)


class Dataset(torch.utils.data.Dataset):
    """64 points of two classes, in memory, with an optional transform."""

    def __init__(self, seed=0, transform=None):
        self.inputs = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed))
        self.transform = transform

    def __len__(self):
        return 64

    def __getitem__(self, index):
        inputs = self.inputs[index]
        return inputs if self.transform is None else self.transform(inputs), int(self.inputs[index, 0] > 0)


class RandomBatches(torch.utils.data.Sampler):
    """A batch sampler with a random generator of its own."""

    def __init__(self, generator, batch_size=16):
        self.generator, self.batch_size = generator, batch_size

    def __iter__(self):
        if isinstance(self.generator, torch.Generator):
            order = torch.randperm(64, generator=self.generator).tolist()
        else:
            order = list(range(64))
            self.generator.shuffle(order)
        yield from (order[start : start + self.batch_size] for start in range(0, 64, self.batch_size))

    def __len__(self):
        return 64 // self.batch_size


def linear_warmup(optimizer, steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))


def frozen(kind):
    def freeze(net):
        if kind is nn.Linear:
            net[0].requires_grad_(False)
        else:
            net[1].eval()

    return freeze


def tiny(path, *, epochs=4, dataset=None, loader=None, groups=(0.1, 0.1), warmup=3, freeze=None, **arguments):
    """A whole call with a DataLoader, two groups of parameters, BatchNorm and dropout, everything made anew."""
    utils.seed_everything(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2))
    if freeze is not None:
        freeze(net)
    dataset = Dataset() if dataset is None else dataset
    batches = DataLoader(dataset, **({"batch_size": 16, "shuffle": True} if loader is None else loader))
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": groups[0]}, {"params": net[3].parameters(), "lr": groups[1]}],
        momentum=0.9,
    )
    scheduler = linear_warmup(optimizer, warmup) if warmup else None
    test = DataLoader(Dataset(1), 32)
    arguments = {"optimizer": optimizer, "scheduler": scheduler, "checkpoint": path, **arguments}
    return net, optimizer, fit(net, batches, test, epochs=epochs, **arguments)


def own(generator):
    return {"batch_sampler": RandomBatches(generator)}


def weighted(*weights, smoothing=0.0):
    return nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("saved", "now", "named"),
    [
        ({}, {"dataset": Dataset(2)}, r"train_batches\.dataset\.inputs\.checksum"),
        (
            {"dataset": Dataset(transform=Noise(0.1))},
            {"dataset": Dataset(transform=Noise(0.2))},
            r"train_batches\.dataset\.transform\.scale: saved 0\.1, now 0\.2",
        ),
        ({}, {"loader": {"batch_size": 16}}, r"train_batches\.sampler\.class"),
        (
            {"loader": own(torch.Generator().manual_seed(1))},
            {"loader": own(torch.Generator().manual_seed(2))},
            r"train_batches\.batch_sampler\.generator\.initial_seed: saved 1, now 2",
        ),
        (
            {"loader": {"batch_size": 16, "shuffle": True, "generator": torch.Generator().manual_seed(1)}},
            {"loader": {"batch_size": 16, "shuffle": True, "generator": torch.Generator().manual_seed(2)}},
            r"train_batches\.generator\.initial_seed: saved 1, now 2",
        ),
        ({"criterion": weighted(1.0, 1.0)}, {"criterion": weighted(1.0, 2.0)}, r"criterion\.weight\.checksum"),
        (
            {"criterion": weighted(1.0, 1.0)},
            {"criterion": weighted(1.0, 1.0, smoothing=0.1)},
            r"criterion\.label_smoothing: saved 0\.0, now 0\.1",
        ),
        ({}, {"test_criterion": nn.MultiMarginLoss()}, r"test_criterion: saved None"),
        ({}, {"warmup": 5}, r"scheduler\.lr_lambdas\[0\]\.captured\.steps: saved 3, now 5"),
        ({}, {"groups": (0.1, 0.2)}, r"optimizer\.groups\[1\]\.initial_lr: saved 0\.1, now 0\.2"),
        ({"warmup": None}, {"warmup": None, "groups": (0.1, 0.2)}, r"optimizer\.groups\[1\]\.lr: saved 0\.1, now 0\.2"),
        ({}, {"freeze": frozen(nn.Linear)}, r"model\.parameters\.0\.weight: .*frozen"),
        ({}, {"freeze": frozen(nn.BatchNorm1d)}, r"model\.modules\.1\.training: saved True, now False"),
    ],
)
def test_every_setting_of_a_run_counts(tmp_path, saved, now, named):
    tiny(tmp_path / "net.pt", on_epoch=stop_after(1), **saved)
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{named}"):
        tiny(tmp_path / "net.pt", **now)


def test_other_images_of_the_same_number_are_another_run(tmp_path, monkeypatch):
    run(tmp_path / "net.pt", on_epoch=stop_after(1))
    monkeypatch.setattr(sys.modules[__name__], "small_data", functools.partial(small_data, count=48, seed=9))
    with pytest.raises(ValueError, match=r"train_batches\.data\.images\.checksum"):
        one = utils.Batches(small_data(), 16, shuffle=True, seed=0)
        net = model.Net(dropout=0.2)
        utils.fit(net, one, one, optimizer=OPTIMIZERS["adamw"](net), epochs=EPOCHS, checkpoint=tmp_path / "net.pt")


@pytest.mark.parametrize(
    "scheduler", ["OneCycleLR", "SequentialLR", "CosineAnnealingWarmRestarts", "MultiStepLR", "ReduceLROnPlateau"]
)
def test_what_moves_during_training_is_no_setting(tmp_path, scheduler):
    """The same objects given to fit a second time, as a notebook does after a stop."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(400, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedulers = torch.optim.lr_scheduler
    made = {
        "OneCycleLR": lambda: schedulers.OneCycleLR(optimizer, 0.1, total_steps=20),
        "SequentialLR": lambda: schedulers.SequentialLR(
            optimizer, [schedulers.ConstantLR(optimizer), schedulers.ExponentialLR(optimizer, 0.9)], milestones=[3]
        ),
        "CosineAnnealingWarmRestarts": lambda: schedulers.CosineAnnealingWarmRestarts(optimizer, 3),
        "MultiStepLR": lambda: schedulers.MultiStepLR(optimizer, [3, 6]),
        "ReduceLROnPlateau": lambda: schedulers.ReduceLROnPlateau(optimizer, patience=0, threshold=9),
    }[scheduler]()
    batches = utils.Batches(small_data(), 16, shuffle=True, seed=0)
    again = functools.partial(
        fit, net, batches, batches, optimizer=optimizer, scheduler=made, epochs=4, checkpoint=tmp_path / "net.pt"
    )
    assert len(again(on_epoch=stop_after(2))) == 2
    assert len(again()) == 4


def test_the_next_schedule_starts_from_the_rate_that_a_plateau_has_reached():
    net = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loader = DataLoader(Dataset(), 16)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9)
    fit(net, loader, loader, optimizer=optimizer, scheduler=plateau, epochs=3)
    reached = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    history = fit(net, loader, loader, optimizer=optimizer, scheduler=schedule, epochs=1)
    assert history.learning_rate == [reached] and reached < 0.1


def test_another_first_rate_of_a_plateau_is_another_run(tmp_path):
    def train(lr, **arguments):
        net = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        batches = DataLoader(Dataset(), 16)
        fit(net, batches, batches, optimizer=optimizer, scheduler=plateau, checkpoint=tmp_path / "net.pt", **arguments)

    train(0.1, epochs=3, on_epoch=stop_after(1))
    with pytest.raises(ValueError, match=r"optimizer\.groups\[0\]\.lr: saved 0\.1, now 0\.2"):
        train(0.2, epochs=3)


@pytest.mark.filterwarnings("ignore:checkpoint. whether these are still the same")
def test_a_long_chain_of_objects_is_no_obstacle(tmp_path):
    class Link:
        def __init__(self, behind):
            self.behind = behind

    chain = None
    for _ in range(10_000):
        chain = Link(chain)

    net, loader = nn.Linear(5, 2), DataLoader(Dataset(), 16)
    net.chain = chain
    history = fit(net, loader, loader, optimizer=OPTIMIZERS["sgd"](net), epochs=1, checkpoint=tmp_path / "net.pt")
    assert len(history) == 1


@dataclasses.dataclass
class Config:
    width: int = 1


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (Config(1), Config(2)),
        (numpy.float32(1), numpy.float32(2)),
        (functools.partial(F.leaky_relu, negative_slope=1), functools.partial(F.leaky_relu, negative_slope=2)),
        (torch.tanh, torch.sigmoid),
        (nn.BatchNorm2d, nn.InstanceNorm2d),
    ],
)
def test_what_a_network_is_set_to_is_compared(tmp_path, saved, now):
    def train(setting, **arguments):
        net = nn.Linear(5, 2)
        net.setting = setting
        loader = DataLoader(Dataset(), 16)
        fit(net, loader, loader, optimizer=OPTIMIZERS["sgd"](net), epochs=2, checkpoint=path, **arguments)

    path = tmp_path / "net.pt"
    train(saved, on_epoch=stop_after(1))
    with pytest.raises(ValueError, match=r"model\.modules\.all\.setting"):
        train(now)
    train(saved)


def test_a_tensor_that_a_network_keeps_is_named_and_may_change(tmp_path, recwarn):
    net, loader = nn.Linear(5, 2), DataLoader(Dataset(), 16)
    net.table = torch.zeros(2)
    arguments = {"optimizer": OPTIMIZERS["sgd"](net), "epochs": 2, "checkpoint": tmp_path / "net.pt"}
    fit(net, loader, loader, on_epoch=stop_after(1), **arguments)
    net.table = torch.ones(2)
    assert len(fit(net, loader, loader, **arguments)) == 2
    (warning,) = recwarn  # the second has the same words
    assert "model.modules.all.table (torch.Tensor)" in str(warning.message)


def test_a_setting_that_training_changes_is_named_after_the_first_epoch(tmp_path):
    class Ramp:
        calls = 0

        def __call__(self, images, generator):
            self.calls += 1
            return images

    net = nn.Sequential(nn.Flatten(), nn.Linear(400, 10))
    train, test = utils.Batches(small_data(), 16, augment=Ramp(), seed=0), utils.Batches(small_data(), 16)
    with pytest.warns(UserWarning, match=r"may not go on exactly.*\n  train_batches\.augment\.calls: was None, now 3$"):
        fit(net, train, test, optimizer=OPTIMIZERS["sgd"](net), epochs=2, checkpoint=tmp_path / "net.pt")


class Counting(nn.CrossEntropyLoss):
    """A criterion with weights, a buffer that moves, and its last loss."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, logits, labels):
        self.calls += 1
        self.last = super().forward(self.scale * logits, labels)
        return self.last


def test_state_that_is_saved_or_derived_brings_no_warning(tmp_path, recwarn):
    def slower(history):
        optimizer.param_groups[0]["lr"] /= 2
        net.eval()

    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    net[1].eval()
    prune.l1_unstructured(net[0], "weight", 0.2)
    criterion = Counting()
    optimizer = OPTIMIZERS["sgd"](nn.ModuleList([net, criterion]))
    loader = DataLoader(Dataset(), batch_sampler=BatchSampler(DistributedSampler(Dataset(), 1, 0), 16, False))
    arguments = {"optimizer": optimizer, "criterion": criterion, "test_criterion": F.cross_entropy, "epochs": 3}
    arguments |= {"checkpoint": tmp_path / "net.pt"}
    fit(net, loader, loader, on_epoch=lambda history: (slower(history), stop_after(2)(history)), **arguments)
    assert not recwarn.list
    with pytest.raises(ValueError, match=r"optimizer\.groups\[0\]\.lr") as refused:  # set by hand, so it is named
        fit(net, loader, loader, **arguments)
    assert "sampler" not in str(refused.value)


def test_of_many_changes_ten_are_named(tmp_path):
    class Caching(Dataset):
        def __init__(self):
            super().__init__()
            self.kept = {}

        def __getitem__(self, index):
            self.kept[index] = index
            return super().__getitem__(index)

    net, loader = nn.Linear(5, 2), DataLoader(Caching(), 16)
    with pytest.warns(UserWarning, match="may not go on exactly") as said:
        fit(net, loader, loader, optimizer=OPTIMIZERS["sgd"](net), epochs=1, checkpoint=tmp_path / "net.pt")
    assert len(said) == 1 and str(said[0].message).endswith("\n  and 118 more")


def test_what_cannot_be_compared_is_named_in_one_warning(tmp_path, recwarn):
    counter, pattern = itertools.count(), re.compile("a")
    augment = functools.partial(lambda images, generator, held: images, held=(counter, pattern))
    net = nn.Sequential(nn.Flatten(), nn.Linear(400, 10))
    batches = utils.Batches(small_data(), 16, augment=augment, seed=0)
    fit(net, batches, batches, optimizer=OPTIMIZERS["sgd"](net), epochs=1, checkpoint=tmp_path / "net.pt")
    assert len(recwarn) == 1
    said = str(recwarn[0].message)
    assert "train_batches.augment.keywords.held[0] (itertools.count)" in said and "held[1] (re.Pattern)" in said


USER_CODE = """
import functools
import torch
teacher = torch.nn.Linear(1, 1)
def decorator(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)
    return wrapper
def helper(values):
    return HELPER * values + 0 * teacher.weight.detach().mean()
class Network(torch.nn.Linear):
    calls = 0
    @decorator
    def forward(self, images):
        Network.calls += 1
        return super().forward(helper(images.flatten(1) * NETWORK))
class Loss(torch.nn.CrossEntropyLoss):
    def forward(self, logits, labels):
        return super().forward(LOSS * logits, labels)
def brighter(images, factor):
    return images * factor * BRIGHTER
class Step:
    def __call__(self, images):
        return images * STEP
class Augment:
    class Last:
        def __call__(self, images):
            return images * NESTED
    def __init__(self):
        self.steps = [functools.partial(brighter, factor=1), Step(), self.Last()]
    def __call__(self, images, generator):
        '''NOTE'''
        for step in self.steps:
            images = step(images)
        return images * AUGMENT
def hook(values):
    return HOOK * values
class Measured:
    def loss(self, logits, labels):
        return METHOD * torch.nn.functional.cross_entropy(logits, labels)
def rate(step):
    return SCHEDULE
def schedule(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
"""


def train_user_code(path, edited=None, **arguments):
    """A run by code of the user's own, in a module in which one number has been edited since."""
    user, code = {"__name__": "mine"}, USER_CODE
    for word in [
        "HELPER",
        "NETWORK",
        "LOSS",
        "AUGMENT",
        "SCHEDULE",
        "NOTE",
        "BRIGHTER",
        "STEP",
        "HOOK",
        "METHOD",
        "NESTED",
    ]:
        code = code.replace(word, "2" if word == edited else "1")
    exec(code, user)
    utils.seed_everything(0)
    net = user["Network"](400, 10)
    net.hook = user["hook"]
    batches = utils.Batches(small_data(), 16, augment=user["Augment"](), shuffle=True, seed=0)
    optimizer = OPTIMIZERS["sgd"](net)
    arguments |= {"optimizer": optimizer, "scheduler": user["schedule"](optimizer), "criterion": user["Loss"]()}
    arguments |= {"test_criterion": user["Measured"]().loss}
    return fit(net, batches, batches, epochs=2, checkpoint=path, **arguments)


@pytest.mark.parametrize(
    ("edited", "named"),
    [
        ("HELPER", "mine.helper"),
        ("NETWORK", "mine.Network"),
        ("LOSS", "mine.Loss"),
        ("AUGMENT", "mine.Augment"),
        ("SCHEDULE", "mine.rate"),
        ("BRIGHTER", "mine.brighter"),
        ("STEP", "mine.Step"),
        ("HOOK", "mine.hook"),
        ("METHOD", "mine.Measured"),
        ("NESTED", "mine.Augment.Last"),
    ],
)
def test_code_that_was_edited_is_named_in_a_warning(tmp_path, edited, named):
    train_user_code(tmp_path / "net.pt", on_epoch=stop_after(1))
    with pytest.warns(UserWarning, match=rf"net\.pt: this code has been changed .*: {re.escape(named)}\. The epochs"):
        assert len(train_user_code(tmp_path / "net.pt", edited)) == 2


# --- The same run is known again


def test_the_same_code_is_known_again_whatever_it_works_on(tmp_path, recwarn):
    train_user_code(tmp_path / "net.pt", on_epoch=stop_after(1))
    # Another teacher, a counter that begins anew, and a docstring edited: none of them is code.
    assert len(train_user_code(tmp_path / "net.pt", "NOTE")) == 2
    state = utils.load_checkpoint(tmp_path / "net.pt")
    state["settings"]["code"] = {name: "other" for name in state["settings"]["code"]}  # another version of Python
    utils.save_checkpoint(tmp_path / "other.pt", state)
    del state["settings"]["code"]  # an older version of the kit
    utils.save_checkpoint(tmp_path / "older.pt", state)
    assert len(train_user_code(tmp_path / "other.pt")) == len(train_user_code(tmp_path / "older.pt")) == 2
    assert not recwarn.list


def halved(images, generator):
    return images / 2


def closure(factor):
    return lambda images, generator: images * factor


@pytest.mark.parametrize("augment", [lambda: halved, lambda: closure(0.5), lambda: Noise(0.1)])
def test_the_same_augmentation_is_known_again(tmp_path, augment):
    def train(path, **arguments):
        utils.seed_everything(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(400, 10))
        batches = utils.Batches(small_data(), 16, augment=augment(), shuffle=True, seed=0)
        optimizer = OPTIMIZERS["sgd"](net)
        return net, optimizer, fit(net, batches, batches, optimizer=optimizer, epochs=3, checkpoint=path, **arguments)

    train(tmp_path / "net.pt", on_epoch=stop_after(1))
    assert_equal_to_the_bit(train(tmp_path / "net.pt"), train(None))


@pytest.mark.parametrize("kind", [float, numpy.float64, numpy.float32, torch.tensor])
@pytest.mark.parametrize("warmup", [None, 30])
def test_any_kind_of_learning_rate_resumes_to_the_bit_and_is_kept_as_a_float(tmp_path, kind, warmup):
    def settings():
        return {"groups": (kind(0.1), kind(0.05)), "warmup": warmup}

    tiny(tmp_path / "net.pt", on_epoch=stop_after(2), **settings())
    resumed = tiny(tmp_path / "net.pt", **settings())
    assert_equal_to_the_bit(resumed, tiny(None, **settings()))
    assert all(type(rate) is float for rate in resumed[2].learning_rate)


class Scaled(nn.CrossEntropyLoss):
    """A criterion that learns."""

    def __init__(self):
        super().__init__(torch.tensor([1.0, 2.0]))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, logits, labels):
        return super().forward(logits * self.scale, labels)


def test_a_criterion_that_learns_resumes_to_the_bit_and_is_known_again(tmp_path):
    def train(path, criterion, **arguments):
        utils.seed_everything(0)
        net = nn.Linear(5, 2)
        optimizer = torch.optim.SGD([*net.parameters(), *criterion.parameters()], lr=0.5, momentum=0.9)
        batches = DataLoader(Dataset(), 16, shuffle=True)
        history = fit(
            net, batches, batches, epochs=4, optimizer=optimizer, criterion=criterion, checkpoint=path, **arguments
        )
        return criterion, optimizer, history

    whole, path, kept = train(None, Scaled()), tmp_path / "net.pt", Scaled()
    assert whole[0].scale != 1
    train(path, kept, on_epoch=stop_after(2))
    assert_equal_to_the_bit(train(path, Scaled()), whole)  # made anew, as in a new process
    assert len(train(path, kept)[2]) == 4  # and the very object, whose scale has moved
    kept.weight[0] = 3  # not trained: a setting
    with pytest.raises(ValueError, match=r"criterion\.weight\.checksum"):
        train(path, kept)


def test_a_criterion_that_holds_the_network_leaves_it_as_it_is(tmp_path):
    class Decay(nn.Module):
        def __init__(self, model, part):
            super().__init__()
            self.model, self.part, self.scale = model, part, nn.Parameter(torch.ones(1))

        def forward(self, logits, labels):
            weights = [*self.model.parameters(), *self.part.parameters()]
            return nn.functional.cross_entropy(logits * self.scale, labels) + sum(w.square().sum() for w in weights)

    def train(path, **arguments):
        utils.seed_everything(0)
        net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
        criterion, batches = Decay(net, net[1]), DataLoader(Dataset(), 16, shuffle=True)
        optimizer = torch.optim.SGD([*net.parameters(), criterion.scale], lr=0.1, momentum=0.9)
        arguments |= {"epochs": 4, "optimizer": optimizer, "criterion": criterion, "checkpoint": path}
        return net, optimizer, fit(net, batches, batches, **arguments)

    whole = train(None)
    train(tmp_path / "net.pt", on_epoch=stop_after(2))
    assert_equal_to_the_bit(train(tmp_path / "net.pt"), whole)


def test_weights_of_the_network_in_a_criterion_are_no_settings(tmp_path):
    """The same objects given to fit a second time, as a notebook does after a stop."""

    class Decay(nn.CrossEntropyLoss):
        def __init__(self, part):
            super().__init__()
            self.part = part

    for place in (None, 1):
        net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        criterion, batches = Decay(net if place is None else net[place]), DataLoader(Dataset(), 16)
        arguments = {"epochs": 3, "optimizer": OPTIMIZERS["sgd"](net), "criterion": criterion}
        arguments["checkpoint"] = tmp_path / f"{place}.pt"
        fit(net, batches, batches, on_epoch=stop_after(1), **arguments)
        assert len(fit(net, batches, batches, **arguments)) == 3


DRAWING = """
import torch
def drawn(values, generator):
    return values + torch.randn(values.shape, generator=generator)
class Method:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)
    def apply(self, images, generator):
        return drawn(images, self.generator)
class Noisy(torch.nn.Linear):
    def __init__(self):
        super().__init__(400, 10)
        self.generator = torch.Generator().manual_seed(1)
    def forward(self, images):
        return super().forward(drawn(images.flatten(1), self.generator))
class Called(Method):
    def __call__(self, images, generator):
        return by_global(images, generator)
class OfClass:
    own = torch.Generator().manual_seed(1)
    def __call__(self, images, generator):
        return drawn(images, self.own)
class Slotted:
    __slots__ = ("own",)
    def __init__(self):
        self.own = torch.Generator().manual_seed(1)
    def __call__(self, images, generator):
        return drawn(images, self.own)
class Private(Slotted):
    __slots__ = "__hidden"
    def __init__(self):
        self.__hidden = torch.Generator().manual_seed(1)
    def __call__(self, images, generator):
        return drawn(images, self.__hidden)
    def __getattr__(self, name):
        raise KeyError(name)
def default(images, generator, own=torch.Generator().manual_seed(1)):
    return drawn(images, own)
GLOBAL = torch.Generator().manual_seed(1)
def by_global(images, generator):
    return drawn(images, GLOBAL)
def unset():
    def augment(images, generator):
        return images if True else later
    return augment
    later = 0
"""


@pytest.mark.filterwarnings("ignore:checkpoint. whether these are still the same")
def test_objects_with_attributes_of_their_own_making_do_no_harm(tmp_path):
    class Answers:
        __slots__ = ()

        def __getattr__(self, name):
            return None

    class Fails:
        __dict__ = property(lambda self: 1 / 0)

    class HalfEmpty:
        __slots__ = ("own", "unset")

        def __getattr__(self, name):
            raise KeyError(name)

    net = nn.Linear(5, 2)
    net.answers, net.fails, net.half = Answers(), Fails(), HalfEmpty()
    net.half.own = torch.Generator()
    optimizer, loader = OPTIMIZERS["sgd"](net), DataLoader(Dataset(), 16)
    assert len(fit(net, loader, loader, optimizer=optimizer, epochs=1, checkpoint=tmp_path / "net.pt")) == 1
    (saved,) = utils.load_checkpoint(tmp_path / "net.pt")["generators"]
    assert any("half" in name and "own" in name for name in saved)


def test_losses_of_your_own_batches_are_a_setting_as_any_other(tmp_path):
    class Own:
        def __init__(self, losses):
            self.losses = losses

        def __iter__(self):
            yield torch.ones(4, 5), torch.zeros(4, dtype=torch.int64)

    def train(losses):
        net = nn.Linear(5, 2)
        return fit(net, Own(losses), Own("test"), optimizer=OPTIMIZERS["sgd"](net), epochs=1, checkpoint=path)

    path = tmp_path / "net.pt"
    train("one")
    with pytest.raises(ValueError, match=r"train_batches\.losses: saved 'one', now 'two'"):
        train("two")


@pytest.mark.parametrize(
    "kind", ["Noisy", "Method", "Called", "OfClass", "Slotted", "Private", "default", "by_global", "unset"]
)
@pytest.mark.filterwarnings("ignore:checkpoint. whether these are still the same")
def test_a_generator_is_found_wherever_it_is(tmp_path, kind):
    def train(path, **arguments):
        user = {"__name__": "mine"}
        exec(DRAWING, user)
        utils.seed_everything(0)
        net = nn.Sequential(user["Noisy"]()) if kind == "Noisy" else nn.Sequential(nn.Flatten(), nn.Linear(400, 10))
        made = {"Noisy": None, "Method": user["Method"]().apply, "unset": user["unset"]()}
        made |= {name: user[name]() for name in ("Called", "OfClass", "Slotted", "Private")}
        augment = made.get(kind, user.get(kind))
        batches = utils.Batches(small_data(), 16, augment=augment, shuffle=True, seed=0)
        optimizer = OPTIMIZERS["sgd"](net)
        history = fit(
            net, batches, utils.Batches(small_data(), 48), epochs=4, optimizer=optimizer, checkpoint=path, **arguments
        )
        return net, optimizer, history

    whole = train(None)
    train(tmp_path / "net.pt", on_epoch=stop_after(2))
    assert_equal_to_the_bit(train(tmp_path / "net.pt"), whole)


def test_a_rate_of_single_precision_in_a_sequence_resumes_to_the_bit(tmp_path):
    def train(path, **arguments):
        net, rates = nn.Linear(5, 2), torch.optim.lr_scheduler
        utils.seed_everything(0)
        nn.init.ones_(net.weight)
        optimizer = torch.optim.SGD(net.parameters(), lr=numpy.float32(0.1))
        parts = [rates.LinearLR(optimizer, total_iters=5), rates.CosineAnnealingLR(optimizer, 20)]
        scheduler = rates.SequentialLR(optimizer, parts, [5])
        arguments |= {"optimizer": optimizer, "scheduler": scheduler, "epochs": 4, "checkpoint": path}
        return fit(net, DataLoader(Dataset(), 16), DataLoader(Dataset(), 16), **arguments).learning_rate

    whole = train(None)
    train(tmp_path / "net.pt", on_epoch=stop_after(2))
    assert train(tmp_path / "net.pt") == whole


def test_a_state_that_could_not_be_read_back_is_refused_after_the_first_epoch(tmp_path):
    net = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.param_groups[0]["schedule"] = numpy.linspace(0, 1, 5)
    loader, histories = DataLoader(Dataset(), 16), []
    arguments = {"optimizer": optimizer, "checkpoint": tmp_path / "net.pt", "on_epoch": histories.append}
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        utils.fit(net, loader, loader, epochs=3, **arguments)
    assert len(histories) == 1


def test_what_on_epoch_does_is_resumed_too(tmp_path):
    optimizers = []

    class SGD(torch.optim.SGD):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            optimizers.append(self)

    def train(path, stop=None):
        def on_epoch(history):
            torch.rand(3), random.random()
            if len(history) == 2:
                for group in optimizers[-1].param_groups:
                    group["lr"] = 0.01
            if len(history) == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "SGD", SGD)
            return tiny(path, epochs=5, warmup=None, on_epoch=on_epoch)

    *_, history = train(tmp_path / "net.pt", stop=2)
    assert history.learning_rate == [0.1, 0.1]
    resumed = train(tmp_path / "net.pt")
    assert resumed[2].learning_rate == [0.1, 0.1, 0.01, 0.01, 0.01]
    assert_equal_to_the_bit(resumed, train(None))


def test_an_epoch_is_saved_although_on_epoch_fails(tmp_path):
    def fail(history):
        raise LookupError("plot")

    with pytest.raises(LookupError):
        tiny(tmp_path / "net.pt", on_epoch=fail)
    assert len(utils.load_checkpoint(tmp_path / "net.pt")["history"]["seconds"]) == 1


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "numpy": lambda: numpy.random.default_rng(3),
    "numpy, old": lambda: numpy.random.RandomState(3),
    "python": lambda: random.Random(3),
}


@pytest.mark.filterwarnings("ignore:checkpoint")
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_batch_sampler_with_its_own_generator_resumes_to_the_bit(tmp_path, kind):
    tiny(tmp_path / "net.pt", loader=own(GENERATORS[kind]()), on_epoch=stop_after(2))
    resumed = tiny(tmp_path / "net.pt", loader=own(GENERATORS[kind]()))
    assert_equal_to_the_bit(resumed, tiny(None, loader=own(GENERATORS[kind]())))


def test_workers_that_persist_are_refused_with_a_checkpoint(tmp_path):
    loader = {"batch_size": 16, "num_workers": 1, "persistent_workers": True}
    with pytest.raises(ValueError, match=r"train_batches keep their workers.*persistent_workers=False"):
        tiny(tmp_path / "net.pt", loader=loader)


def test_random_transforms_in_workers_resume_to_the_bit(tmp_path):
    def settings():
        loader = {"batch_size": 16, "shuffle": True, "num_workers": 1}
        return {"dataset": Dataset(transform=Noise(0.5)), "loader": loader, "epochs": 2}

    tiny(tmp_path / "net.pt", on_epoch=stop_after(1), **settings())
    assert_equal_to_the_bit(tiny(tmp_path / "net.pt", **settings()), tiny(None, **settings()))


# --- All or nothing


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler", "average", "generators", "history"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, part):
    path = tmp_path / "net.pt"
    tiny(path, average=0.3, on_epoch=stop_after(2))
    state = utils.load_checkpoint(path)
    state[part] = [{"torch": torch.zeros(3)}] if part == "generators" else {"nonsense": 1} if part != "scheduler" else 1
    utils.save_checkpoint(path, state)
    utils.seed_everything(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2))
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[3].parameters()}], 0.1, 0.9)
    loaders = DataLoader(Dataset(), batch_size=16, shuffle=True), DataLoader(Dataset(1), 32)
    draws = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"net\.pt does not fit this run, which is unchanged"):
        arguments = {"optimizer": optimizer, "scheduler": linear_warmup(optimizer, 3), "epochs": 4, "average": 0.3}
        utils.fit(net, *loaders, checkpoint=path, **arguments)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in weights.items())
    assert not optimizer.state and torch.equal(draws, torch.get_rng_state())


def test_a_checkpoint_of_a_gpu_goes_on_on_the_cpu_with_a_warning(tmp_path):
    path = tmp_path / "net.pt"
    tiny(path, on_epoch=stop_after(2))
    state = utils.load_checkpoint(path)
    state["generators"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)  # as torch.cuda.get_rng_state returns it
    utils.save_checkpoint(path, state)
    with pytest.warns(UserWarning, match=r"other random numbers.*cuda"):
        *_, history = tiny(path)
    assert len(history) == 4


def test_a_checkpoint_tells_what_the_images_were_normalised_with(tmp_path):
    run(tmp_path / "net.pt", on_epoch=stop_after(1))
    data = small_data()
    assert utils.load_checkpoint(tmp_path / "net.pt")["data"] == {
        "images": 48,
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": list(data.classes),
        "unit_scale": True,
    }


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny("~/net.pt", on_epoch=stop_after(1))
    assert (tmp_path / "net.pt").exists() and len(tiny("~/net.pt")[2]) == 4
    assert len(utils.load_checkpoint("~/net.pt")["history"]["seconds"]) == 4


# --- Interrupts

CTRL_C = {"at": None}  # how many batches there are before it


def interrupting_loss(logits, labels):
    if CTRL_C["at"] is not None:
        if CTRL_C["at"] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        CTRL_C["at"] -= 1
    return nn.functional.cross_entropy(logits, labels)


def test_ctrl_c_at_any_moment_ends_fit_normally_with_a_checkpoint_of_the_last_whole_epoch(tmp_path):
    whole = run(None, criterion=interrupting_loss)
    for batch in (0, 2, 3, 5, 6, 10, 17):  # in each epoch three batches to train on, then three to test
        path, CTRL_C["at"] = tmp_path / f"{batch}.pt", batch
        *_, history = run(path, criterion=interrupting_loss)
        CTRL_C["at"] = None
        saved = len(utils.load_checkpoint(path)["history"]["seconds"]) if path.exists() else 0
        assert saved == len(history) == batch // 6
        assert_equal_to_the_bit(run(path, criterion=interrupting_loss), whole)


def test_an_interrupt_while_the_epoch_is_being_saved_waits_until_it_is(tmp_path, monkeypatch):
    write = checkpoints.write_atomically

    def interrupted(path, payload):
        os.kill(os.getpid(), signal.SIGINT)
        write(path, payload)

    monkeypatch.setattr(checkpoints, "write_atomically", interrupted)
    *_, history = run(tmp_path / "net.pt")
    assert len(history) == 1
    assert utils.load_checkpoint(tmp_path / "net.pt")["history"]["seconds"] == history.seconds


def test_a_second_ctrl_c_ends_on_epoch_itself(tmp_path):
    reached = []

    def on_epoch(history):
        for place in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(place)

    *_, history = run(tmp_path / "net.pt", on_epoch=on_epoch)
    assert reached == [0] and len(history) == 1
    assert len(utils.load_checkpoint(tmp_path / "net.pt")["history"]["seconds"]) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_checkpoint_is_restored_is_raised_after_it(tmp_path, monkeypatch):
    whole, path, restore = run(None), tmp_path / "net.pt", checkpoints._restore
    run(path, on_epoch=stop_after(1))

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return restore(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_restore", interrupted)
        assert len(run(path)[2]) == 1
    assert_equal_to_the_bit(run(path), whole)


def test_weights_that_are_not_finite_after_an_epoch_keep_the_last_good_checkpoint(tmp_path):
    net, calls = nn.Linear(5, 2), itertools.count(1)
    net.weight.register_hook(lambda gradient: gradient * float("nan") if next(calls) == 8 else gradient)
    batches = DataLoader(Dataset(), 16)  # four batches: the last step of the second epoch
    with pytest.raises(
        utils.NonFiniteLoss, match="epoch 2: weights are NaN or infinite after the last batch"
    ) as caught:
        fit(net, batches, batches, epochs=3, optimizer=OPTIMIZERS["sgd"](net), checkpoint=tmp_path / "net.pt")
    assert len(caught.value.history) == 1
    assert utils.load_checkpoint(tmp_path / "net.pt")["model"]["weight"].isfinite().all()


@pytest.mark.filterwarnings("ignore:checkpoint. these changed during the first epoch")
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    steps = []

    def criterion(logits, labels):
        steps.append(1)
        return nn.functional.cross_entropy(logits, labels) * (float("inf") if len(steps) == 8 else 1)

    with pytest.raises(utils.NonFiniteLoss, match="epoch 2") as caught:
        run(tmp_path / "net.pt", criterion=criterion)
    assert len(caught.value.history) == 1
    assert len(utils.load_checkpoint(tmp_path / "net.pt")["history"]["seconds"]) == 1


# --- Files


def test_a_failing_write_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    utils.save_checkpoint(path, {"epoch": 1})
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space left"):
                utils.save_checkpoint(path, {"epoch": 2})
        assert utils.load_checkpoint(path) == {"epoch": 1}
        assert os.listdir(tmp_path) == ["net.pt"]


def test_a_place_where_nothing_can_be_written_is_told_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    trained = []
    with pytest.raises(OSError, match="file"):
        tiny(tmp_path / "file" / "net.pt", on_epoch=trained.append)
    assert not trained


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path):
    (tmp_path / "link.pt").symlink_to(tmp_path / "net.pt")
    utils.save_checkpoint(tmp_path / "link.pt", {"epoch": 1})
    assert (tmp_path / "link.pt").is_symlink() and utils.load_checkpoint(tmp_path / "net.pt") == {"epoch": 1}


def test_every_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "net.pt"
    utils.save_checkpoint(path, {"model": model.Attempt2().state_dict()})
    sound = path.read_bytes()
    draw = random.Random(0)
    for _ in range(500):
        place = draw.randrange(len(sound))
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << draw.randrange(8)]) + sound[place + 1 :])
        with pytest.raises(ValueError, match=r"net\.pt"):
            utils.load_checkpoint(path)


def test_every_truncation_is_seen(tmp_path):
    path = tmp_path / "net.pt"
    utils.save_checkpoint(path, {"values": torch.arange(10)})
    sound = path.read_bytes()
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        with pytest.raises(ValueError, match="cut short"):
            utils.load_checkpoint(path)


def test_foreign_files_are_named_as_such(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="no checkpoint of this kit"):
        utils.load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        utils.load_checkpoint(tmp_path / "none.pt")


class Hostile:
    """Unpickled without care, this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_is_refused_and_runs_nothing_even_with_a_good_checksum(tmp_path):
    path, trap = tmp_path / "net.pt", tmp_path / "trap"
    utils.save_checkpoint(path, {"model": Hostile(trap)})
    with pytest.raises(ValueError, match="refused"):
        utils.load_checkpoint(path)
    assert not trap.exists()
    # The file is hostile indeed: loaded without care, it springs the trap.
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert trap.exists()


EIGHT_SAVERS = """
import sys
from multiprocessing import get_context
import torch
import utils

def save(number):
    utils.save_checkpoint(sys.argv[1], {"number": number, "ballast": torch.full((10_000,), number)})

processes = [get_context("fork").Process(target=save, args=(number,)) for number in range(8)]
for process in processes:
    process.start()
for process in processes:
    process.join()
    assert process.exitcode == 0
"""


def test_eight_processes_saving_to_one_path_leave_one_whole_file(tmp_path):
    # From a fresh interpreter, which has no threads yet: only then is a fork safe.
    command = [sys.executable, "-c", EIGHT_SAVERS, str(tmp_path / "net.pt")]
    subprocess.run(command, cwd=Path(utils.__file__).parent, check=True, timeout=120)
    state = utils.load_checkpoint(tmp_path / "net.pt")
    assert (state["ballast"] == state["number"]).all()
    assert os.listdir(tmp_path) == ["net.pt"]


def test_weights_of_a_checkpoint_load_into_a_new_network(tmp_path):
    net, *_ = run(tmp_path / "net.pt")
    fresh = model.Net()
    fresh.load_state_dict(utils.load_checkpoint(tmp_path / "net.pt")["model"])
    images = torch.randn(4, 1, 20, 20)
    assert torch.equal(fresh.eval()(images), net.eval()(images))
