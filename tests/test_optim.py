"""Muon and the learning-rate schedule: right, and with the manners of every torch optimizer."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.optim import Muon, linear_schedule

ROOT = Path(__file__).resolve().parent.parent


def weight_with_gradient(*shape: int) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, generator=generator))
    weight.grad = torch.randn(shape, generator=generator)
    return weight


# --- What a step does


@pytest.mark.parametrize("shape", [(32, 32), (10, 48), (64, 24)])
def test_muon_steps_as_torchs_does_on_matrices(shape):
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    torchs = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0, "nesterov": True, "momentum": 0.95}
    optimizers = [Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, **torchs)]
    for _ in range(8):
        gradient = torch.randn(shape)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        assert (ours - theirs).norm() < 0.02 * theirs.norm()  # theirs orthogonalises in bfloat16


def test_muon_makes_every_singular_value_of_a_step_alike():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(8, 3, 3, 3))
    weight.grad = torch.randn(8, 27).mul(torch.logspace(0, -1.5, 27)).view(8, 3, 3, 3)
    Muon([weight], 1.0).step()
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.2 * 27**0.5)
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_finds_the_bottom_of_a_narrow_valley():
    torch.manual_seed(0)
    goal, weight = torch.randn(4, 6), nn.Parameter(torch.zeros(4, 6))
    stretch = torch.logspace(0, -2, 6)
    optimizer = Muon([weight], 0.3, momentum=0.9)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        optimizer.zero_grad()
        (((weight - goal) * stretch) ** 2).sum().backward()
        optimizer.step()
    assert (weight - goal).abs().max() < 0.1


def test_muon_trains_networks_in_channels_last_whose_weights_share_a_shape():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    twin = nn.Sequential(
        *(type(layer)(*args) for layer, args in zip(net, [(1, 4, 3), (4, 4, 3), (4, 4, 3), (1,), ()], strict=True))
    )
    twin.load_state_dict(net.state_dict())
    twin.to(memory_format=torch.channels_last)
    images, labels = torch.randn(8, 1, 12, 12), torch.arange(8) % 4
    for module in (net, twin):
        F.cross_entropy(module(images), labels).backward()
        Muon(module.parameters(), 0.1).step()
    for one, two in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-4)


def test_muon_skips_frozen_and_unused_parameters():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    net[1](torch.ones(1, 3)).sum().backward()
    Muon(net.parameters(), lr=0.1).step()
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["1.weight", "1.bias"]


def test_weight_decay_is_decoupled_and_spares_vectors():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    Muon([weight, bias], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weight, torch.full((2, 2), 1 - 0.1 * 0.5)) and torch.equal(bias, torch.ones(2))


# --- The manners of a torch optimizer


def test_step_calls_the_closure_with_gradients_and_returns_its_loss():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert not torch.equal(weight, torch.ones(2, 2))
    assert optimizer.step() is None


def test_a_group_added_later_has_options_of_its_own():
    first, second = weight_with_gradient(4, 4), weight_with_gradient(4, 4)
    optimizer = Muon([first], lr=0.1)
    optimizer.add_param_group({"params": [second], "lr": 0.2})
    before = first.detach().clone()
    optimizer.step()
    torch.testing.assert_close(second - before, 2 * (first - before))


@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([0.1]), np.float64(0.1), np.float32(0.1)])
def test_lr_may_be_a_tensor_or_a_numpy_float(lr):
    plain, other = weight_with_gradient(4, 4), weight_with_gradient(4, 4)
    Muon([plain], lr=0.1, weight_decay=0.1).step()
    Muon([other], lr=lr, weight_decay=0.1).step()
    torch.testing.assert_close(plain, other)


def test_a_schedule_moves_a_learning_rate_that_is_a_tensor():
    rates = []
    for lr in (0.1, torch.tensor(0.1)):
        optimizer = Muon([weight_with_gradient(2, 2)], lr=lr)
        schedule = linear_schedule(optimizer, 4)
        rates.append([])
        for _ in range(4):
            rates[-1].append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
    assert rates[0] == pytest.approx(rates[1]) and len(set(rates[0])) > 1


def test_the_state_dict_continues_a_run_to_the_bit():
    def steps(optimizer, weight, count):
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    weight = weight_with_gradient(3, 5)
    optimizer = Muon([weight], lr=0.1)
    steps(optimizer, weight, 3)
    copied = nn.Parameter(weight.detach().clone())
    resumed = Muon([copied], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, weight, 3), steps(resumed, copied, 3)
    assert torch.equal(weight, copied)


def test_muon_does_not_import_torchs_compiler():
    code = """
import sys, torch
from kit.optim import Muon
weight = torch.nn.Parameter(torch.ones(2, 2))
optimizer = Muon([weight], lr=0.1)
optimizer.zero_grad(), weight.sum().backward(), optimizer.step(), optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr is tensor"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a finite number of at least 0 and below 1"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"maximize": True}, "maximize is True.*negate the loss"),
    ],
)
def test_impossible_options_are_refused_for_each_group(options, message):
    optimizer = Muon([weight_with_gradient(2, 2)], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [weight_with_gradient(2, 2)], **options})
    assert len(optimizer.param_groups) == 1
    with pytest.raises((ValueError, TypeError), match=message if "maximize" not in options else "maximize"):
        Muon([weight_with_gradient(2, 2)], **{"lr": 0.1, **options})


def test_complex_parameters_are_refused():
    weight = nn.Parameter(torch.ones(3, 2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="Muon does not support complex parameters"):
        Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones_like(weight))


def test_sparse_gradients_are_refused():
    layer = nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="Muon does not support sparse gradients"):
        Muon(layer.parameters(), lr=0.1).step()


# --- The schedule


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.2), (10, 0.0), (10, 1.0), (1, 0.2)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps, warmup):
    optimizer = torch.optim.SGD([weight_with_gradient(2)], lr=0.5)
    schedule = linear_schedule(optimizer, steps, warmup)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    peak = max(1, round(warmup * steps)) - 1
    assert max(rates) == rates[peak] == 0.5 and min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "steps is 0"), ((1.5,), "steps is 1.5"), ((10, -0.1), "warmup is -0.1"), ((10, math.nan), "warmup is nan")],
)
def test_the_schedule_refuses_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_schedule(torch.optim.SGD([weight_with_gradient(2)], lr=0.5), *arguments)
