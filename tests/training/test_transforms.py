import numpy as np
import pytest
import torch

from lr_lightning.training.transforms import Draws, crop_and_flip, draw_augmentation, inside, mix

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
    nothing = torch.zeros(1, 4)
    draws = Draws(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), *[nothing] * 5)
    with pytest.raises(ValueError, match="padding must be < 4"):
        crop_and_flip(torch.zeros(1, 1, 4, 4), draws, padding=4, fill="reflect")


def test_mixing_and_erasing_leave_the_numbers_of_crops_and_flips_alone():
    plain, every = (
        draw_augmentation(RNG(0), 50, padding=4, flip=True, **more)
        for more in ({}, {"erasing": 1.0, "mixup": 0.2, "cutmix": 1.0})
    )
    assert torch.equal(plain.offsets, every.offsets)
    assert torch.equal(plain.flips, every.flips)
    assert not any(numbers.any() for numbers in plain[2:])


def test_boxes_have_the_areas_and_shares_of_their_papers():
    draws = draw_augmentation(RNG(0), 4000, padding=0, flip=False, erasing=0.25, mixup=0.2, cutmix=1.0)
    height, width = (draws.erased[:, 2:] - draws.erased[:, :2]).T
    erased = height > 0
    assert float(erased.float().mean()) == pytest.approx(0.25, abs=0.02)
    area, sides = (height * width)[erased], (height / width)[erased]
    for found, low, high in ((area, 0.02, 0.33), (sides, 0.3, 3.3)):
        assert float(found.min()) == pytest.approx(low, rel=0.1)
        assert float(found.max()) == pytest.approx(high, rel=0.03)
    blended, pasted = draws.shares > 0, draws.pasted[:, 2] > 0
    assert not (blended & pasted).any()  # one of the two ways for each image
    assert float(pasted.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(draws.shares[blended].mean()) == pytest.approx(0.5, abs=0.03)
    assert float(draws.shares[blended].std()) == pytest.approx((1 / (4 * 1.4)) ** 0.5, abs=0.02)  # of Beta(0.2, 0.2)
    assert (float(draws.pasted.min()), float(draws.pasted.max())) == (0.0, 1.0)  # cut at the border


def test_a_box_holds_the_pixels_whose_middle_is_in_it():
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]])
    expected = torch.zeros(3, 1, 4, 6, dtype=torch.bool)
    expected[1, 0, 1:3, 3:] = True
    expected[2] = True
    assert torch.equal(inside(boxes, 4, 6), expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_mixing_equals_the_work_done_pair_by_pair(mixup, cutmix):
    images, labels = torch.from_numpy(RNG(1).random((7, 2, 5, 6), np.float32)), torch.tensor([0, 1, 2, 2, 0, 1, 2])
    draws = draw_augmentation(RNG(2), 7, padding=0, flip=False, mixup=mixup, cutmix=cutmix)
    mixed, shares = mix(images, labels, draws, 3)
    for i, j in enumerate([1, 0, 3, 2, 5, 4, 6]):  # the last one has no neighbour
        box, share = inside(draws.pasted[i : i + 1], 5, 6)[0], float(draws.shares[i])
        expected = images[i] * (1 - share) + images[j] * share
        expected = torch.where(box, images[j], expected)
        torch.testing.assert_close(mixed[i], expected)
        seen = share + float(box.float().mean())
        of_classes = torch.zeros(3)
        of_classes[labels[i]] += 1 - seen
        of_classes[labels[j]] += seen
        torch.testing.assert_close(shares[i], of_classes)
    assert torch.equal(mixed[6], images[6])
