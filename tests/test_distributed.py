"""Several processes train as one: gloo on the CPU, started as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utils

COUNT, BATCH_SIZE = 52, 16  # the last batch holds 4 images: for three processes 2, 1 and 1
TESTED = 49  # the last batch holds one image: all processes but one have none of it


def data(count: int = COUNT) -> utils.ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return utils.ImageData(images[:count], torch.arange(count) % 10, mean=(0.5,), std=(0.3,))


def many() -> utils.ImageData:
    """120 batches of four images: a loss is read after 50."""
    return utils.ImageData(torch.zeros(480, 1, 8, 8, dtype=torch.uint8), torch.arange(480) % 10, mean=(0,), std=(1,))


def linear_net() -> nn.Module:
    torch.manual_seed(rank())  # the first process sends its weights to the others
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


# --- What each process does; its result goes to a file of its own


def two_epochs(folder: Path):
    """SGD without dropout, augmentation and BatchNorm, so that the number of processes makes no difference.

    The images of the second epoch are drawn by the losses of all processes.
    """
    net = linear_net()
    history = utils.fit(
        net,
        utils.Batches(data(), BATCH_SIZE, shuffle=True, subsample=0.5, seed=0),
        utils.Batches(data(TESTED), BATCH_SIZE),
        epochs=2,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.5),
        average=0.5,
        checkpoint=folder / "net.pt",
    )
    return net.state_dict(), vars(history)


class CtrlC(utils.Batches):
    """Batches that press Ctrl-C in the second process, within the second epoch, if `presses` says so."""

    presses = False

    def __iter__(self):
        if CtrlC.presses and rank() == 1 and self.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        yield from super().__iter__()


def random_run(checkpoint: Path | None, *, batches=None, on_epoch=None):
    """Three epochs in which every process draws random numbers of its own, with BatchNorm; how they ended."""
    torch.manual_seed(rank())
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))
    batches = batches or CtrlC(data(), BATCH_SIZE, augment=utils.Augment(), shuffle=True, subsample=0.6, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    arguments = {"optimizer": optimizer, "epochs": 3, "average": 0.3, "checkpoint": checkpoint, "on_epoch": on_epoch}
    try:
        history = utils.fit(net, batches, utils.Batches(data(TESTED), BATCH_SIZE), verbose=False, **arguments)
    except (KeyboardInterrupt, utils.NonFiniteLoss) as error:
        return f"{type(error).__name__} {error}", len(error.history)
    return net.state_dict(), history.train_loss, history.test_loss


def interrupted_and_resumed(folder: Path):
    CtrlC.presses = True
    stopped = random_run(folder / "net.pt")
    CtrlC.presses = False
    return stopped, random_run(folder / "net.pt"), random_run(None)


def stopped_by_the_first(folder: Path):
    def on_epoch(history):
        if rank() == 0:
            raise KeyboardInterrupt

    return random_run(folder / "net.pt", on_epoch=on_epoch)


def stopped_within_an_epoch(folder: Path):
    """The processes agree to stop after 50 of 120 batches."""
    seen = []

    class Watched(utils.Batches):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if rank() == 1 and number == 20:
                    os.kill(os.getpid(), signal.SIGINT)
                seen.append(number)
                yield batch

    return *random_run(folder / "net.pt", batches=Watched(many(), 4, shuffle=True, seed=0)), len(seen)


def non_finite_in_one(folder: Path):
    """NaN in the second process, in a batch whose loss is read."""
    net, steps = linear_net(), []

    def criterion(logits, labels):
        steps.append(1)
        return F.cross_entropy(logits, labels) * (float("nan") if rank() == 1 and len(steps) == 50 else 1)

    batches, optimizer = utils.Batches(many(), 4, shuffle=True, seed=0), torch.optim.SGD(net.parameters(), lr=0.1)
    try:
        utils.fit(net, batches, batches, optimizer=optimizer, epochs=2, criterion=criterion, verbose=False)
    except utils.NonFiniteLoss as error:
        return str(error), len(error.history)


def after_a_pass_left_early(folder: Path):
    """The labels that this process sees in a pass drawn by losses that only this process knows."""
    images = utils.ImageData(torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.arange(64), mean=(0,), std=(1,))
    batches = utils.Batches(images, 16, shuffle=True, subsample=0.5, seed=0)
    for _ in zip(range(2), batches, strict=False):
        batches.note_losses(torch.randn(8, 64))
    batches.set_epoch(1)
    return [label for _, labels in batches for label in labels.tolist()]


def damaged(folder: Path):
    (folder / "net.pt").write_bytes(b"nothing")
    try:
        random_run(folder / "net.pt")
    except ValueError as error:
        return str(error)


def worker(folder: Path, jobs: list, rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with (folder / f"printed-{rank}.txt").open("w") as printed:
        os.dup2(printed.fileno(), 1)
        utils.start_distributed()
        for job in jobs:
            (folder / job.__name__).mkdir(exist_ok=True)
            torch.save(job(folder / job.__name__), folder / f"{job.__name__}-{rank}.pt")
        torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(folder: Path, world: int, *jobs) -> list[list]:
    """The results of each of `jobs` in each of `world` processes."""
    context, port = get_context("forkserver"), free_port()
    context.set_forkserver_preload(["utils"])  # imported once, for all processes
    processes = [context.Process(target=worker, args=(folder, list(jobs), rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [[torch.load(folder / f"{job.__name__}-{rank}.pt") for rank in range(world)] for job in jobs]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes did, by the name of the function: one start for all tests."""
    folder = tmp_path_factory.mktemp("two")
    jobs = (
        two_epochs,
        interrupted_and_resumed,
        stopped_by_the_first,
        stopped_within_an_epoch,
        non_finite_in_one,
        after_a_pass_left_early,
        damaged,
    )
    results = together(folder, 2, *jobs)
    return {"folder": folder} | {job.__name__: result for job, result in zip(jobs, results, strict=True)}


# --- The tests


def assert_like_one_alone(folder: Path, found: list) -> None:
    weights, history = two_epochs(folder)
    for found_weights, found_history in found:
        for name, weight in weights.items():
            assert torch.allclose(found_weights[name], weight, atol=1e-5), name
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert found_history[name] == pytest.approx(history[name], abs=1e-5), name


def test_two_processes_match_one_alone_and_every_test_image_counts_once(two, tmp_path):
    assert_like_one_alone(tmp_path, two["two_epochs"])
    printed = [(two["folder"] / f"printed-{rank}.txt").read_text() for rank in range(2)]
    assert printed[0].startswith("epoch 1/2") and not printed[1]
    saved = utils.load_checkpoint(two["folder"] / "two_epochs" / "net.pt")["model"]
    assert list(saved) == list(two["two_epochs"][0][0])


def test_three_processes_match_one_alone(tmp_path):
    (tmp_path / "alone").mkdir()
    assert_like_one_alone(tmp_path / "alone", together(tmp_path, 3, two_epochs)[0])


def test_ctrl_c_in_one_process_ends_all_after_the_same_epoch_and_they_resume_to_the_bit(two):
    for stopped, resumed, whole in two["interrupted_and_resumed"]:
        assert stopped == ("KeyboardInterrupt ", 2)
        assert resumed[1:] == whole[1:]
        assert all(torch.equal(resumed[0][name], whole[0][name]) for name in whole[0])
    (*_, first), (*_, second) = two["interrupted_and_resumed"]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])  # one network, buffers included


def test_an_interrupt_from_one_on_epoch_ends_all_processes(two):
    assert two["stopped_by_the_first"] == [("KeyboardInterrupt ", 1)] * 2
    history = utils.load_checkpoint(two["folder"] / "stopped_by_the_first" / "net.pt")["history"]
    assert len(history["seconds"]) == 1


def test_ctrl_c_ends_a_long_epoch_in_all_processes_at_the_same_batch(two):
    assert two["stopped_within_an_epoch"] == [("KeyboardInterrupt ", 0, 50)] * 2


def test_a_non_finite_loss_in_one_process_ends_all(two):
    assert two["non_finite_in_one"][0] == two["non_finite_in_one"][1]
    said, epochs = two["non_finite_in_one"][0]
    assert said.startswith("epoch 1: the loss is nan at batch 50") and epochs == 0


def test_after_a_pass_left_early_all_processes_draw_the_same_images(two):
    first, second = two["after_a_pass_left_early"]
    assert len(first) == len(second) == 16 and not {*first} & {*second}  # 32 images of one draw, each once


def test_a_damaged_checkpoint_ends_all_processes(two):
    for said in two["damaged"]:
        assert "net.pt is cut short or is no checkpoint" in said
