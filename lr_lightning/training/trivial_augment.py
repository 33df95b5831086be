"""TrivialAugment: one random operation of random strength on each training image (Müller & Hutter 2021, 2103.10158)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
