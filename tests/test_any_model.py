"""The promise to any model and any optimizer: fit asks for logits and gradients, nothing else."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import utils


def two_classes(count: int = 120, weights: tuple[float, float] = (0.5, 0.5)) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    cut = torch.quantile(inputs[:, 0], weights[0])
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > cut).long()), batch_size=24)


def fit(net, optimizer, batches=None, **arguments):
    batches = batches or two_classes()
    return utils.fit(net, batches, batches, **{"epochs": 5, "optimizer": optimizer, "verbose": False, **arguments})


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def test_a_bare_sequential_without_batchnorm_and_dropout_learns():
    net = plain_net()
    assert fit(net, torch.optim.SGD(net.parameters(), lr=0.5)).test_accuracy[-1] > 90


def test_parameter_groups_keep_their_own_learning_rates():
    net = plain_net()
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters(), "lr": 0.5}]
    )
    fit(net, optimizer)
    same = [torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True)]
    assert same == [True, True, False, False]


def test_frozen_layers_stay_as_they_are():
    net = plain_net()
    net[0].requires_grad_(False)
    frozen = net[0].weight.clone()
    history = fit(net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05))
    assert torch.equal(net[0].weight, frozen) and history.train_loss[-1] < history.train_loss[0]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_frozen_parameters_may_be_given_to_the_optimizer_too(optimizer):
    net = plain_net()
    net[0].requires_grad_(False)
    fit(net, optimizer(net.parameters(), lr=0.01))


def test_class_weights_shift_the_decisions():
    counts = []
    for weights in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 30.0])):
        net = plain_net()
        batches = two_classes(weights=(0.8, 0.2))
        fit(net, torch.optim.SGD(net.parameters(), lr=0.05), batches, criterion=nn.CrossEntropyLoss(weights))
        counts.append(sum(int(net(inputs).argmax(1).sum()) for inputs, _ in batches))
    assert counts[1] > counts[0] + 20


def test_label_smoothing_as_a_partial():
    net = plain_net()
    criterion = functools.partial(F.cross_entropy, label_smoothing=0.1)
    assert fit(net, torch.optim.SGD(net.parameters(), lr=0.5), criterion=criterion).test_accuracy[-1] > 90


class SignDescent(torch.optim.Optimizer):
    """An optimizer of the user's own, without state."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_a_custom_optimizer_with_a_scheduler_stepped_as_the_caller_says(step, tmp_path):
    net = plain_net()
    optimizer = SignDescent(net.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
    history = fit(net, optimizer, scheduler=scheduler, scheduler_step=step, checkpoint=tmp_path / "net.pt", epochs=6)
    rates = {"batch": [0.02 * 0.1**epoch for epoch in range(6)], "epoch": [0.02] * 5 + [0.002]}
    assert history.learning_rate == pytest.approx(rates[step])
    assert history.test_loss[-1] < history.test_loss[0]
