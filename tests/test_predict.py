"""predict: probabilities for images of every kind, normalised as in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import model
import utils


def random_data(count: int, channels: int = 1) -> utils.ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 28, 28), generator=generator, dtype=torch.uint8)
    return utils.ImageData(images, torch.arange(count) % 10)


def test_predict_gives_probabilities_for_one_image_and_for_many():
    data, net = random_data(64), model.Net()
    many = utils.predict(net, data.images, data=data)
    assert many.shape == (64, 10) and torch.allclose(many.sum(1), torch.ones(64))
    assert torch.allclose(utils.predict(net, data.images[3], data=data), many[3], atol=1e-6)
    normalised, _ = next(iter(utils.Batches(data, 64)))
    assert torch.allclose(utils.predict(net, normalised), many, atol=1e-5)
    assert net.training


def test_predict_says_what_uint8_images_need():
    with pytest.raises(ValueError, match="data=train"):
        utils.predict(model.Net(), random_data(8).images)


def test_shifted_views_are_the_mean_over_the_image_and_its_neighbours():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, stride=2), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    images = torch.zeros(2, 1, 12, 12)
    images[:, :, 4:8, 4:8] = torch.rand(2, 1, 4, 4)  # away from the border, where rolling is shifting
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    expected = torch.stack([net(images.roll(shift, (2, 3))) for shift in shifts]).mean(0)
    views = utils.ShiftedViews(net)
    torch.testing.assert_close(views(images), expected)
    assert views(torch.rand(2, 1, 12, 12)).shape == (2, 4)
    assert sum(p.numel() for p in views.parameters()) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_predict_agrees_with_evaluate_to_the_bit(dtype):
    torch.manual_seed(0)
    data, net = random_data(1100), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if dtype == torch.float32:
        data = utils.ImageData(data.images / 255, data.labels)
    found = utils.predict(net, data.images, data=data)
    with torch.no_grad():
        expected = torch.cat([net(images).softmax(1) for images, _ in utils.Batches(data, 1000)])
    assert torch.equal(found, expected)


def test_floats_from_0_to_1_are_normalised_by_uint8_data():
    data, net = random_data(16), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    from_bytes = utils.predict(net, data.images, data=data)
    torch.testing.assert_close(utils.predict(net, data.images / 255, data=data), from_bytes)


def test_predict_leaves_the_images_as_they_are():
    data, net = random_data(16), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    images = data.images / 255
    before = images.clone()
    utils.predict(net, images, data=data)
    utils.predict(net, images)
    utils.predict(nn.Sequential(nn.SiLU(inplace=True), *net), images)
    assert torch.equal(images, before)


def test_uint8_images_are_refused_with_data_on_another_scale():
    data, net = random_data(16), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for floats in (data.images.float(), (data.images / 255 - 0.5) / 0.3):
        other = utils.ImageData(floats, data.labels)
        with pytest.raises(ValueError, match="images are uint8, but those that the statistics come from are floats"):
            utils.predict(net, data.images, data=other)
        with pytest.raises(ValueError, match="dataset: images are uint8"):
            utils.as_tensors(data, statistics_of=other)
        assert utils.predict(net, floats, data=other).shape == (16, 10)
    overshooting = utils.ImageData((data.images / 255 - 0.5) * 1.2 + 0.5, data.labels)  # as bicubic interpolation does
    assert utils.predict(net, data.images, data=overshooting).shape == (16, 10)


@pytest.mark.parametrize("logits", [1, None])
def test_predict_needs_a_logit_for_each_class(logits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 1), *([nn.Flatten(0)] if logits is None else []))
    with pytest.raises(ValueError, match=r"model returned \(16,( 1)?\)?.*; expected \(N, K\), a logit for each"):
        utils.predict(net, random_data(16).images / 255)


def test_predict_never_makes_floats_of_more_than_a_chunk():
    largest = 0

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                largest = max(largest, result.numel())
            return result

    data, net = random_data(2500), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with Recorder():
        assert utils.predict(net, data.images, data=data).shape == (2500, 10)
    assert largest == 1000 * 784


def test_predict_works_on_the_models_device_and_answers_on_the_cpu():
    """Fake tensors know their device and refuse to mix devices as real ones do, but need no GPU."""
    data = random_data(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10, device="cuda"))
        for images in (data.images, data.images.float(), torch.zeros(4, 1, 28, 28, device="cuda", dtype=torch.uint8)):
            assert utils.predict(net, images, data=data).device.type == "cpu"


def test_predict_does_not_depend_on_the_default_device():
    data, net = random_data(8), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    expected = utils.predict(net, data.images, data=data)
    with torch.device("meta"):
        assert torch.equal(utils.predict(net, data.images, data=data), expected)


def test_a_network_that_caches_something_in_forward_trains_after_predict():
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(784, 10), None

        def forward(self, images):
            if self.scale is None:
                self.scale = torch.full((784,), 0.5)
            return self.linear(images.flatten(1) * self.scale)

    data, net = random_data(8), Caching()
    utils.predict(net, data.images, data=data)
    inputs = torch.rand(8, 1, 28, 28, requires_grad=True)
    net(inputs).sum().backward()
    assert net.linear.weight.grad is not None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(28, 28), r"float32 \(28, 28\); expected uint8 or floats of shape \(N, C, H, W\) or \(C, H, W\)"),
        (
            torch.zeros(2, 1, 28, 28, dtype=torch.int64),
            r"images are torch.int64 \(2, 1, 28, 28\); expected uint8 or floats",
        ),
        (torch.zeros(2, 3, 28, 28), r"shape \(2, 3, 28, 28\), 3 channels; expected 1 as in data"),
        (torch.zeros(5, 28, 28, dtype=torch.uint8), r"5 channels; expected 1 as in data.*unsqueeze\(1\)"),
    ],
)
def test_predict_names_what_is_wrong_with_the_images(images, message):
    with pytest.raises(ValueError, match=message):
        utils.predict(nn.Flatten(), images, data=random_data(4))


@pytest.mark.parametrize("images", [random_data(4).images.numpy(), random_data(4), "seven.jpg"])
def test_predict_says_what_it_reads(images):
    with pytest.raises(TypeError, match=rf"images is {type(images).__name__}; expected a tensor, such as"):
        utils.predict(nn.Flatten(), images, data=random_data(4))
