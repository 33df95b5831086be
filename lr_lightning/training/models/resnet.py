"""Residual networks for CIFAR: ResNet-20 and -56 (He et al.), ResNet-9 (Page), WRN-16-4 (Zagoruyko and Komodakis)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lr_lightning._checks import check_count, check_number
from lr_lightning.training.models.small_cnn import Size, check_dropout, check_shape, conv_bn_relu, kaiming_init


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut without parameters (option A).

    If the shape changes, the shortcut takes every second pixel and pads the new channels with zeros. `stride` is
    that of the first convolution and of the shortcut; `out_channels` must be >= `in_channels`.
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
