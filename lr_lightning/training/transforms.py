"""Augmentation and normalization of whole batches, done on the batch's device.

Random numbers are drawn beforehand and apart from their use: they depend on (seed, epoch, batch) alone, and no random
state of the device is touched.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lr_lightning._threads import usable_cores
from lr_lightning.errors import ArgumentError
from lr_lightning.training.decode import ImageStore, in_threads
from lr_lightning.training.images import require

Fill = Literal["zero", "reflect"]
Normalization = Literal["standard", "mean_image", "unit"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)

_SAMPLE = 10_000  # images for the statistics of a data set that would have to be decoded once more
_VALUES_AT_ONCE = 1_000_000


class Draws(NamedTuple):
    """The random numbers that augment one batch. Boxes are top, left, bottom and right, as shares of the image."""

    offsets: Tensor  # int64 [B, 2], row and column of the crop's corner in the padded image, from 0 to 2·padding
    flips: Tensor  # bool [B], whether the crop is mirrored left to right
    erased: Tensor  # float32 [B, 4], the box that is erased
    shares: Tensor  # float32 [B], share of the partner in the image that mixup makes
    pasted: Tensor  # float32 [B, 4], the box that cutmix takes from the partner
    operations: Tensor  # int64 [B], the operation of TrivialAugment
    strengths: Tensor  # float32 [B], its strength, in [-1, 1]


def draw_augmentation(
    rng: np.random.Generator,
    batch_size: int,
    *,
    padding: int,
    flip: bool,
    erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    operations: int = 0,
) -> Draws:
    """Draw the random numbers of one batch, on the CPU.

    ``padding`` is in pixels on each side; ``flip`` mirrors half of the images; ``erasing`` is the share of images that
    lose a box. ``mixup`` and ``cutmix`` are the parameters of the Beta distributions of the partner's share; if both
    are on, each image is mixed in one of the two ways. ``operations`` is the number of operations to choose from.
    Turning one augmentation on changes no random number of those listed before it.

    Sources: Zhong et al. 2020 (arXiv 1708.04896), boxes of 2 to 33 % of the image with sides of 0.3 to 3.3; Zhang et
    al. 2018 (1710.09412); Yun et al. 2019 (1905.04899).
    """
    flips = rng.random(batch_size) < 0.5
    offsets = rng.integers(0, 2 * padding, (batch_size, 2), endpoint=True)
    erased, pasted, shares = np.zeros((batch_size, 4)), np.zeros((batch_size, 4)), np.zeros(batch_size)
    if erasing > 0:
        sides, chosen = np.exp(rng.uniform(np.log(0.3), np.log(3.3), batch_size)), rng.random(batch_size) < erasing
        area = rng.uniform(0.02, 0.33, batch_size)
        size = np.minimum(np.stack([np.sqrt(area * sides), np.sqrt(area / sides)], 1), 1)
        corner = rng.random((batch_size, 2)) * (1 - size)
        erased = np.concatenate([corner, corner + size], 1) * chosen[:, None]
    if mixup > 0 or cutmix > 0:
        pastes = rng.random(batch_size) < (0.5 if mixup > 0 and cutmix > 0 else float(cutmix > 0))
        blended, cut = (rng.beta(a, a, batch_size) if a > 0 else shares for a in (mixup, cutmix))
        shares = np.where(pastes, 0, blended)
        centre, half = rng.random((batch_size, 2)), np.sqrt(cut)[:, None] / 2
        pasted = np.clip(np.concatenate([centre - half, centre + half], 1), 0, 1) * pastes[:, None]
    chosen_ones, strengths = np.zeros(batch_size, np.int64), np.zeros(batch_size)
    if operations > 0:
        chosen_ones, strengths = rng.integers(0, operations, batch_size), rng.uniform(-1, 1, batch_size)
    rest = [torch.from_numpy(numbers.astype(np.float32)) for numbers in (erased, shares, pasted)]
    rest += [torch.from_numpy(chosen_ones), torch.from_numpy(strengths.astype(np.float32))]
    return Draws(torch.from_numpy(offsets), torch.from_numpy(flips & flip), *rest)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels have their middle inside of a box, [B, 1, height, width]; ``boxes`` are as in ``Draws``."""
    rows, columns = ((torch.arange(size, device=boxes.device) + 0.5) / size for size in (height, width))
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    return ((rows >= top) & (rows < bottom))[:, None, :, None] & ((columns >= left) & (columns < right))[:, None, None]


def mix(images: Tensor, labels: Tensor, draws: Draws, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour in the batch, and the classes by what is seen of each.

    Neighbours are the 1st and 2nd image, the 3rd and 4th, and so on: the order is random already, and both lie on one
    process if its batch is even. A last image without a neighbour stays as it is. Labels int64 [B] become the shares of
    the classes, float32 [B, num_classes], which ``cross_entropy`` takes as well.
    """
    places = torch.arange(len(images), device=images.device)
    partner = (places ^ 1).clamp_(max=len(images) - 1)
    others, pasted = images[partner], inside(draws.pasted, *images.shape[2:])
    images = torch.where(pasted, others, torch.lerp(images, others, draws.shares[:, None, None, None].to(images.dtype)))
    seen = (draws.shares + pasted.float().mean((1, 2, 3)))[:, None]
    one_hot = seen.new_zeros(len(labels), num_classes).scatter_(1, labels[:, None], 1.0)
    return images, torch.lerp(one_hot, one_hot[partner], seen)


def crop_and_flip(images: Tensor, draws: Draws, *, padding: int, fill: Fill = "zero") -> Tensor:
    """Pad each image, crop it to its original size, and mirror the crop if its draw says so.

    The result equals padding, cropping and flipping image by image, in the order of the usual recipe (He et al. 2016,
    section 4.2). Images are [B, C, H, W] of any dtype, fastest as uint8 and channels_last, which the result is.
    ``draws`` are on their device and were drawn for this ``padding``. ``fill`` is ``zero`` or ``reflect``, which
    mirrors about the border pixel without repeating it.

    Raises:
        ArgumentError: The images are too small to be padded by reflection.
    """
    batch, channels, height, width = images.shape
    if fill == "reflect" and padding >= min(height, width):
        raise ArgumentError(f"must be < {min(height, width)} (the image size) to reflect, got {padding}", "padding")
    device = images.device
    rows = torch.arange(height, device=device) + draws.offsets[:, :1]
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(draws.flips[:, None], width - 1 - columns, columns) + draws.offsets[:, 1:]

    pixels = images.permute(0, 2, 3, 1)
    if fill == "reflect":
        rows, columns = _reflect(rows - padding, height), _reflect(columns - padding, width)
    elif padding > 0:
        padded = pixels.new_zeros(batch, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding:-padding, padding:-padding] = pixels
        pixels = padded
    source_height, source_width = pixels.shape[1:3]
    index = torch.arange(batch, device=device)[:, None] * source_height + rows
    index = index[:, :, None] * source_width + columns[:, None, :]
    # One gather of whole pixels: in NHWC order the C values of a pixel lie side by side.
    gathered = pixels.reshape(-1, channels).index_select(0, index.reshape(-1))
    return gathered.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices outside [0, size) back into it, without repeating the border."""
    index = index.abs()
    return torch.where(index >= size, 2 * size - 2 - index, index)


@dataclass(frozen=True)
class Normalizer:
    """The affine map (x - offset) · scale of pixel values 0..255."""

    offset: Tensor  # float32, [1, C, 1, 1] or [1, C, H, W], in units of 0..255
    scale: Tensor  # float32 [1, C, 1, 1]

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 [B, C, H, W] to float32 of the same shape and memory layout."""
        return images.float().sub_(self.offset).mul_(self.scale)

    def to(self, device: torch.device) -> "Normalizer":
        """Return the same map with its numbers on ``device``."""
        return Normalizer(self.offset.to(device), self.scale.to(device))


def fit_normalizer(images: ImageStore, indices: NDArray[np.int64], kind: Normalization, *, decoded: bool) -> Normalizer:
    """Compute the normalization from the images of the training split, ``indices``.

    ``standard`` subtracts each channel's mean and divides by its standard deviation; ``mean_image`` subtracts the mean
    image and keeps the scale of 0..255; ``unit`` divides by 255. If the images are not ``decoded`` in memory, an evenly
    spaced sample is used.
    """
    require(kind in NORMALIZATIONS, f"data.normalize must be one of {', '.join(NORMALIZATIONS)}, got {kind!r}")
    one = torch.ones(1, images.take(indices[:1]).shape[1], 1, 1)
    if kind == "unit":
        return Normalizer(0 * one, one / 255)
    if not decoded:
        indices = indices[:: max(1, -(-len(indices) // _SAMPLE))]
    pixel_sum, square_sum = _sums(images, indices, threads=1 if decoded else usable_cores())
    if kind == "mean_image":
        return Normalizer((pixel_sum / len(indices)).float()[None], one)
    count = len(indices) * pixel_sum[0].numel()
    mean = pixel_sum.sum((1, 2)) / count
    deviation = (square_sum / count - mean**2).clamp_min(0).sqrt()
    # A constant channel becomes 0; dividing by its deviation would make it nan.
    scale = torch.where(deviation > 0, 1 / deviation, torch.ones_like(deviation))
    return Normalizer(mean.float().view(1, -1, 1, 1), scale.float().view(1, -1, 1, 1))


def _sums(images: ImageStore, indices: NDArray[np.int64], threads: int) -> tuple[Tensor, Tensor]:
    """Return the sum over images [C, H, W], and the sum of squares over images and pixels [C]; float64, exact."""

    def chunk_sums(chunk: range) -> tuple[Tensor, Tensor]:
        # 256 squares of at most 255 stay below 2^24, so that even their float32 sums are exact, in any order.
        values = images.take(indices[chunk.start : chunk.stop]).float()
        return values.sum(0).double(), values.square_().sum(0).double().sum((1, 2))

    _, channels, height, width = images.take(indices[:1]).shape
    pixel_sum = torch.zeros(channels, height, width, dtype=torch.float64)
    square_sum = torch.zeros(channels, dtype=torch.float64)
    chunk = min(256, max(1, _VALUES_AT_ONCE // pixel_sum.numel()))
    # Added up at once: the small sums in a list would lie between the freed chunks and keep their memory.
    for pixels, squares in in_threads(chunk_sums, len(indices), threads=threads, chunk=chunk):
        pixel_sum += pixels
        square_sum += squares
    return pixel_sum, square_sum


# -- TrivialAugment: one random operation of random strength on each image (Müller & Hutter 2021, 2103.10158) ----------

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "colour", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
_SHEAR, _DEGREES, _TRANSLATION, _ENHANCEMENT = 0.99, 135.0, 0.3, 0.99  # at full strength; the paper's wide space


def trivial_augment(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Apply an operation to each image, uint8 [B, C, H, W]; what moves in from outside the image is black.

    ``operations`` int64 [B] are places in ``OPERATIONS``; ``strengths`` float32 [B] lie in [-1, 1]. Translations reach
    30 % of the image, where the paper's reach 32 pixels. On a GPU every operation is computed for the whole batch: to
    pick out its images would wait for the device.
    """
    found = images.clone()
    if images.device.type == "cpu":
        for number in sorted(set(operations.tolist())):
            chosen = (operations == number).nonzero().flatten()
            found[chosen] = _apply(OPERATIONS[number], images[chosen], strengths[chosen])
        return found
    for number, name in enumerate(OPERATIONS):
        found = torch.where((operations == number)[:, None, None, None], _apply(name, images, strengths), found)
    return found


def _apply(name: str, images: Tensor, strengths: Tensor) -> Tensor:
    """Apply one operation to every image, each with its strength."""
    if name == "identity":
        return images
    if name == "equalize":
        return _equalized(images)
    pixels, factor = images.float(), (1 + _ENHANCEMENT * strengths)[:, None, None, None]
    strength = strengths.abs()[:, None, None, None]
    if name == "brightness":
        found = pixels * factor
    elif name == "colour":
        found = torch.lerp(_grey(pixels), pixels, factor)
    elif name == "contrast":
        found = torch.lerp((_grey(pixels).mean((1, 2, 3), keepdim=True) + 0.5).floor(), pixels, factor)
    elif name == "sharpness":
        found = torch.lerp(_smoothed(pixels), pixels, factor)
    elif name == "posterize":
        step = 2.0 ** (strength * 6).round()  # down to 2 of 8 bits
        found = (pixels / step).floor() * step
    elif name == "solarize":
        found = torch.where(pixels >= 256 * (1 - strength), 255 - pixels, pixels)
    elif name == "autocontrast":
        found = _stretched(pixels)
    else:
        found = _moved(pixels, name, strengths)
    return found.clamp_(0, 255).to(torch.uint8)


def _moved(pixels: Tensor, name: str, strengths: Tensor) -> Tensor:
    """Shear, translate or rotate about the centre, to the nearest pixel."""
    height, width = pixels.shape[2:]
    aspect, zero, one = height / width, torch.zeros_like(strengths), torch.ones_like(strengths)
    angle, shear, shift = strengths * math.radians(_DEGREES), _SHEAR * strengths, 2 * _TRANSLATION * strengths
    across, down = {
        "shear_x": ((one, aspect * shear, zero), (zero, one, zero)),
        "shear_y": ((one, zero, zero), (shear / aspect, one, zero)),
        "translate_x": ((one, zero, shift), (zero, one, zero)),
        "translate_y": ((one, zero, zero), (zero, one, shift)),
        "rotate": ((angle.cos(), -aspect * angle.sin(), zero), (angle.sin() / aspect, angle.cos(), zero)),
    }[name]
    rows = torch.stack([torch.stack(across, 1), torch.stack(down, 1)], 1)
    grid = F.affine_grid(rows, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="nearest", align_corners=False)


def _grey(pixels: Tensor) -> Tensor:
    """Return the luma of colour images, [B, 1, H, W], as Pillow computes it."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True).round()


def _smoothed(pixels: Tensor) -> Tensor:
    """Return Pillow's SMOOTH filter; pixels at the border stay."""
    channels = pixels.shape[1]
    kernel = pixels.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = F.conv2d(pixels, kernel.expand(channels, 1, 3, 3), groups=channels)
    found = pixels.clone()
    found[:, :, 1:-1, 1:-1] = (smooth + 0.5).floor()
    return found


def _stretched(pixels: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a constant one stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, ((pixels - low) * (255 / (high - low).clamp_min(1))).floor(), pixels)


def _equalized(images: Tensor) -> Tensor:
    """Make the histogram of each channel flat, as Pillow does; a channel of too few values stays."""
    batch, channels, height, width = images.shape
    values = images.reshape(batch * channels, height * width).long()
    ordered = values.sort(1).values
    every = torch.arange(256, device=values.device).expand(len(values), 256).contiguous()
    below = torch.searchsorted(ordered, every)  # pixels darker than each value
    step = below.gather(1, ordered[:, -1:]) // 255
    table = ((below + step // 2) // step.clamp_min(1)).clamp(0, 255)
    found = torch.where(step > 0, table.gather(1, values), values)
    return found.view(batch, channels, height, width).to(torch.uint8)
