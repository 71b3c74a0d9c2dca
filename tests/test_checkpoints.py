"""Nothing lost, nothing silent: exact resume, interrupts, and files that are damaged, foreign or hostile."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

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


def run(path, optimizer="adamw", *, seed=0, epochs=EPOCHS, dropout=0.2, count=48, **arguments):
    """One whole call as a user writes it, everything made anew; returns network, optimizer, history."""
    utils.seed_everything(seed)
    net = model.Net(dropout=dropout)
    batches = utils.Batches(small_data(count=count), 16, augment=utils.Augment(erasing=0.3), shuffle=True, seed=seed)
    optimizer = OPTIMIZERS[optimizer](net)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(batches))
    test = utils.Batches(small_data(1), 16)
    history = fit(net, batches, test, epochs=epochs, optimizer=optimizer, scheduler=scheduler, checkpoint=path, **arguments)
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, optimizer, epoch):
    whole = run(None, optimizer)
    *_, history = run(tmp_path / "net.pt", optimizer, on_epoch=stop_after(epoch))
    assert len(history) == epoch
    random.random(), torch.rand(5)  # whatever happens in between must not matter
    assert_equal_to_the_bit(run(tmp_path / "net.pt", optimizer), whole)


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
    *_, history = run(tmp_path / "net.pt")
    assert len(history) == 1
    monkeypatch.setattr(Stopping, "stops", False)
    assert_equal_to_the_bit(run(tmp_path / "net.pt"), run(None))


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
        ({"criterion": nn.MultiMarginLoss()}, "criterion"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, change, named):
    run(tmp_path / "net.pt", on_epoch=stop_after(1))
    before = (tmp_path / "net.pt").read_bytes()
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{named}"):
        run(tmp_path / "net.pt", **change)
    assert (tmp_path / "net.pt").read_bytes() == before


# --- Interrupts


def test_ctrl_c_at_any_moment_ends_fit_normally_with_a_checkpoint_of_the_last_whole_epoch(tmp_path):
    whole = run(None)
    for moment, delay in enumerate((0.01, 0.05, 0.1, 0.15, 0.2, 0.3)):
        path = tmp_path / f"{moment}.pt"
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            timer.start()
            *_, history = run(path)
            timer.join()
        except KeyboardInterrupt:  # it came before fit began, or after it ended
            history = utils.load_checkpoint(path)["history"]["seconds"] if path.exists() else []
        saved = len(utils.load_checkpoint(path)["history"]["seconds"]) if path.exists() else 0
        assert saved == len(history)
        assert_equal_to_the_bit(run(path), whole)


def test_an_interrupt_while_the_epoch_is_being_saved_waits_until_it_is(tmp_path, monkeypatch):
    write = checkpoints.write_atomically

    def interrupted(path, payload):
        os.kill(os.getpid(), signal.SIGINT)
        write(path, payload)

    monkeypatch.setattr(checkpoints, "write_atomically", interrupted)
    *_, history = run(tmp_path / "net.pt")
    assert len(history) == 1
    assert utils.load_checkpoint(tmp_path / "net.pt")["history"]["seconds"] == history.seconds


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    steps = itertools.count(1)

    def criterion(logits, labels):
        return nn.functional.cross_entropy(logits, labels) * (float("inf") if next(steps) == 8 else 1)

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
