"""The network of Smith's table on cyclical learning rates, Caffe's `cifar10_full`, with its local normalization."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lr_lightning._checks import check_number
from lr_lightning.errors import ArgumentError
from lr_lightning.training.models.small_cnn import Size, check_shape


class _WithinChannelLRN(torch.autograd.Function):
    """The formula of `WithinChannelLRN` with a hand-written gradient, which keeps fewer intermediates than autograd.

    Let A be the average over the window and s = 1 + alpha * A(x^2). Then y = x * s^-beta, and
    dx = g * s^-beta - 2 * alpha * beta * x * A(g * x * s^(-beta - 1)). A is its own adjoint, since it is symmetric and
    (as Caffe counts the padding) divides by the same number everywhere.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
        scale = F.avg_pool2d(x * x, size, 1, size // 2).mul_(alpha).add_(1.0)
        power = _negative_power(scale, beta)
        ctx.save_for_backward(x, scale, power)
        ctx.size, ctx.alpha, ctx.beta = size, alpha, beta
        return x * power

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, power = ctx.saved_tensors
        direct = grad * power
        spread = F.avg_pool2d((direct * x).div_(scale), ctx.size, 1, ctx.size // 2)
        return direct.addcmul_(x, spread, value=-2.0 * ctx.alpha * ctx.beta), None, None, None


def _negative_power(scale: Tensor, beta: float) -> Tensor:
    """Return scale ** -beta; for Caffe's beta of 3/4 by two square roots, which are faster than a power."""
    if beta != 0.75:
        return scale.pow(-beta)
    root = scale.rsqrt()
    return root.sqrt().mul_(root)


class WithinChannelLRN(nn.Module):
    """Divide each activation by a power of the mean square around it, channel by channel.

    y = x / (1 + alpha / n^2 * sum of x^2 over the n x n window around it) ^ beta; `size` is n, odd. Outside the image x
    is 0, and the divisor stays n^2. The arithmetic is done in float32 at least: 1 + alpha * x^2 rounds to 1 in half
    precision. Input and output are (batch, channels, height, width), of one dtype and memory format.

    Source:
        Caffe, `lrn_layer.cpp`, `norm_region: WITHIN_CHANNEL`; Krizhevsky's cuda-convnet calls it `rnorm`.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ArgumentError(f"must be odd and >= 1, got {size}", "size")
        check_number("alpha", alpha)
        check_number("beta", beta)
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (batch, channels, height, width)."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        out: Tensor = _WithinChannelLRN.apply(wide, self.size, self.alpha, self.beta)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments, for `print(model)`."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


_MIN_SIDE = 8  # three halvings, the last of which needs a 2 x 2 input


class SmithCNN(nn.Module):
    """Three 5 x 5 convolutions, each followed by a pool of 3 with stride 2, and one linear layer.

    Layers: conv1 (32) - max pool - ReLU - LRN; conv2 (32) - ReLU - average pool - LRN; conv3 (64) - ReLU - average
    pool; fc. Pools round the output size up, and a window that hangs over the edge is averaged over the pixels it
    covers, as in Caffe. Images must have at least 8 x 8 pixels; at 3 x 32 x 32 and 10 classes there are 89,578
    parameters.

    Weights are drawn from a normal distribution of standard deviation 1e-4 (conv1) and 0.01 (the others); biases start
    at 0. Smith's learning rates (0.001 to 0.006) belong to pixel values from 0 to 255 minus their mean: on inputs of
    unit variance set the factor `input_scale=64` to use them, or leave it at 1 and use learning rates of 0.03 to 0.1.

    Source:
        Caffe, `examples/cifar10/cifar10_full_train_test.prototxt`; Smith, "Cyclical learning rates for training
        neural networks", 2017, section 4.1. Caffe's recipe doubles the lr of the biases of conv1, conv2 and fc,
        decays all weights and biases but fc's bias, and decays fc's weights 250 times as much.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: Size, input_scale: float = 1.0) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size, min_side=_MIN_SIDE)
        check_number("input_scale", input_scale, above=True)
        self.input_scale = input_scale
        height, width = (_pooled(_pooled(_pooled(side))) for side in image_size)
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = WithinChannelLRN()
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.norm2 = WithinChannelLRN()
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.pool3 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.fc = nn.Linear(64 * height * width, num_classes)
        for layer, std in ((self.conv1, 1e-4), (self.conv2, 0.01), (self.conv3, 0.01), (self.fc, 0.01)):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        if self.input_scale != 1.0:
            x = x * self.input_scale
        # Neither a convolution nor a pool needs its own output for its gradient, so the ReLUs may overwrite it.
        x = self.norm1(self.pool1(self.conv1(x)).relu_())
        x = self.norm2(self.pool2(self.conv2(x).relu_()))
        x = self.pool3(self.conv3(x).relu_())
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def _pooled(side: int) -> int:
    """Return the side after a pool of 3 with stride 2, rounded up."""
    return -((3 - side) // 2) + 1


def smith_cnn(in_channels: int, num_classes: int, image_size: Size, input_scale: float = 1.0) -> SmithCNN:
    """Build a `SmithCNN`."""
    return SmithCNN(in_channels, num_classes, image_size, input_scale)
