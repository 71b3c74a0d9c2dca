"""Batches and augmentation: every image as often as promised, reproducible, on any device, in any process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import utils


def random_data(count: int = 64, channels: int = 1, side: int = 28) -> utils.ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return utils.ImageData(images, torch.arange(count) % 10)


def numbered(count: int) -> utils.ImageData:
    """Data whose labels count the images."""
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    return utils.ImageData(images, torch.arange(count), mean=(0.0,), std=(1.0,))


def labels_of(batches: utils.Batches) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


# --- Batches


def test_batches_without_shuffle_are_ordered_repeatable_and_normalised():
    data = random_data()
    batches = utils.Batches(data, 10)
    assert len(batches) == len(list(batches)) == 7
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(labels, data.labels)
    expected = (data.images.float() / 255 - data.mean[0]) / data.std[0]
    assert torch.allclose(images, expected, atol=1e-5)
    again = torch.cat([images for images, _ in batches])
    assert torch.equal(images, again)


def test_shuffle_visits_every_image_once_in_an_order_that_the_seed_decides():
    data = utils.ImageData(torch.zeros(50, 1, 4, 4, dtype=torch.uint8), torch.arange(50), mean=(0.0,), std=(1.0,))

    def order(batches):
        return torch.cat([labels for _, labels in batches]).tolist()

    batches = utils.Batches(data, 8, shuffle=True, seed=5)
    first, second = order(batches), order(batches)
    assert sorted(first) == list(range(50)) and first != second
    assert order(utils.Batches(data, 8, shuffle=True, seed=5)) == first
    assert order(utils.Batches(data, 8, shuffle=True, seed=6)) != first


def test_augmented_batches_are_reproducible_whatever_the_global_generator_and_threads():
    def draw(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        try:
            return [
                images for images, _ in utils.Batches(random_data(), 16, augment=utils.Augment(), shuffle=True, seed=1)
            ]
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(one, two) for one, two in zip(draw(1), draw(2), strict=True))


def noted(batches: utils.Batches, loss_of) -> list[int]:
    """Make a pass in which each image has the loss `loss_of(label)`; return the labels in order."""
    visited = []
    for _, labels in batches:
        # Of two logits 0 and x, the first has the cross-entropy log(1 + exp(x)); the others are as good as none.
        logits = torch.full((len(labels), len(batches.data.classes)), -1e9)
        losses = torch.tensor([float(loss_of(label)) for label in labels.tolist()])
        logits[torch.arange(len(labels)), labels] = 0
        logits[torch.arange(len(labels)), (labels + 1) % len(batches.data.classes)] = losses.expm1().log()
        batches.note_losses(logits)
        visited += labels.tolist()
    return visited


def test_each_pass_but_the_first_visits_its_share_in_whole_batches():
    batches, lengths = utils.Batches(numbered(50), 8, shuffle=True, subsample=0.3, seed=0), []
    for epoch in range(3):
        batches.set_epoch(epoch)
        visited = labels_of(batches)
        assert len(visited) == len(batches)
        images = [label for labels in visited for label in labels]
        assert len(set(images)) == len(images) == (50, 16, 16)[epoch]  # no image comes twice
        lengths.append(len(visited))
    assert lengths == [7, 2, 2] and [batches.steps(epochs) for epochs in range(4)] == [0, 7, 9, 11]


def test_images_come_in_proportion_to_their_last_losses():
    batches, counts = utils.Batches(numbered(400), 4, shuffle=True, subsample=0.01, seed=0), torch.zeros(400)
    assert torch.allclose(batches.losses, torch.tensor(math.log(400)))

    def loss_of(label):
        return 0 if label < 200 else 1 if label < 300 else 3

    noted(batches, loss_of)
    assert torch.allclose(batches.losses, torch.tensor([*[0.0] * 200, *[1.0] * 100, *[3.0] * 100]), atol=1e-4)
    batches.set_epoch(1)
    for _ in range(500):  # 4 of 400 images each time
        counts[noted(batches, loss_of)] += 1
    none, one, three = counts[:200].sum(), counts[200:300].sum(), counts[300:].sum()
    assert none < 20 and 2.5 < three / one < 3.5


def test_an_image_is_drawn_by_its_last_loss_not_by_an_earlier_one():
    batches = utils.Batches(numbered(40), 4, shuffle=True, subsample=0.25, seed=0)
    noted(batches, lambda label: 5 if label < 12 else 0)
    batches.set_epoch(1)
    assert max(first := noted(batches, lambda label: 0)) < 12  # 12 images are known for a loss
    assert {*range(12)} - {*first} <= {*noted(batches, lambda label: 0)}


def test_without_losses_for_most_images_the_share_is_still_full():
    batches = utils.Batches(numbered(40), 4, shuffle=True, subsample=0.5, seed=0)
    noted(batches, lambda label: 0)
    batches.set_epoch(1)
    assert len(set(noted(batches, lambda label: 0))) == 20


def test_losses_are_noted_whatever_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        batches = utils.Batches(random_data(), 16, shuffle=True, subsample=0.5)
        next(iter(batches))
        batches.note_losses(torch.zeros(16, 10))
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_are_the_same_for_the_same_seed():
    def passes(seed):
        batches = utils.Batches(numbered(60), 8, shuffle=True, subsample=0.4, augment=utils.Augment(), seed=seed)
        first = noted(batches, lambda label: label)
        batches.set_epoch(1)
        return first, noted(batches, lambda label: label)

    assert passes(1) == passes(1) != passes(2)


def test_subsample_refuses_what_it_cannot_do():
    for value in (0, 1.5, math.nan, True):
        with pytest.raises(ValueError, match=f"subsample is {value}; expected a finite number above 0 and at most 1"):
            utils.Batches(random_data(), shuffle=True, subsample=value)
    with pytest.raises(ValueError, match=r"subsample is 0\.5 and shuffle is False"):
        utils.Batches(random_data(), subsample=0.5)
    batches = utils.Batches(random_data(), 16, shuffle=True, subsample=0.5)
    next(iter(batches))
    for shape in ((16, 10, 1, 1), (16, 1), (16, 2), (4, 10)):  # one logit for two classes: binary cross-entropy
        with pytest.raises(ValueError, match=rf"K of at least 10, .* are \({', '.join(map(str, shape))}\) for 16"):
            batches.note_losses(torch.zeros(shape))
    utils.Batches(random_data(), 16, shuffle=True).note_losses(torch.zeros(16, 10, 1, 1))  # nobody draws by them


def test_test_batches_use_the_statistics_of_the_training_images():
    train = random_data()
    dark = train.images // 4
    test = utils.ImageData(dark, train.labels, train.classes, mean=train.mean, std=train.std)
    images, _ = next(iter(utils.Batches(test, 64)))
    assert torch.allclose(images, (dark.float() / 255 - train.mean[0]) / train.std[0], atol=1e-5)


def test_batches_refuse_what_is_no_data_set_and_impossible_sizes():
    with pytest.raises(TypeError, match="as_tensors"):
        utils.Batches([(1, 2)], 4)
    for size in (0, 1.5, True, "16"):
        with pytest.raises(ValueError, match=f"batch_size is {size!r}; expected a whole number"):
            utils.Batches(random_data(), size)
    assert len(utils.Batches(random_data(), np.int64(16), augment_epochs=np.int64(2))) == 4


def test_later_epochs_show_the_images_as_they_are():
    data = random_data()
    plain = torch.cat([images for images, _ in utils.Batches(data, 16, device="cpu")])
    batches = utils.Batches(data, 16, augment=utils.Augment(), augment_epochs=1, device="cpu", seed=0)
    seen = []
    for epoch in (0, 1, 2, 0):
        batches.set_epoch(epoch)
        seen.append(torch.cat([images for images, _ in batches]))
    assert torch.equal(seen[1], plain) and torch.equal(seen[2], plain)
    assert not torch.equal(seen[0], plain) and not torch.equal(seen[3], plain)
    with pytest.raises(ValueError, match="augment_epochs is -1"):
        utils.Batches(data, 16, augment_epochs=-1)


@pytest.mark.parametrize("count", [32, 33, 47])
def test_drop_last_leaves_out_a_smaller_last_batch_as_dataloader_does(count):
    data = numbered(count)
    for drop_last in (False, True):
        loader = torch.utils.data.DataLoader(range(count), 16, drop_last=drop_last)
        batches = utils.Batches(data, 16, drop_last=drop_last)
        assert labels_of(batches) == [batch.tolist() for batch in loader]
        assert len(batches) == len(loader)


def test_an_augmentation_may_return_a_view_of_its_input():
    data = random_data(channels=3)

    def grey(images, generator):
        return images[:, :1].expand(-1, 3, -1, -1)

    found = torch.cat([images for images, _ in utils.Batches(data, 16, augment=grey, seed=0)])
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (data.mean, data.std))
    torch.testing.assert_close(found, (data.images[:, :1] / 255 - mean) / std)


def test_an_augmentation_may_keep_what_it_returns():
    kept = []

    def keep(images, generator):
        kept.append(images)
        return images

    for _ in utils.Batches(random_data(), 16, augment=keep, shuffle=True, seed=0):
        assert kept[-1].min() >= 0 and kept[-1].max() <= 1


def test_the_default_device_changes_nothing():
    """Whatever torch.set_default_device says, data and batches are on the CPU unless the kit is told otherwise."""
    expected = [images for images, _ in utils.Batches(random_data(), 16, augment=utils.Augment(), device="cpu", seed=0)]
    dataset = [(image.numpy()[0], int(label)) for image, label in zip(random_data().images, range(64), strict=True)]
    with torch.device("meta"):
        train, test = utils.load_mnist()
        data = utils.ImageData(random_data_on_cpu(), torch.zeros(64, dtype=torch.int64, device="cpu"))
        floats = utils.ImageData(data.images.float() / 255, data.labels)
        part, held_out = utils.split(utils.as_tensors(dataset), 16)
        tensors = [train.images, test.labels, data[:8].images, part.images, held_out.labels]
        batches = utils.Batches(data, 16, augment=utils.Augment(), device="cpu", seed=0)
        found = [images for images, _ in batches]
        shuffled = labels_of(utils.Batches(part, 16, shuffle=True, device="cpu"))
        augmented = utils.Augment(elastic=1.0, erasing=1.0)(floats.images)
    assert {tensor.device.type for tensor in [*tensors, *found, augmented]} == {"cpu"}
    assert floats.mean == pytest.approx(data.mean, abs=1e-6)
    assert all(map(torch.equal, found, expected))
    assert sum(map(len, shuffled)) == 48


def random_data_on_cpu() -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(0, 256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8, device="cpu")


# --- Several processes


def shares(monkeypatch, world: int, make) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What each of `world` processes sees of the batches that `make` makes."""
    seen = []
    for rank in range(world):
        monkeypatch.setattr(utils, "rank_and_world", lambda rank=rank: (rank, world))
        batches = make()
        seen.append(list(batches))
        assert len(seen[-1]) == len(batches)
    return seen


@pytest.mark.parametrize("count", [48, 49, 50, 51, 2])
@pytest.mark.parametrize("world", [2, 3])
def test_test_batches_show_every_image_once_over_all_processes(monkeypatch, world, count):
    seen = shares(monkeypatch, world, lambda: utils.Batches(numbered(count), 16))
    assert len({len(batches) for batches in seen}) == 1  # nobody waits for a batch that another one lacks
    labels = [label for batches in seen for _, labels in batches for label in labels.tolist()]
    assert sorted(labels) == list(range(count))
    assert all(images.shape == (len(labels), 1, 4, 4) for batches in seen for images, labels in batches)


def test_a_training_batch_too_small_for_all_processes_is_left_out_by_all(monkeypatch):
    seen = shares(monkeypatch, 2, lambda: utils.Batches(numbered(5), 2, shuffle=True, seed=0))
    assert [[len(labels) for _, labels in batches] for batches in seen] == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="batch_size is 1; expected at least one image for each of 2 processes"):
        shares(monkeypatch, 2, lambda: utils.Batches(numbered(5), 1, shuffle=True, seed=0))


def test_each_process_augments_with_draws_of_its_own_in_one_common_order(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    data = utils.ImageData(
        torch.randint(0, 256, (1, 1, 28, 28), generator=generator, dtype=torch.uint8), torch.zeros(1).long()
    )
    twice = data[torch.tensor([0, 0])]  # the same image for both processes
    seen = []
    for rank in range(2):
        monkeypatch.setattr(utils, "rank_and_world", lambda rank=rank: (rank, 2))
        batches = utils.Batches(twice, 2, augment=utils.Augment(), shuffle=True, seed=0)
        seen.append(next(iter(batches))[0])
    assert not torch.equal(*seen)


# --- Augment


def test_augmentation_differs_within_a_batch_and_keeps_shape_dtype_and_background():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 10:18, 12:16] = 1.0
    changed = utils.Augment()(image.expand(16, -1, -1, -1), torch.Generator().manual_seed(0))
    assert changed.shape == (16, 1, 28, 28) and changed.dtype == torch.float32
    assert len({tuple(one.flatten().tolist()) for one in changed}) == 16
    assert changed.min() == 0 and changed.max() <= 1
    assert (changed[..., 0, :] == 0).all() and (changed[..., :, 0] == 0).all()


def test_augmentation_is_reproducible_and_no_change_is_no_change():
    images = torch.rand(8, 3, 20, 30)
    augment = utils.Augment(elastic=1.0, erasing=0.5)
    once, twice = (augment(images, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(once, twice)
    still = utils.Augment(rotation=0, translation=0, scale=0, shear=0, elastic=0)
    assert torch.allclose(still(images), images, atol=1e-4)


@pytest.mark.parametrize(
    ("limits", "moved"),
    [({"translation": 0.25}, 7.0), ({"rotation": 90}, None), ({"scale": 0.5}, None), ({"shear": 45}, None)],
)
def test_each_kind_of_change_stays_within_its_limit(limits, moved):
    none = {"rotation": 0, "translation": 0, "scale": 0, "shear": 0, "elastic": 0}
    images = torch.zeros(500, 1, 28, 28)
    images[..., 11:17, 11:17] = 1.0
    changed = utils.Augment(**{**none, **limits})(images, torch.Generator().manual_seed(0))
    mass = changed.sum((1, 2, 3))
    places = torch.arange(28.0)
    centre_x = (changed.sum((1, 2)) * places).sum(1) / mass - 13.5
    centre_y = (changed.sum((1, 3)) * places).sum(1) / mass - 13.5
    if moved:  # a quarter of 28 pixels, either way
        assert 0.95 * moved < centre_x.abs().max() <= moved + 0.01
        assert 0.95 * moved < centre_y.abs().max() <= moved + 0.01
    else:  # all others keep the centre
        assert centre_x.abs().max() < 0.05 and centre_y.abs().max() < 0.05
    if "scale" in limits:  # areas from (1 - 0.5)**2 to (1 + 0.5)**2
        assert mass.min() < 36 * 0.35 and 36 * 1.9 < mass.max() < 36 * 2.35
    elif not moved:  # rotation and shear keep the area
        assert (mass - 36).abs().max() < 1.5


def test_rotation_keeps_lengths_in_images_that_are_not_square():
    images = torch.zeros(1, 1, 28, 56)
    images[..., 13:15, 18:38] = 1.0  # a bar 20 wide and 2 high
    turned = utils.Augment(rotation=90, translation=0, scale=0, shear=0, elastic=0)(images.expand(64, -1, -1, -1), None)
    assert (turned.sum((1, 2, 3)) - 40).abs().max() < 2


def test_erasing_blanks_some_images_and_not_others():
    still = utils.Augment(rotation=0, translation=0, scale=0, shear=0, elastic=0, erasing=0.5)
    changed = still(torch.ones(400, 1, 28, 28))
    blank = (changed < 0.5).float().mean((1, 2, 3))
    erased = blank[blank > 0]
    assert 150 < len(erased) < 250
    assert erased.min() > 0.005 and erased.max() < 0.25


@pytest.mark.parametrize(("name", "value"), [("erasing", 1.5), ("rotation", -1), ("scale", math.nan)])
def test_augment_refuses_impossible_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        utils.Augment(**{name: value})


def test_augment_refuses_uint8():
    with pytest.raises(ValueError, match=r"expected floats \(N, C, H, W\)"):
        utils.Augment()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_augmentation_copies_nothing_to_the_device():
    """On a GPU each copy of a Python list to the device would make it wait, in every batch."""
    called = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name())
            return function(*args, **(kwargs or {}))

    images = torch.rand(4, 1, 28, 28)
    with Recorder():
        utils.Augment(elastic=1.0, erasing=0.5)(images)
    assert "aten::grid_sampler_2d" in called
    assert not {"aten::lift_fresh", "aten::_to_copy", "aten::copy_"} & set(called)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_augmentation_keeps_the_dtype(dtype):
    images = torch.rand(4, 1, 12, 12, dtype=dtype)
    assert utils.Augment(elastic=1.0, erasing=0.5)(images).dtype == dtype
