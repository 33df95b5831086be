"""TrivialAugment against Pillow, operation by operation."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from lr_lightning.training.transforms import OPERATIONS, trivial_augment

POSTERIZED = {0.5: 5, -1.0: 2, 0.0: 8}
PILLOWS = {
    "identity": lambda image, _: image,
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.99 * s),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.99 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.99 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, POSTERIZED[s]),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}


def pictures(count=3, height=40, width=48):
    """Smooth ones, with few values, of little contrast."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC)) for each in small]
    )
    images[1] = images[1] // 4 + 60
    images[2] = images[2] // 64 * 64
    return images


def applied(images, operation, strength):
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    numbers = torch.full((len(images),), OPERATIONS.index(operation))
    found = trivial_augment(tensor, numbers, torch.full((len(images),), strength))
    assert found.dtype == torch.uint8
    return found.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("strength", [0.5, -1.0, 0.0])
@pytest.mark.parametrize("operation", PILLOWS)
def test_equals_pillow(operation, strength):
    images = pictures()
    expected = [np.asarray(PILLOWS[operation](Image.fromarray(image), strength)) for image in images]
    difference = np.abs(applied(images, operation, strength).astype(int) - np.stack(expected))
    assert difference.max() <= 1  # rounding
    assert operation not in ("identity", "posterize", "solarize", "equalize") or difference.max() == 0


def test_moves_by_whole_pixels_and_turns_by_right_angles():
    images = pictures(height=40, width=40)
    shifted = applied(images, "translate_x", 0.25)  # of 30 % of 40 pixels
    assert (shifted[:, :, :-3] == images[:, :, 3:]).all()
    assert not shifted[:, :, -3:].any()
    shifted = applied(images, "translate_y", -0.25)
    assert (shifted[:, 3:] == images[:, :-3]).all()
    assert (applied(images, "rotate", 90 / 135) == np.rot90(images, 1, (1, 2))).all()


@pytest.mark.parametrize(("operation", "matrix"), [("shear_x", (1, 0.495, 0, 1)), ("shear_y", (1, 0, 0.495, 1))])
def test_shears_about_the_centre_of_an_oblong_image(operation, matrix):
    images = pictures()
    a, b, c, d = matrix
    x, y = np.meshgrid(np.arange(48) + 0.5 - 24, np.arange(40) + 0.5 - 20)
    columns, rows = np.floor(a * x + b * y + 24).astype(int), np.floor(c * x + d * y + 20).astype(int)
    inside = (columns >= 0) & (columns < 48) & (rows >= 0) & (rows < 40)
    expected = images[:, rows.clip(0, 39), columns.clip(0, 47)] * inside[:, :, None]
    assert (applied(images, operation, 0.5) == expected).mean() > 0.99  # but for halves


def test_each_image_of_a_batch_gets_its_own_operation_whatever_its_channels():
    images = torch.from_numpy(pictures(len(OPERATIONS))).permute(0, 3, 1, 2)[:, :1]
    strengths = torch.linspace(-0.9, 0.9, len(OPERATIONS))
    together = trivial_augment(images, torch.arange(len(OPERATIONS)), strengths)
    for i in range(len(OPERATIONS)):
        assert torch.equal(
            together[i : i + 1], trivial_augment(images[i : i + 1], torch.tensor([i]), strengths[i : i + 1])
        )
    changed = (together != images).flatten(1).any(1).tolist()
    unchanged = {name for name, is_changed in zip(OPERATIONS, changed, strict=True) if not is_changed}
    assert "identity" in unchanged
    assert unchanged <= {"identity", "colour", "autocontrast"}  # grey has no colour, and may reach from 0 to 255
