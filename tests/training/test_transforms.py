import numpy as np
import pytest
import torch

from lr_lightning.training.transforms import Draws, crop_and_flip, draw_augmentation

RNG = np.random.default_rng


def one_by_one(images, draws, padding, fill):
    """Pad, slice and flip each image by itself."""
    out = []
    for image, (row, column), flip in zip(images.numpy(), draws.offsets.tolist(), draws.flips.tolist(), strict=True):
        mode = {"zero": "constant", "reflect": "reflect"}[fill]
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=mode)
        window = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
        out.append(window[:, :, ::-1] if flip else window)
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("fill", ["zero", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(16, 3, 8, 8), (16, 1, 8, 8), (5, 3, 6, 9), (1, 2, 9, 6)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_the_work_done_image_by_image(fill, padding, shape, dtype):
    images = torch.from_numpy(RNG(0).integers(0, 256, shape, dtype=np.uint8)).to(dtype)
    draws = draw_augmentation(RNG(1), shape[0], padding=padding, flip=True)
    expected = one_by_one(images, draws, padding, fill)
    got = crop_and_flip(images, draws, padding=padding, fill=fill)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gives_channels_last_and_leaves_its_input_alone(layout):
    images = torch.arange(4 * 3 * 8 * 8).view(4, 3, 8, 8).to(torch.uint8).contiguous(memory_format=layout)
    before = images.clone()
    out = crop_and_flip(images, draw_augmentation(RNG(0), 4, padding=2, flip=True), padding=2)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_the_extreme_offsets_are_reached_and_no_others():
    draws = draw_augmentation(RNG(0), 2000, padding=2, flip=True)
    assert sorted(set(draws.offsets.flatten().tolist())) == [0, 1, 2, 3, 4]
    assert 850 < int(draws.flips.sum()) < 1150
    assert draws.offsets.dtype == torch.int64


def test_crop_and_flip_are_drawn_independently_of_each_other():
    both, only_flip = (
        draw_augmentation(RNG(0), 50, padding=4, flip=True),
        draw_augmentation(RNG(0), 50, padding=0, flip=True),
    )
    only_crop = draw_augmentation(RNG(0), 50, padding=4, flip=False)
    assert torch.equal(both.flips, only_flip.flips)
    assert torch.equal(both.offsets, only_crop.offsets)
    assert not only_crop.flips.any()
    assert not only_flip.offsets.any()


def test_refuses_to_reflect_more_than_there_is():
    draws = Draws(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="padding must be < 4"):
        crop_and_flip(torch.zeros(1, 1, 4, 4), draws, padding=4, fill="reflect")
