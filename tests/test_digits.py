"""prepare_digit: a photo, scan or drawing of one digit comes out as MNIST would hold it."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from benchmarks import handwriting
from benchmarks.handwriting import lines
from kit.digits import prepare_digit


@pytest.fixture(scope="module")
def few(mnist) -> tuple[Tensor, Tensor]:
    """The first 1,000 test digits of MNIST and their classes."""
    return mnist[1].images[:1000, 0], mnist[1].labels[:1000]


@pytest.fixture(scope="module")
def read(mnist, few):
    """A small network trained for a few seconds on 4,000 digits; read(images uint8) -> classes."""
    images, labels = mnist[0].images[:4000].float() / 255, mnist[0].labels[:4000]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = [
            nn.Conv2d(1, 8, 5, 2),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 24, 3, 2),
            nn.ReLU(),
            nn.BatchNorm2d(24),
        ]
        model = nn.Sequential(*conv, nn.Flatten(), nn.Linear(24 * 25, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=6 * 63)
        for _ in range(6):
            for batch in torch.randperm(len(images)).split(64):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    model.eval()

    def classes(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return model(pictures.reshape(-1, 1, 28, 28).float() / 255).argmax(1)

    assert (classes(few[0]) == few[1]).float().mean() > 0.93, "the reader itself is too poor to judge by"
    return classes


def place(digit: Tensor, rng: np.random.Generator) -> np.ndarray:
    """The digit enlarged 1 to 12 times, somewhere on a canvas: dark or light, faint, noisy or see-through."""
    side = 28 * int(rng.integers(1, 13))
    filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    large = Image.fromarray(digit.numpy()).resize((side, side), filters[rng.integers(3)])
    height, width = (int(side * rng.uniform(1, 2.5)) for _ in "hw")
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    ink = np.zeros((height, width))
    ink[top : top + side, left : left + side] = np.asarray(large) / 255
    dark = rng.random() < 0.5
    if rng.random() < 0.25:  # a drawing on nothing
        rgb = np.full((height, width, 3), 0.0 if dark else 1.0)
        return (255 * np.dstack([rgb, ink])).astype(np.uint8)
    picture = 0.05 + rng.uniform(0.4, 0.9) * ink
    picture = (1 - picture if dark else picture) + rng.choice([0, 0, 0.03, 0.06]) * rng.standard_normal(ink.shape)
    return (255 * picture.clip(0, 1)).astype(np.uint8)


def photo(ink: np.ndarray) -> np.ndarray:
    """The same photo every time."""
    return handwriting.photo(ink, np.random.default_rng(0))


def drawing(height: int = 240, width: int = 320, pen: int = 16) -> np.ndarray:
    """A light 7 on black, left of the middle: (H, W) uint8."""
    picture = Image.new("L", (width, height), 0)
    ImageDraw.Draw(picture).line([(40, 50), (130, 52), (75, 190)], fill=255, width=pen, joint="curve")
    return np.asarray(picture)


def spans(out: Tensor) -> tuple[int, int]:
    """Height and width of the ink."""
    return int((out[0] > 0).any(1).sum()), int((out[0] > 0).any(0).sum())


def far(a: Tensor, b: Tensor) -> float:
    """The mean difference, in grey levels of 255."""
    return (a.float() - b.float()).abs().mean().item()


def far_if_moved(a: Tensor, b: Tensor) -> float:
    """The same where half a pixel may have been rounded either way."""
    return min(far(a, b.roll((dy, dx), (1, 2))) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def test_replaced_digits_read_as_before(few, read):
    rng = np.random.default_rng(0)
    digits = few[0][:150]
    prepared = torch.cat([prepare_digit(place(digit, rng)) for digit in digits])
    assert (read(prepared) == read(digits)).float().mean() >= 0.97


def test_photographed_digits_read_as_before(few, read):
    digits = few[0][:40]
    prepared = []
    for digit in digits:
        ink = np.asarray(Image.fromarray(digit.numpy()).resize((168, 168), Image.Resampling.BICUBIC)) / 255
        prepared.append(prepare_digit(photo(np.pad(ink, ((90, 20), (30, 120))))))
    assert (read(torch.cat(prepared)) == read(digits)).float().mean() >= 0.95


# The reader knows neither these pens nor MNIST as well as a real network does.
LEAST = {"photo, sharp shadow edge": 0.85, "photo, thin pen": 0.75, "very thick pen": 0.85}


@pytest.mark.parametrize("condition", list(handwriting.CONDITIONS))
def test_digits_are_read_under_every_condition(few, read, condition):
    images, labels = few[0][:30], few[1][:30]
    right = 0
    for seed, (digit, label) in enumerate(zip(images, labels, strict=True)):
        with contextlib.suppress(ValueError):  # a refusal is no correct answer
            right += int(read(prepare_digit(handwriting.picture(digit, condition, seed))).item() == label)
    assert right / len(images) >= LEAST.get(condition, 0.9)


@pytest.mark.parametrize("name", ["three", "seven"])
def test_the_example_photos_are_read(read, name, monkeypatch):
    photo = handwriting.PHOTOS / f"{name}.jpg"
    monkeypatch.setenv("HOME", str(photo.parent))
    assert torch.equal(prepare_digit(f"~/{name}.jpg"), prepare_digit(photo))
    assert photo.stat().st_size < 60_000
    assert read(prepare_digit(photo)).item() == {"three": 3, "seven": 7}[name]


@pytest.mark.parametrize("inset", [0, 12])
@pytest.mark.parametrize("dark", [False, True])
def test_a_frame_is_no_ink(inset, dark):
    grey = drawing()
    framed = np.pad(np.pad(grey, 5, constant_values=255), inset)
    expected = prepare_digit(grey)
    assert far(prepare_digit(255 - framed if dark else framed), expected) < 2


def test_a_sheet_on_a_dark_table_is_seen_without_the_table():
    assert far(prepare_digit(np.pad(255 - drawing(), 20)), prepare_digit(drawing())) < 2


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ruled_lines_are_no_ink_and_leave_the_digit_whole(seed, squared):
    ink, rng = drawing(pen=20) / 255, np.random.default_rng(seed)
    paper = lines(ink.shape, rng, 40)
    if squared:
        paper = np.maximum(paper, lines(ink.T.shape, rng, 40).T)
    assert far_if_moved(prepare_digit(np.maximum(ink, paper)), prepare_digit(ink)) < 10
    assert far_if_moved(prepare_digit(photo(np.maximum(ink, paper))), prepare_digit(photo(ink))) < 10


def strokes(*lines: list[tuple[int, int]], pen: int = 8) -> np.ndarray:
    """Light strokes on a black square of 240 pixels, which end at its rim."""
    picture = Image.new("L", (240, 240), 0)
    for line in lines:
        ImageDraw.Draw(picture).line(line, fill=255, width=pen, joint="curve")
    return np.asarray(picture)


FILLING = {
    "a tall 1": strokes([(120, 0), (120, 240)]),
    "a tall 1 with its upstroke": strokes([(70, 60), (120, 4), (120, 240)]),
    "a 7 whose bar touches both sides": strokes([(0, 4), (236, 4), (120, 240)]),
    "a 7 between two margins": np.pad(strokes([(0, 4), (236, 4), (120, 236)]), ((40, 40), (0, 0))),
    "a 2 with its foot from side to side": strokes([(20, 60), (100, 4), (200, 60), (4, 235), (240, 235)]),
    "a 2 with a long foot between two margins": strokes(
        [(60, 80), (110, 40), (160, 80), (60, 200)], [(0, 200), (240, 200)]
    ),
    "a 2 of straight strokes from side to side": strokes([(0, 4), (236, 4), (4, 236), (240, 236)]),
    "a 2 of straight strokes, and a speck": strokes(
        [(20, 24), (216, 24), (24, 216), (220, 216)], [(120, 60), (130, 60)]
    ),
    "a square 0, and a speck": strokes(
        [(20, 20), (220, 20), (220, 220), (20, 220), (20, 16)], [(118, 120), (128, 120)]
    ),
}


@pytest.mark.parametrize("name", list(FILLING))
def test_a_digit_that_fills_its_picture_stays_whole(name):
    picture = FILLING[name]
    side = 2 * max(picture.shape)
    large = np.pad(picture, [((side - n) // 2, (side - n) // 2) for n in picture.shape])
    for kind in (picture, 255 - picture):
        assert far_if_moved(prepare_digit(kind), prepare_digit(large)) < 15


@pytest.mark.parametrize("dot", [False, True])
def test_a_0_that_touches_all_four_borders_stays_whole(dot):
    y, x = np.mgrid[-1:1:240j, -1:1:180j]
    radius = np.hypot(x, y)
    zero = 255 * (((radius > 0.9) & (radius < 1.02)) | (dot & (radius < 0.2))).astype(np.uint8)
    assert far_if_moved(prepare_digit(zero), prepare_digit(np.pad(zero, 100))) < 15


@pytest.mark.parametrize("name", ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Italic", "DejaVuSansMono"])
def test_printed_digits_do_not_depend_on_size_place_and_polarity(name):
    matplotlib = pytest.importorskip("matplotlib")
    path = f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf"
    for digit in "0123456789":
        prepared = []
        for size, canvas, place_at, ink in [(60, (200, 150), (90, 20), 0), (150, (300, 400), (10, 200), 255)]:
            picture = Image.new("L", canvas, 255 - ink)
            font = ImageFont.truetype(path, size)
            ImageDraw.Draw(picture).text(place_at, digit, font=font, fill=ink)
            prepared.append(prepare_digit(picture))
        assert far_if_moved(prepared[0], prepared[1]) < 15
        assert max(spans(prepared[0])) == 20


def test_what_mnist_holds(few):
    rng = np.random.default_rng(1)
    for digit in few[0][:40]:
        out = prepare_digit(place(digit, rng))
        assert (out.shape, out.dtype) == ((1, 28, 28), torch.uint8)
        assert max(spans(out)) == 20
        assert out.max() == 255
        mass, index = out[0].double(), torch.arange(28.0, dtype=torch.float64)
        for axis in (0, 1):
            centre = (mass.sum(1 - axis) * index).sum() / mass.sum()
            assert 13.4 <= centre <= 14.6  # MNIST's own lie within 13.5 and 14.5


def test_mnist_digits_come_back(few):
    digits = few[0][:40]
    once = torch.cat([prepare_digit(digit) for digit in digits])
    twice = torch.cat([prepare_digit(digit) for digit in once])
    assert far(once, digits) < 3
    assert far(twice, once) < 1.5
    large = torch.cat([prepare_digit(digit.repeat_interleave(9, 0).repeat_interleave(9, 1)) for digit in digits])
    assert far(large, once) < 6


def test_proportions_are_kept():
    bar = np.zeros((300, 300), np.uint8)
    bar[40:240, 100:130] = 255
    assert spans(prepare_digit(bar)) == (20, 3)
    assert spans(prepare_digit(bar.T)) == (3, 20)


def test_ink_stays_in_the_frame():
    heavy_foot = np.zeros((100, 100), np.uint8)
    heavy_foot[10:90, 45:49] = 255
    heavy_foot[78:90, 20:80] = 255  # the centre of mass would push the top out of the frame
    assert spans(prepare_digit(heavy_foot)) == (20, 15)


def test_every_kind_of_picture_gives_the_same_digit(tmp_path):
    grey = drawing()
    expected = prepare_digit(grey)
    colour = np.dstack([grey] * 3)
    opaque = np.dstack([colour, np.full_like(grey, 255)])
    Image.fromarray(colour).save(tmp_path / "drawing.png")
    kinds = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(colour),
        "RGBA": Image.fromarray(opaque),
        "P": Image.fromarray(grey).convert("P"),
        "1": Image.fromarray(grey).convert("1", dither=Image.Dither.NONE),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "F": Image.fromarray(grey.astype(np.float32) / 255),
        "path": tmp_path / "drawing.png",
        "string": str(tmp_path / "drawing.png"),
        "(H, W, 3)": colour,
        "(H, W, 4)": opaque,
        "float": grey / 255,
        "float32": (grey / 255).astype(np.float32),
        "16 bit": grey.astype(np.uint16) * 257,
        "bool": grey > 127,
        "tensor (H, W)": torch.tensor(grey),
        "tensor (1, H, W)": torch.tensor(grey)[None] / 255,
        "tensor (3, H, W)": torch.tensor(colour).permute(2, 0, 1),
    }
    for kind, picture in kinds.items():
        assert far(prepare_digit(picture), expected) < 0.5, kind
    assert torch.equal(prepare_digit(grey), expected)


def test_dark_on_light_equals_light_on_dark():
    grey = drawing()
    assert far(prepare_digit(255 - grey), prepare_digit(grey)) < 0.01
    blue = np.full((*grey.shape, 3), 255, np.uint8)
    blue[grey > 127] = (30, 60, 200)
    assert far(prepare_digit(blue), prepare_digit(255 * (grey > 127).astype(np.uint8))) < 0.5


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_drawings(ink):
    grey = drawing()
    clear = np.dstack([np.full((*grey.shape, 3), ink, np.uint8), grey])
    assert far(prepare_digit(clear), prepare_digit(grey)) < 0.5
    paper = np.dstack([255 - grey] * 3 + [np.full_like(grey, 255)])
    paper[:, -40:, :] = 0  # the rim of a cut-out sheet
    assert far(prepare_digit(paper), prepare_digit(grey)) < 0.5


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: show it turned by 90 degrees clockwise
    Image.fromarray(np.rot90(drawing()).copy()).save(tmp_path / "photo.png", exif=exif)
    assert far(prepare_digit(tmp_path / "photo.png"), prepare_digit(drawing())) < 0.5


def test_uneven_light_specks_and_noise_leave_no_trace():
    ink = drawing() / 255
    expected = prepare_digit(ink)
    assert far(prepare_digit(photo(ink)), expected) < 8
    ink[5:9, 300:304] = ink[200:203, 20:24] = 1
    assert far(prepare_digit(photo(ink)), expected) < 8


@pytest.mark.parametrize(("share", "slope"), [(0.6, 0.6), (0.7, 0), (0.8, -0.6)])
def test_in_a_deep_shadow_the_ink_is_still_the_ink(share, slope):
    ink = drawing() / 255
    y, x = np.indices(ink.shape)
    edge = ink.shape[1] * share - slope * (y - ink.shape[0] / 2)
    light = 1 - 0.5 * ((edge - x) / 2 + 0.5).clip(0, 1)  # the rim is mostly dark
    shaded = handwriting.photo(ink, np.random.default_rng(0), light)
    assert far_if_moved(prepare_digit(shaded), prepare_digit(photo(ink))) < 8


def test_thin_and_thick_pens_come_near_to_mnist():
    for pen in (2, 4, 8, 16, 24):
        out = prepare_digit(drawing(pen=pen))
        across = (out[0, 12].float() / 255).sum().item()  # through the stem of the 7
        assert 1.5 < across < 6.5, pen


def test_large_and_tiny_pictures():
    grey = drawing()
    large = np.kron(grey, np.ones((8, 8), np.uint8))
    assert far(prepare_digit(large), prepare_digit(grey)) < 4
    tiny = np.asarray(Image.fromarray(grey).resize((32, 24), Image.Resampling.BOX))
    assert far(prepare_digit(tiny), prepare_digit(grey)) < 16
    far_away = np.zeros((1500, 2000), np.uint8)
    far_away[1200:1440, 100:420] = grey
    assert far(prepare_digit(far_away), prepare_digit(grey)) < 4


@pytest.mark.parametrize("shape", [(8, 400), (16, 1000), (40, 3000)])
def test_long_strips_give_their_digit(shape):
    height, width = shape
    strip = np.zeros(shape)
    strip[:, width // 2 : width // 2 + height] = 0.1
    strip[height // 4 : 3 * height // 4, width // 2 : width // 2 + max(1, height // 8)] = 1
    for picture in (strip, strip.T):
        out = prepare_digit(picture)
        assert max(spans(out)) == 20 and out.max() == 255


@pytest.mark.filterwarnings("error")
def test_extreme_shapes_give_a_digit_or_say_what_is_missing():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (2, 500), (4, 4), (4, 5), (4, 200), (200, 4), (5, 2000), (6, 50), (16, 1000)]:
        point, stripes = np.zeros(shape), np.indices(shape).sum(0) % 2 * 1.0
        point[-1, 0] = 1
        for picture in (point, stripes, np.ones(shape), rng.random(shape), (rng.random(shape) > 0.9) * 1.0):
            try:
                assert prepare_digit(picture).max() == 255
            except ValueError as error:
                assert str(error).startswith(("image has no clear ink", "image has shape"))


def test_blank_pictures_are_refused():
    y, x = np.mgrid[0:1:200j, 0:1:300j]
    noise = 0.05 * np.random.default_rng(0).standard_normal(x.shape)
    blanks = {
        "black": np.zeros((28, 28)),
        "white": np.ones((50, 40)),
        "a ramp": (x + y) / 2,
        "noise": (0.5 + noise).clip(0, 1),
        "paper": (0.4 + 0.4 * x - 0.1 * y**2 + 0.4 * noise).clip(0, 1),
        "nothing drawn": np.zeros((50, 50, 4)),
    }
    for kind, picture in blanks.items():
        with pytest.raises(ValueError, match=r"no clear ink.*pen"):
            pytest.fail(f"{kind}: {prepare_digit(picture).shape}")


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        ([[0, 1]], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
        (np.zeros((28, 28), np.int64), TypeError, "dtype int64"),
        (torch.zeros(28, 28, dtype=torch.int32), TypeError, "dtype int32"),
        (np.zeros((28, 28), complex), TypeError, "dtype complex128"),
        (np.full((28, 28), 255.0), ValueError, "divide by 255"),
        (np.full((28, 28), -0.1), ValueError, "-0.1"),
        (np.full((28, 28), np.nan), ValueError, "nan"),
        (np.zeros((28, 28, 2), np.uint8), ValueError, r"\(28, 28, 2\)"),
        (np.zeros((5, 28, 28), np.uint8), ValueError, r"\(5, 28, 28\)"),
        (torch.zeros(4, 1, 28, 28), ValueError, r"\(4, 1, 28, 28\).*one by one"),
        (torch.zeros(28, 28, 3), ValueError, r"\(28, 28, 3\)"),
        (np.zeros((0, 28), np.uint8), ValueError, r"\(0, 28\)"),
        (np.zeros(784, np.uint8), ValueError, r"\(784,\)"),
    ],
)
def test_what_is_no_picture_is_refused(picture, error, message):
    with pytest.raises(error, match=f"image .*{message}"):
        prepare_digit(picture)


def test_files_that_are_no_picture_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("seven")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        prepare_digit(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError):
        prepare_digit(tmp_path / "missing.png")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(drawing()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"image '.*{name}' is damaged"):
        prepare_digit(path)


def test_a_file_whose_exif_is_damaged_is_read_as_it_lies(tmp_path):
    for name, exif in {"plain.jpg": b"", "odd.jpg": b"Exif\0\0XX no TIFF header"}.items():
        Image.fromarray(drawing()).save(tmp_path / name, exif=exif)
    assert torch.equal(prepare_digit(tmp_path / "odd.jpg"), prepare_digit(tmp_path / "plain.jpg"))


def test_a_file_too_large_to_open_safely_is_refused(tmp_path, monkeypatch):
    Image.fromarray(drawing()).save(tmp_path / "poster.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"poster\.png' is too large: .*; scale it down first"):
        prepare_digit(tmp_path / "poster.png")


def test_the_input_is_left_alone():
    grey = drawing().copy()
    before = grey.copy()
    prepare_digit(grey)
    assert np.array_equal(grey, before)
