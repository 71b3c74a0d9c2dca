"""The networks: budget, shapes, gradients and their summary tables."""

from __future__ import annotations

import copy
import math
import pickle
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


@pytest.mark.parametrize("side", [20, 29, 32, 64])
def test_attempt2_refuses_images_of_another_size(side):
    with pytest.raises(ValueError, match=rf"images are \(2, 1, {side}, {side}\); expected 28 x 28 pixels"):
        model.Attempt2()(torch.rand(2, 1, side, side))


def test_a_stem_at_full_side_has_fewer_weights_and_halves_the_side_all_the_same():
    halved, full = model.Net(stem=6), model.Net(stem=6, stem_stride=1)
    assert model.count_parameters(halved) - model.count_parameters(full) == 6 * (5 * 5 - 3 * 3)
    images = torch.rand(2, 1, 28, 28)
    # Up to the first separable block: convolution, BatchNorm and SiLU; behind a stem at full resolution also a pooling.
    assert halved.layers[:3](images).shape == full.layers[:5](images).shape == (2, 6, 14, 14)
    assert full(images).shape == (2, 10) and full.layers[:1](images).shape == (2, 6, 28, 28)
    with pytest.raises(ValueError, match="stem_stride is 3; expected 1 or 2"):
        model.Net(stem_stride=3)


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


# ---- The parts ----


def side_by_side(*shape: int) -> torch.Tensor:
    """Random maps whose gradient is wanted, the channels of a pixel side by side."""
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def attention() -> model.ChannelAttention:
    torch.manual_seed(0)
    layer = model.ChannelAttention()
    nn.init.normal_(layer.weight)
    return layer


def test_channel_attention_scales_nothing_at_the_start():
    maps = side_by_side(3, 5, 4, 6)
    assert torch.equal(model.ChannelAttention()(maps), maps)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_channel_attention_is_a_convolution_along_the_means_of_the_channels(channels):
    layer, maps = attention(), side_by_side(3, channels, 4, 6)
    means = maps.mean((2, 3))
    factors = 2 * F.conv1d(means[:, None], layer.weight[None], padding=1).sigmoid()[:, 0]
    assert torch.allclose(layer(maps), maps * factors[:, :, None, None], atol=1e-6)


def test_channel_attention_depends_on_the_two_neighbours_alone():
    layer, maps = attention(), torch.randn(1, 9, 4, 4)
    changed = maps.clone()
    changed[:, 4] += 1
    same = (layer(maps) == layer(changed)).all(3).all(2)[0]
    assert [channel for channel in range(9) if not same[channel]] == [3, 4, 5]
    places = torch.randperm(16)  # where in a map a value lies does not matter
    shuffled = maps.flatten(2)[:, :, places].view_as(maps)
    assert torch.allclose(layer(shuffled), layer(maps).flatten(2)[:, :, places].view_as(maps), atol=1e-6)


@pytest.mark.parametrize("side", [13, 14])
def test_blur_pool_is_a_maximum_and_a_blur(side):
    maps = side_by_side(2, 3, side, side)
    kernel = torch.full((3, 1, 3, 3), 1 / 9)
    expected = F.conv2d(F.max_pool2d(maps, 2, 1), kernel, stride=2, padding=1, groups=3)
    assert torch.allclose(nn.Sequential(*model.blur_pool())(maps), expected, atol=1e-6)


def test_blur_pool_keeps_a_constant_inside_and_follows_a_shift():
    pool = nn.Sequential(*model.blur_pool())
    assert torch.allclose(pool(torch.full((1, 1, 14, 14), 0.7))[:, :, 1:-1, 1:-1], torch.tensor(0.7))
    maps = torch.randn(1, 2, 16, 16)
    shifted = pool(maps.roll((2, 4), (2, 3)))
    assert torch.allclose(shifted[:, :, 2:-1, 3:-1], pool(maps)[:, :, 1:-2, 1:-3], atol=1e-6)


@pytest.mark.parametrize("side", [5, 7])
def test_the_global_average_is_torchs(side):
    maps = side_by_side(2, 3, side, side + 1)
    assert torch.allclose(model.GlobalAvgPool()(maps), F.adaptive_avg_pool2d(maps, 1), atol=1e-6)


@pytest.mark.parametrize("layer", [attention(), nn.Sequential(*model.blur_pool()), model.GlobalAvgPool()])
def test_maps_and_gradients_keep_the_channels_side_by_side(layer):
    """Other layouts give the same numbers, but every layer behind and before then has to copy them."""
    maps = side_by_side(4, 8, 6, 6)
    result = layer(maps)
    assert result.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(result, maps, torch.randn_like(result))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


# ---- As any module ----


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "twin_of",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: _from_state(type(net)(), net),
        lambda net: _from_state(_on_meta(type(net)).to_empty(device="cpu"), net),
    ],
    ids=["deepcopy", "pickle", "state_dict", "from meta"],
)
def test_a_copy_gives_the_same_logits(network, twin_of):
    torch.manual_seed(0)
    net, images = network(), torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        net(images)
    twin = twin_of(net.eval()).eval()
    assert torch.equal(twin(images), net(images))
    wide = copy.deepcopy(net).double()(images.double())
    assert wide.dtype == torch.float64 and torch.allclose(wide, net(images).double(), atol=1e-4)


def _on_meta(network: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        net = network()
    assert all(value.is_meta for value in (*net.parameters(), *net.buffers()))
    return net


def _from_state(fresh: nn.Module, net: nn.Module) -> nn.Module:
    fresh.load_state_dict(net.state_dict())
    return fresh


@pytest.mark.parametrize("early, late", [((8,), (8,)), ((8, 12), ()), ((), (8, 12, 16))])
def test_any_widths(early, late):
    net = model.Net(stem=6, early=early, late=late)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert sum(isinstance(layer, model.ChannelAttention) for layer in net.modules()) == len(late)
