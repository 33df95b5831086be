"""Image classifiers: each builder takes its own options and three common arguments.

These are ``in_channels`` (>= 1), ``num_classes`` (>= 2) and ``image_size`` (height and width in pixels). The networks
map images (batch, in_channels, height, width) to logits (batch, num_classes). What is out of range raises
ArgumentError.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lr_lightning._checks import check_count, check_number
from lr_lightning.errors import ArgumentError

__all__ = ["resnet9", "resnet20", "resnet56", "small_cnn", "smith_cnn", "wrn16_4"]

Size = tuple[int, int]  # height and width of an image, in pixels


def conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return a 3 x 3 convolution without bias, batch norm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def check_shape(in_channels: int, num_classes: int, image_size: Size, *, min_side: int = 1) -> None:
    """Refuse an image or a number of classes that a network cannot be built for; ``min_side`` is in pixels."""
    check_count("in_channels", in_channels, 1)
    check_count("num_classes", num_classes, 2)
    if len(image_size) != 2 or min(image_size) < min_side:
        raise ArgumentError(
            f"must be (height, width), each >= {min_side}, got {tuple(image_size)}. "
            "Choose another model, or enlarge the images",
            "image_size",
        )


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise ArgumentError(f"must be in [0, 1), got {dropout}", "dropout")


def kaiming_init(module: nn.Module) -> None:
    """Draw the weights of every convolution from He's normal distribution, in place, and set its biases to 0.

    Batch norm keeps torch's start (weight 1, bias 0), and linear layers keep torch's own initialization.

    Source:
        He et al., "Delving deep into rectifiers", 2015, equation 14 (the variant by fan-out).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# -- the default network, small enough to train in seconds on a CPU --------------------------------------------------


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm and ReLU, a global average pool and one linear layer.

    The convolutions have `width`, 2 * `width` and 2 * `width` channels. A 2 x 2 max pool follows each of the first two
    while the shorter side is at least 4 pixels: an 8 x 8 image ends at 2 x 2 and a 32 x 32 image at 8 x 8. With 3
    channels and 10 classes there are 57,130 parameters. `dropout`, in [0, 1), acts before the linear layer.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: Size, width: int = 32, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        check_count("width", width, 1)
        check_dropout(dropout)
        layers: list[nn.Module] = []
        side, channels = min(image_size), in_channels
        for index, out in enumerate((width, 2 * width, 2 * width)):
            layers += conv_bn_relu(channels, out)
            if index < 2 and side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            channels = out
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.fc(self.dropout(self.features(x).mean((-2, -1))))
        return logits


def small_cnn(in_channels: int, num_classes: int, image_size: Size, width: int = 32, dropout: float = 0.0) -> SmallCNN:
    """Build a `SmallCNN`."""
    return SmallCNN(in_channels, num_classes, image_size, width, dropout)


# -- residual networks for CIFAR -------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut without parameters (option A).

    If the shape changes, the shortcut takes every second pixel and pads the new channels with zeros. `stride` is
    the stride of the first convolution and of the shortcut; `out_channels` must be >= `in_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, out_channels, ceil(h / stride), ceil(w / stride))."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """A ResNet for CIFAR: a 3 x 3 convolution, three stages of `BasicBlock`s, a global average pool, a linear layer.

    The stages have 16, 32 and 64 channels; the second and third start with stride 2. The network has
    6 * `blocks_per_stage` + 2 layers with weights. Source: He et al., "Deep residual learning for image recognition",
    2016, section 4.2.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: Size, blocks_per_stage: int) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        check_count("blocks_per_stage", blocks_per_stage, 1)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16, *(width for width in (16, 32, 64) for _ in range(blocks_per_stage))]
        self.blocks = nn.Sequential(*(BasicBlock(n, out, 1 if n == out else 2) for n, out in pairwise(widths)))
        self.fc = nn.Linear(64, num_classes)
        kaiming_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.blocks(F.relu(self.bn(self.conv(x)), inplace=True))
        logits: Tensor = self.fc(x.mean((-2, -1)))
        return logits


def resnet20(in_channels: int, num_classes: int, image_size: Size) -> CifarResNet:
    """Build the 20-layer `CifarResNet`: 269,722 parameters at 3 channels and 10 classes."""
    return CifarResNet(in_channels, num_classes, image_size, blocks_per_stage=3)


def resnet56(in_channels: int, num_classes: int, image_size: Size) -> CifarResNet:
    """Build the 56-layer `CifarResNet`: 853,018 parameters at 3 channels and 10 classes."""
    return CifarResNet(in_channels, num_classes, image_size, blocks_per_stage=9)


class Residual(nn.Module):
    """Two convolutions with batch norm and ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn_relu(channels, channels), *conv_bn_relu(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x), of the shape of `x`."""
        out: Tensor = x + self.body(x)
        return out


class ResNet9(nn.Module):
    """Eight 3 x 3 convolutions with batch norm and ReLU, a global max pool, and a linear layer whose output is scaled.

    The convolutions have 64, 128, 256 and 512 channels; a `Residual` follows those with 128 and 512. Each of the last
    three ends in a 2 x 2 max pool while the shorter side is at least 4 pixels. With 3 channels and 10 classes there are
    6,573,120 parameters. `head_scale`, > 0, is a factor on the logits that keeps the softmax of the first steps soft.

    Source:
        Page, "How to train your ResNet", 2018 (parts 4 and 5), which won DAWNBench's CIFAR-10 race; the scale 0.125 is
        his.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: Size, head_scale: float = 0.125) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        check_number("head_scale", head_scale, above=True)
        self.head_scale = head_scale
        layers = conv_bn_relu(in_channels, 64)
        side, channels = min(image_size), 64
        for out, residual in ((128, True), (256, False), (512, True)):
            layers += conv_bn_relu(channels, out)
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            if residual:
                layers.append(Residual(out))
            channels = out
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes, bias=False)
        kaiming_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.fc(self.features(x).amax((-2, -1)))
        return logits * self.head_scale


def resnet9(in_channels: int, num_classes: int, image_size: Size, head_scale: float = 0.125) -> ResNet9:
    """Build a `ResNet9`."""
    return ResNet9(in_channels, num_classes, image_size, head_scale)


class PreactBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions, beside a shortcut; `dropout` acts between them.

    If the shape changes, the shortcut is a 1 x 1 convolution of the activated input; otherwise it is the input.
    `stride` is that of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, out_channels, ceil(h / stride), ceil(w / stride))."""
        active = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        out = self.conv2(self.dropout(out))
        result: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return result


class WideResNet(nn.Module):
    """A 3 x 3 convolution, three stages of `PreactBlock`s, batch norm and ReLU, a global average pool, a linear layer.

    The stages have 16, 32 and 64 times `widen` channels, `widen` being the paper's k; the second and third start with
    stride 2. The paper's names give the depth, 6 * `blocks_per_stage` + 4. `dropout`, in [0, 1), is the probability of
    dropping an activation inside a block. Source: Zagoruyko and Komodakis, "Wide residual networks", 2016, table 1.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: Size, blocks_per_stage: int, widen: int, dropout: float
    ) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        check_count("blocks_per_stage", blocks_per_stage, 1)
        check_count("widen", widen, 1)
        check_dropout(dropout)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for stage in range(3):
            out = 16 * widen * 2**stage
            for index in range(blocks_per_stage):
                blocks.append(PreactBlock(channels, out, 2 if stage > 0 and index == 0 else 1, dropout))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = F.relu(self.bn(self.blocks(self.conv(x))), inplace=True)
        logits: Tensor = self.fc(x.mean((-2, -1)))
        return logits


def wrn16_4(in_channels: int, num_classes: int, image_size: Size, dropout: float = 0.0) -> WideResNet:
    """Build WRN-16-4: 16 layers, 4 times as wide; 2,748,890 parameters at 3 channels and 10 classes."""
    return WideResNet(in_channels, num_classes, image_size, blocks_per_stage=2, widen=4, dropout=dropout)


# -- the network of Smith's table on cyclical learning rates, Caffe's `cifar10_full`, with its local normalization ---


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
