"""fit, train_epoch and evaluate at their edges: unusual shapes, schedulers, loaders and modes, and Ctrl-C in a loop."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import utils
from kit import checkpoints

ROOT = Path(utils.__file__).parent


def points(count: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of points (N, 5) in two classes."""
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    return list(zip(inputs.chunk(2), (inputs[:, 0] > 0).long().chunk(2), strict=True))


def fit(net, batches=None, **arguments):
    batches = points() if batches is None else batches
    arguments.setdefault("optimizer", torch.optim.SGD(net.parameters(), lr=0.1))
    return utils.fit(net, batches, batches, **{"epochs": 2, "verbose": False, **arguments})


# --- Shapes


def test_regression_trains_and_its_accuracy_is_nan():
    batches = [(inputs, inputs[:, :1].clone()) for inputs, _ in points()]
    history = fit(nn.Linear(5, 1), batches, criterion=nn.MSELoss(), epochs=20)
    assert history.test_loss[-1] < 0.1 * history.test_loss[0]
    assert all(map(math.isnan, history.train_accuracy + history.test_accuracy))


def test_a_single_logit_trains_and_its_accuracy_is_nan():
    def criterion(logits, labels):
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())

    history = fit(nn.Linear(5, 1), criterion=criterion, epochs=20)
    assert history.test_loss[-1] < history.test_loss[0]
    assert all(map(math.isnan, history.train_accuracy + history.test_accuracy))


def test_a_criterion_that_learns_is_refused_in_several_processes(monkeypatch):
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, logits, labels):
            return super().forward(self.scale * logits, labels)

    def train(learning):
        net, criterion = nn.Linear(5, 2), Scaled()
        weights = [*net.parameters(), *(criterion.parameters() if learning else [])]
        return utils._check_parameters(net, criterion, torch.optim.SGD(weights, lr=0.1))

    train(True)
    monkeypatch.setattr(utils, "rank_and_world", lambda: (0, 2))
    train(False)
    with pytest.raises(ValueError, match="criterion has weights of its own, which each of several processes"):
        train(True)


def test_segmentation_trains_and_its_accuracy_is_nan():
    images = torch.rand(8, 1, 6, 6)
    history = fit(nn.Conv2d(1, 2, 1), [(images, (images[:, 0] > 0.5).long())], epochs=5)
    assert history.test_loss[-1] < history.test_loss[0]
    assert all(map(math.isnan, history.train_accuracy + history.test_accuracy))


@pytest.mark.parametrize(
    ("net", "batches", "error", "said"),
    [
        # A last layer that was not flattened, labels as a column, a mean that was not taken, a tuple.
        (
            nn.Conv1d(5, 2, 1),
            [(torch.rand(4, 5, 1), torch.arange(4) % 2)],
            ValueError,
            r"logits \(4, 2, 1\) and labels",
        ),
        (nn.Linear(5, 2), [(torch.rand(4, 5), torch.zeros(4, 1).long())], ValueError, r"labels \(4, 1\) torch.int64"),
        (nn.LSTM(5, 2), [(torch.rand(4, 5), torch.arange(4) % 2)], TypeError, r"model returned tuple; expected"),
    ],
)
def test_shapes_that_the_criterion_refuses_are_named(net, batches, error, said):
    for call in (lambda: fit(net, batches), lambda: utils.evaluate(net, batches)):
        with pytest.raises(error, match=said):
            call()


@pytest.mark.parametrize("label", [2, -1])
def test_labels_without_a_logit_are_named(label):
    batches = [(torch.rand(4, 5), torch.tensor([0, 1, 1, label]))]
    for call in (lambda: fit(nn.Linear(5, 2), batches), lambda: utils.evaluate(nn.Linear(5, 2), batches)):
        with pytest.raises(
            ValueError, match=r"labels go from .* but model returns 2 logits, for classes 0 to 1: number the classes"
        ):
            call()


def test_a_criterion_without_a_mean_is_refused():
    with pytest.raises(ValueError, match=r"criterion returned \(16,\) for logits \(16, 2\)"):
        fit(nn.Linear(5, 2), criterion=nn.CrossEntropyLoss(reduction="none"))


def test_an_empty_batch_is_named_as_such():
    empty = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="batch 2 is empty") as caught:
        fit(nn.Linear(5, 2), [points()[0], empty])
    assert not isinstance(caught.value, utils.NonFiniteLoss)
    assert utils.evaluate(nn.Linear(5, 2), [*points(), empty]).loss > 0


# --- Optimizers, schedulers, loaders


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_reduce_on_plateau_is_stepped_with_the_test_loss_of_each_epoch(step):
    net, seen = nn.Linear(5, 2), []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)
            super().step(metrics)

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)  # too low for an improvement by half
    scheduler = Plateau(optimizer, patience=0, threshold=0.5)
    history = fit(net, optimizer=optimizer, scheduler=scheduler, scheduler_step=step, epochs=4)
    assert seen == history.test_loss
    assert history.learning_rate == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_an_optimizer_of_another_network_is_refused():
    net, other = nn.Linear(5, 2), nn.Linear(5, 2)
    with pytest.raises(ValueError, match="optimizer holds no parameter of model"):
        fit(net, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    fit(net, optimizer=torch.optim.SGD([*other.parameters(), net.bias], lr=0.1))  # a part, or more, may be wanted
    criterion = nn.CrossEntropyLoss()
    criterion.scale = nn.Parameter(torch.ones(1))
    fit(net, criterion=criterion, optimizer=torch.optim.SGD(criterion.parameters(), lr=0.1))


def test_an_error_that_labels_do_not_explain_stays_as_it_is():
    batches = [(torch.rand(4, 5), torch.tensor([0, 1, 1, -100]))]
    with pytest.raises(RuntimeError, match="weight tensor should be defined"):
        fit(nn.Linear(5, 2), batches, criterion=nn.CrossEntropyLoss(torch.ones(3)))


def images() -> utils.ImageData:
    return utils.ImageData(torch.zeros(4, 1, 20, 20, dtype=torch.uint8), torch.arange(4) % 2)


ONE_NUMBER = torch.optim.SGD([torch.zeros(1)])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: utils.fit(nn.Linear, points(), points(), optimizer=ONE_NUMBER),
            "model is <class.*; expected a network",
        ),
        (lambda: utils.evaluate(nn.Linear, points()), "model is <class.*; expected a network"),
        (lambda: utils.train_network(nn.Linear, images(), images()), "model is <class.*; expected a network"),
        (lambda: fit(nn.Linear(5, 2), optimizer=torch.optim.SGD), "optimizer is <class.*; expected one such as"),
        (lambda: fit(nn.Linear(5, 2), images()), "train_batches is ImageData; expected batches"),
        (lambda: utils.evaluate(nn.Linear(5, 2), images()), "batches is ImageData; expected batches"),
        (lambda: utils.train_network(nn.Linear(5, 2), images(), images(), 3), "recipe is 3; expected a Recipe"),
    ],
)
def test_a_class_or_data_in_the_wrong_place_is_named(call, said):
    with pytest.raises(TypeError, match=said):
        call()


def test_an_optimizer_that_needs_a_closure_is_refused_at_the_start():
    net = nn.Linear(5, 2)
    with pytest.raises(ValueError, match="optimizer is LBFGS, whose step needs a closure"):
        fit(net, optimizer=torch.optim.LBFGS(net.parameters()))


def test_a_loader_without_a_length_trains_and_resumes(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            for inputs, labels in points():
                yield from zip(inputs, labels, strict=True)

    def train(checkpoint, stop=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2))

        def on_epoch(history):
            if len(history) == stop:
                raise KeyboardInterrupt

        return fit(net, DataLoader(Stream(), batch_size=8), checkpoint=checkpoint, on_epoch=on_epoch, epochs=3)

    whole = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "net.pt", stop=1)
    assert train(tmp_path / "net.pt").train_loss == whole.train_loss


@pytest.mark.parametrize("kind", [numpy.int64, numpy.uint8])
def test_whole_numbers_of_numpy_are_whole_numbers(kind):
    assert len(fit(nn.Linear(5, 2), epochs=kind(2))) == 2
    assert type(utils.Recipe(epochs=kind(2), batch_size=kind(16)).epochs) is int


def test_the_history_holds_floats_when_the_learning_rate_is_a_tensor():
    net = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    history = fit(net, optimizer=optimizer, scheduler=scheduler, scheduler_step="epoch", epochs=3)
    assert all(type(rate) is float for rate in history.learning_rate)
    assert history.learning_rate == pytest.approx([0.1, 0.01, 0.001])


# --- Modes


def test_a_module_in_eval_mode_stays_so_unless_the_whole_model_is():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    net[1].eval()
    fit(net)
    assert net[1].num_batches_tracked == 0 and net[1].running_mean.eq(0).all()
    assert [module.training for module in net] == [True, False, True, True]
    fit(net.eval())
    assert net[1].num_batches_tracked == 4 and net.training and net[1].training


def test_a_model_that_overrides_train_to_freeze_itself_is_respected():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    net = Frozen(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fit(net)
    assert net[1].num_batches_tracked == 0


def test_what_a_model_keeps_from_its_evaluation_is_of_use_in_training():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(5, 2), None

        def forward(self, inputs):
            if self.scale is None:
                self.scale = torch.ones(2)
            return self.linear(inputs) * self.scale

    net = Keeps()
    utils.evaluate(net, points())
    assert len(fit(net)) == 2


def test_only_fit_changes_how_the_process_keeps_memory(monkeypatch):
    calls, net = [], nn.Linear(5, 2)
    monkeypatch.setattr(utils, "keep_freed_memory", lambda: calls.append(1))
    utils.train_epoch(net, points(), torch.optim.SGD(net.parameters(), lr=0.1))
    utils.evaluate(net, points())
    assert not calls
    fit(net)
    assert calls


# --- Devices


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_gpu_that_is_not_there_is_refused(two_gpus, monkeypatch):
    assert utils.get_device("cuda:1") == torch.device("cuda:1")
    assert utils.get_device() == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"'cuda:7': cuda:7 is unavailable.*available: cuda:0, cuda:1, cpu"):
        utils.get_device("cuda:7")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert utils.get_device() == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="no more processes than there are GPUs"):
        utils.get_device()


def test_each_process_takes_a_gpu_of_its_own_before_it_joins_the_others(two_gpus, monkeypatch):
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(torch.device(device)))
    monkeypatch.setattr(torch.distributed, "init_process_group", done.append)
    utils.start_distributed()
    assert done == [torch.device("cuda:1"), "nccl"]


# --- Ctrl-C


def test_ctrl_c_ends_a_loop_in_a_script():
    runs = []
    with pytest.raises(KeyboardInterrupt) as caught:
        for _ in range(3):
            runs.append(1)
            fit(nn.Linear(5, 2), on_epoch=lambda history: os.kill(os.getpid(), signal.SIGINT))
    assert len(runs) == 1 and len(caught.value.history) == 1


IN_A_NOTEBOOK = """
import os, signal, torch, utils
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell('''
import os, signal, torch, utils
net = torch.nn.Linear(5, 2)
batches = [(torch.rand(4, 5), torch.arange(4) % 2)]
def stop(history):
    os.kill(os.getpid(), signal.SIGINT)
def fit(on_epoch=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return utils.fit(net, batches, batches, optimizer=optimizer, epochs=2, on_epoch=on_epoch, verbose=False)
''', store_history=True)
one = shell.run_cell("history = fit(stop)\\nlen(history)", store_history=True)
loop = shell.run_cell("histories = []\\nfor _ in range(3):\\n    histories.append(fit(stop))", store_history=True)
after = shell.run_cell("len(fit())", store_history=True)
print([one.result, type(loop.error_in_exec).__name__, len(shell.user_ns["histories"]), after.result])
"""


def test_ctrl_c_returns_the_history_to_a_notebook_cell_and_ends_a_loop_in_it(tmp_path):
    pytest.importorskip("IPython")
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    command = [sys.executable, "-c", IN_A_NOTEBOOK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[1, 'KeyboardInterrupt', 1, 2]"


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(tmp_path, monkeypatch):
    write = checkpoints.write_atomically

    def interrupted(path, payload):
        os.kill(os.getpid(), signal.SIGINT)
        write(path, payload)

    monkeypatch.setattr(checkpoints, "write_atomically", interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's & do
    try:
        assert len(fit(nn.Linear(5, 2), checkpoint=tmp_path / "net.pt")) == 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_line_of_an_epoch_is_printed_once_it_is_saved(tmp_path, capsys):
    lines, path = [], tmp_path / "net.pt"

    def on_epoch(history):
        lines.extend(capsys.readouterr().out.splitlines())
        saved = len(utils.load_checkpoint(path)["history"]["seconds"]) if path.exists() else 0
        assert len(lines) == saved == len(history) - 1

    fit(nn.Linear(5, 2), checkpoint=path, on_epoch=on_epoch, verbose=True)
    assert "epoch 2/2" in capsys.readouterr().out
