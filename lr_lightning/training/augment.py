"""Random crop and horizontal flip of a whole batch in one gather, from random numbers drawn beforehand.

Drawing and applying are apart, so that the numbers can be a function of (seed, epoch, batch) while the work is done on
the batch's device, without touching any random state there.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Fill = Literal["zero", "reflect"]


class Draws(NamedTuple):
    """The random numbers of one batch.

    Attributes:
        offsets: int64 [B, 2], row and column of the crop's corner in the padded image, from 0 to 2·padding.
        flips: bool [B], whether the crop is mirrored left to right.
    """

    offsets: Tensor
    flips: Tensor


def draw(rng: np.random.Generator, batch_size: int, *, padding: int, flip: bool) -> Draws:
    """Draw the random numbers of one batch.

    The flips of a batch do not depend on ``padding``, nor the offsets on ``flip``.

    Args:
        rng: Source of the numbers.
        batch_size: Number of images, B.
        padding: Pixels of padding on each side; 0 means no crop.
        flip: Whether to mirror half of the images.

    Returns:
        The numbers, on the CPU.
    """
    flips = rng.random(batch_size) < 0.5
    offsets = rng.integers(0, 2 * padding, (batch_size, 2), endpoint=True)
    return Draws(torch.from_numpy(offsets), torch.from_numpy(flips & flip))


def crop_and_flip(images: Tensor, draws: Draws, *, padding: int, fill: Fill = "zero") -> Tensor:
    """Pad each image, cut a window of the original size from it, and mirror the window where asked.

    Equal to padding, slicing and flipping image by image. The order is that of the usual recipe (He et al. 2016,
    section 4.2): crop, then flip.

    Args:
        images: [B, C, H, W], any dtype; cheapest as uint8 and in channels_last layout.
        draws: The batch's random numbers, on the same device.
        padding: Pixels of padding on each side, the value the offsets were drawn for.
        fill: ``zero`` pads with 0, ``reflect`` mirrors about the border pixel without repeating it.

    Returns:
        [B, C, H, W], same dtype and device, channels_last.

    Raises:
        ValueError: If the images are too small to be padded by reflection.
    """
    batch, channels, height, width = images.shape
    if fill == "reflect" and padding >= min(height, width):
        raise ValueError(f"padding must be < {min(height, width)} (the image size) to reflect, got {padding}")
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
    """Mirror indices that stick out of [0, size) back into it, the border itself not repeated."""
    index = index.abs()
    return torch.where(index >= size, 2 * size - 2 - index, index)
