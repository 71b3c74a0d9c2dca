"""Several processes train as one: gloo on the CPU, started as torchrun starts them."""

from __future__ import annotations

import os
import socket
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn

import utils

COUNT, BATCH_SIZE = 52, 16  # the last batch holds 4 images: for three processes 2, 1 and 1


def train(folder: Path, augment: utils.Augment | None = None) -> None:
    """One epoch of SGD without dropout, augmentation and BatchNorm; what it led to goes to `folder`."""
    torch.set_num_threads(1)
    utils.start_distributed()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 1, 8, 8), generator=generator, dtype=torch.uint8)
    data = utils.ImageData(images, torch.arange(COUNT) % 10)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    history = utils.fit(
        net,
        utils.Batches(data, BATCH_SIZE, shuffle=True, seed=0),
        utils.Batches(data, BATCH_SIZE),
        epochs=1,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.5),
        checkpoint=folder / "net.pt",
    )
    rank = os.environ.get("RANK", "0")
    torch.save({"weights": net.state_dict(), "history": vars(history)}, folder / f"result-{rank}.pt")


def worker(folder: Path, rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with (folder / f"printed-{rank}.txt").open("w") as printed:
        os.dup2(printed.fileno(), 1)
        train(folder)
        torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_match_one_alone(tmp_path, world):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    threads = torch.get_num_threads()
    train(alone)
    torch.set_num_threads(threads)
    context, port = get_context("spawn"), free_port()
    processes = [context.Process(target=worker, args=(together, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0

    expected = torch.load(alone / "result-0.pt")
    for rank in range(world):
        found = torch.load(together / f"result-{rank}.pt")
        for name, weight in expected["weights"].items():
            assert torch.allclose(found["weights"][name], weight, atol=1e-5), name
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert found["history"][name] == pytest.approx(expected["history"][name], abs=1e-5)

    printed = [(together / f"printed-{rank}.txt").read_text() for rank in range(world)]
    assert printed[0].startswith("epoch 1/1") and not any(printed[1:])
    assert list(utils.load_checkpoint(together / "net.pt")["model"]) == list(expected["weights"])
