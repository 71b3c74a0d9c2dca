"""The networks: budget, shapes, gradients and their summary tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = [model.Net, model.Nano, model.Attempt2]


@pytest.mark.parametrize("network", NETWORKS)
def test_fewer_than_8000_parameters(network):
    assert model.count_parameters(network()) < 8000


def test_attempt2_is_the_published_network():
    table = model.summary(model.Attempt2())
    assert model.count_parameters(model.Attempt2()) == 5550
    assert len([line for line in table.splitlines() if "[-1" in line]) == 29


@pytest.mark.parametrize("network", NETWORKS)
def test_the_summary_counts_as_count_parameters_does(network):
    net = network(in_channels=3, num_classes=7)
    total = model.summary(net, (3, 28, 28)).split("Total params: ")[1].split()[0]
    assert int(total.replace(",", "")) == model.count_parameters(net)


def test_count_parameters_counts_a_shared_weight_once():
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    second.weight = first.weight
    assert model.count_parameters(nn.Sequential(first, second)) == 12


@pytest.mark.parametrize("network", NETWORKS)
def test_summary_equals_the_stored_table(network, capsys, request):
    """After an intended change of a network, rewrite its table: python -m pytest tests/test_model.py --overwrite"""
    table = model.summary(network())
    assert capsys.readouterr().out == table
    path = GOLDEN / f"{network.__name__}.txt"
    if request.config.getoption("--overwrite"):
        path.write_text(table)
    assert table == path.read_text()


def test_summary_changes_neither_the_network_nor_the_random_generator():
    net = model.Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    model.summary(net)
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("network", [model.Net, model.Nano])
@pytest.mark.parametrize("side", [20, 21, 28, 32, 45, 64])
def test_any_side_from_20_to_64(network, side):
    assert network()(torch.rand(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_classes_and_a_batch_of_one(network):
    assert network(in_channels=3, num_classes=5).eval()(torch.rand(1, 3, 28, 28)).shape == (1, 5)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(network):
    torch.manual_seed(0)
    net = network()
    F.cross_entropy(net(torch.randn(32, 1, 28, 28)), torch.randint(10, (32,))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("network", NETWORKS)
def test_an_untrained_network_knows_nothing(network):
    torch.manual_seed(0)
    net = network().eval()
    loss = F.cross_entropy(net(torch.randn(256, 1, 28, 28)), torch.randint(10, (256,)))
    assert abs(loss.item() - math.log(10)) < 0.05


@pytest.mark.parametrize("network", NETWORKS)
def test_house_style_batchnorm_dropout_and_1x1_transitions(network):
    kinds = [type(module) for module in network(dropout=0.1).modules()]
    assert nn.BatchNorm2d in kinds and nn.Dropout in kinds
    convolutions = [module for module in network().modules() if isinstance(module, nn.Conv2d)]
    assert any(convolution.kernel_size == (1, 1) for convolution in convolutions)
