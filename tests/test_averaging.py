"""The moving average of the weights: what it is, where it stands, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import utils


def points(count: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four batches of points (N, 5) in two classes."""
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    return list(zip(inputs.chunk(4), (inputs[:, 0] > 0).long().chunk(4), strict=True))


def net_with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def fit(net: nn.Module, **arguments) -> utils.History:
    arguments.setdefault("optimizer", torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    return utils.fit(net, points(), points(), **{"epochs": 3, "verbose": False, **arguments})


def weights_after_each_step(epochs: int = 3) -> list[dict[str, torch.Tensor]]:
    net, seen = net_with_norm(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.register_step_post_hook(
        lambda *_: seen.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
    )
    fit(net, optimizer=optimizer, epochs=epochs)
    return seen


# --- What it is


def test_a_share_of_one_is_the_mean_of_all_steps_with_the_statistics_of_batchnorm():
    steps, net = weights_after_each_step(), net_with_norm()
    fit(net, average=1)
    assert len(steps) == 12
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var", "3.bias"):
        mean = torch.stack([weights[name] for weights in steps]).mean(0)
        assert torch.allclose(net.state_dict()[name], mean, atol=1e-6), name


def test_a_share_of_a_third_weighs_the_steps_by_a_polynomial():
    # k = 3: step t counts t (t + 1), up to a factor
    steps, net = weights_after_each_step(), net_with_norm()
    fit(net, average=1 / 3)
    counts = torch.tensor([t * (t + 1.0) for t in range(1, 13)])
    for name in ("0.weight", "1.running_var"):
        stacked = torch.stack([weights[name] for weights in steps])
        expected = torch.tensordot(counts / counts.sum(), stacked, 1)
        assert torch.allclose(net.state_dict()[name], expected, atol=1e-6), name


def test_training_goes_on_from_the_last_weights_and_the_test_sees_their_average():
    plain, averaged = net_with_norm(), net_with_norm()
    one, two = fit(plain), fit(averaged, average=0.5)
    assert one.train_loss == two.train_loss  # the very same steps
    assert one.test_loss != two.test_loss
    assert utils.evaluate(averaged, points()).loss == two.test_loss[-1]  # what was tested is what is left
    assert averaged[1].num_batches_tracked == plain[1].num_batches_tracked == 12


def test_on_epoch_sees_the_weights_that_were_tested():
    net, seen = net_with_norm(), []
    history = fit(net, average=0.5, on_epoch=lambda history: seen.append(utils.evaluate(net, points()).loss))
    assert seen == history.test_loss


def test_training_goes_on_from_the_last_weights_whatever_on_epoch_does_to_the_average():
    net = net_with_norm()
    history = fit(net, average=0.5, on_epoch=lambda _: torch.nn.init.zeros_(net[0].weight))
    assert history.train_loss == fit(net_with_norm()).train_loss


def test_a_recipe_averages_unless_told_not_to():
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data, losses = utils.ImageData(images, torch.arange(64) % 2), []
    for recipe in (utils.Recipe(epochs=3, batch_size=4), utils.Recipe(epochs=3, batch_size=4, average=0)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        losses.append(vars(utils.train_network(net, data, data, replace(recipe, augment=None), verbose=False)))
    assert losses[0]["train_loss"] == losses[1]["train_loss"] and losses[0]["test_loss"] != losses[1]["test_loss"]


def test_a_loop_of_your_own_averages_too():
    net, twin = net_with_norm(), net_with_norm()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    average = utils.WeightAverage(net, 0.25)
    losses = []
    for _ in range(3):
        with average.training(optimizer):
            utils.train_epoch(net, points(), optimizer)
        losses.append(utils.evaluate(net, points()).loss)
    assert losses == fit(twin, average=0.25).test_loss
    assert not optimizer._optimizer_step_post_hooks  # steps outside of `training` do not count


def test_weights_that_are_loaded_before_the_first_step_are_trained():
    loaded, net = net_with_norm(), net_with_norm()
    nn.init.ones_(net[0].weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    average = utils.WeightAverage(net, 0.5)
    net.load_state_dict(loaded.state_dict())
    with average.training(optimizer):
        assert utils.train_epoch(net, points(), optimizer).loss == fit(loaded, epochs=1).train_loss[0]


def test_statistics_are_averaged_though_on_epoch_moves_the_network_and_back():
    net, moved = net_with_norm(), net_with_norm()
    history = fit(net, average=0.3)
    assert fit(moved, average=0.3, on_epoch=lambda _: moved.double().float()).test_loss == history.test_loss
    assert torch.equal(moved[1].running_var, net[1].running_var)


def test_lazy_layers_are_averaged_from_their_first_step_on():
    def train(average: float) -> list[float]:
        torch.manual_seed(0)
        return fit(nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(2)), average=average).test_loss

    assert train(0.5) != train(0)


def test_a_state_is_that_of_now_and_fits_one_network_alone():
    net, twin = net_with_norm(), net_with_norm()
    optimizer, average = torch.optim.SGD(net.parameters(), lr=0.1), utils.WeightAverage(net, 0.5)
    with average.training(optimizer):
        utils.train_epoch(net, points(), optimizer)
        state, trained = average.state_dict(), net[0].weight.clone()
        assert torch.equal(state["trained"][0], trained)
        other = utils.WeightAverage(twin, 0.5)
        other.load_state_dict(state)
    with other.training(torch.optim.SGD(twin.parameters(), lr=0.1)):
        assert torch.equal(twin[0].weight, trained)
    assert torch.equal(twin[0].weight, net[0].weight) and other.steps == 4
    with pytest.raises(ValueError, match="state is the average of another network"):
        utils.WeightAverage(nn.Sequential(nn.Linear(1, 8)), 0.5).load_state_dict(state)


def test_weights_of_half_precision_are_averaged_in_full_precision():
    net = nn.Linear(1, 1, bias=False).bfloat16()
    optimizer, average = torch.optim.SGD(net.parameters(), lr=1.0), utils.WeightAverage(net, 1)
    with average.training(optimizer):
        for step in range(1000):
            net.weight.data.fill_(float(step >= 500))
            net.weight.grad = torch.zeros_like(net.weight)
            optimizer.step()
    assert net.weight.item() == 0.5 and net.weight.dtype == torch.bfloat16


# --- What it leaves alone


def test_other_buffers_stay_as_they_are():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 2)
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs):
            self.calls = self.calls + 1  # another tensor each time
            return self.linear(inputs)

    net = Masked()
    fit(net, average=0.5)
    assert net.mask.tolist() == [0.0, -math.inf] and net.calls == 24
    assert net.linear.weight.isfinite().all()


def test_a_frozen_mask_of_infinities_stays_and_hides_no_divergence():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 2)
            self.mask = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)

        def forward(self, inputs):
            return self.linear(inputs) + 0 * self.mask.exp()

    net = Masked()
    history = fit(net, average=0.3)
    assert net.mask.tolist() == [0.0, -math.inf] and all(map(math.isfinite, history.test_loss))
    optimizer, average = torch.optim.SGD(net.linear.parameters(), lr=0.1), utils.WeightAverage(net, 0.3)
    with average.training(optimizer):
        utils.train_epoch(net, points(), optimizer)
        net.linear.bias.data.fill_(math.nan)
        optimizer.step()
    assert net.linear.bias.isnan().all()


def test_frozen_weights_stay_equal_to_the_bit():
    net = net_with_norm()
    net[0].requires_grad_(False)
    net[1].eval()
    before = [tensor.clone() for tensor in (net[0].weight, net[1].running_mean, net[1].running_var)]
    fit(net, average=0.3, optimizer=torch.optim.SGD([*net[1].parameters(), *net[3].parameters()], lr=0.1))
    for tensor, kept in zip((net[0].weight, net[1].running_mean, net[1].running_var), before, strict=True):
        assert torch.equal(tensor, kept)


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2))
    net[1].weight = net[0].weight
    fit(net, average=0.5)
    assert net[1].weight is net[0].weight


# --- Its edges


def test_an_interrupted_epoch_leaves_the_average_so_far():
    stopped, whole = net_with_norm(), net_with_norm()

    class Stopping(list):
        def __iter__(self):
            yield from list.__iter__(self)
            raise KeyboardInterrupt

    optimizer = torch.optim.SGD(stopped.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(KeyboardInterrupt):
        utils.fit(stopped, Stopping(points()), points(), optimizer=optimizer, average=0.5, verbose=False)
    fit(whole, average=0.5, epochs=1)
    assert all(torch.equal(*pair) for pair in zip(stopped.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, True, "0.1"])
def test_a_share_out_of_range_is_refused(value):
    for call in (lambda: fit(net_with_norm(), average=value), lambda: utils.Recipe(average=value)):
        with pytest.raises(ValueError, match=r"average is .*; expected a finite number from 0 to 1"):
            call()
    for share in (value, 0):
        with pytest.raises(ValueError, match="share is"):
            utils.WeightAverage(net_with_norm(), share)


def test_an_optimizer_without_hooks_is_refused_only_where_one_is_needed():
    class Wrapper:
        def __init__(self, optimizer):
            self.inner, self.param_groups = optimizer, optimizer.param_groups

        def zero_grad(self):
            self.inner.zero_grad()

        def step(self):
            self.inner.step()

    class Unhooked(Wrapper, torch.optim.Optimizer):
        """As some wrappers are: a torch optimizer whose own `__init__`, which puts the hooks in, is not called."""

    class Silent(Unhooked):
        def register_step_post_hook(self, hook):
            return self.inner.register_step_pre_hook(lambda *_: None)

    net = net_with_norm()
    for kind in (Wrapper, Unhooked, Silent):
        wrapper = kind(torch.optim.SGD(net.parameters(), lr=0.1))
        with pytest.raises(
            TypeError, match=rf"optimizer is {kind.__name__}, which calls no hook after a step.*average=0"
        ):
            fit(net, optimizer=wrapper, average=0.1)
        assert len(fit(net, optimizer=wrapper)) == 3


def test_a_block_without_a_step_is_no_fault_of_the_optimizer():
    """The last batches of an accumulation, a loss scaler that skips its steps, a loop over nothing."""
    net = net_with_norm()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    average = utils.WeightAverage(net, 0.5)
    for steps in (0, 0, 1, 0):
        with average.training(optimizer):
            net(points()[0][0]).sum().backward()  # moves the statistics of BatchNorm
            for _ in range(steps):
                optimizer.step()
        average.load_state_dict(average.state_dict())
    assert average.steps == 1


def test_a_block_that_cannot_begin_leaves_no_hook_behind():
    net = net_with_norm()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    average = utils.WeightAverage(net, 0.5)

    def step():
        with average.training(optimizer):
            net(points()[0][0]).sum().backward()
            optimizer.step()

    step()
    last, net[3] = net[3], nn.Linear(8, 3)
    with pytest.raises(RuntimeError, match="size"):
        step()
    net[3] = last
    step()
    assert average.steps == 2


def test_training_within_training_is_refused():
    net = net_with_norm()
    optimizer, average = torch.optim.SGD(net.parameters(), lr=0.1), utils.WeightAverage(net, 0.5)
    for _ in range(2):
        with average.training(optimizer), pytest.raises(RuntimeError, match="leave the outer `with` first"):
            optimizer.step()
            with average.training(optimizer):
                pass
