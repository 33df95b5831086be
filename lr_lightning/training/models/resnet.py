"""The residual networks for CIFAR of He et al."""

import torch.nn.functional as F
from torch import Tensor, nn

from lr_lightning.training.models.checks import check_shape
from lr_lightning.training.models.init import kaiming_init


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut without parameters (option A).

    Where the shape changes the shortcut takes every second pixel and pads the new channels with zeros.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, >= `in_channels`.
        stride: Stride of the first convolution and of the shortcut.
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
    """A 3 x 3 convolution, three stages of `BasicBlock`s with 16, 32 and 64 channels, a global average pool, a linear.

    It has 6 * `blocks_per_stage` + 2 layers with weights. The second and third stage start with stride 2.

    Args:
        in_channels: Channels of an image.
        num_classes: Length of the output.
        image_size: Height and width in pixels; the network pools globally and does not depend on it.
        blocks_per_stage: Blocks in each of the three stages, >= 1.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        (batch, in_channels, height, width) to (batch, num_classes).

    Source:
        He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: tuple[int, int], blocks_per_stage: int) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        if blocks_per_stage < 1:
            raise ValueError(f"blocks_per_stage must be >= 1, got {blocks_per_stage}")
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        channels = 16
        for out in (16, 32, 64):
            for index in range(blocks_per_stage):
                blocks.append(BasicBlock(channels, out, stride=2 if index == 0 and out != 16 else 1))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.blocks(F.relu(self.bn(self.conv(x)), inplace=True))
        logits: Tensor = self.fc(x.mean((-2, -1)))
        return logits


def resnet20(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> CifarResNet:
    """Build the 20-layer `CifarResNet`: 269,722 parameters at 3 channels and 10 classes."""
    return CifarResNet(in_channels, num_classes, image_size, blocks_per_stage=3)


def resnet56(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> CifarResNet:
    """Build the 56-layer `CifarResNet`: 853,018 parameters at 3 channels and 10 classes."""
    return CifarResNet(in_channels, num_classes, image_size, blocks_per_stage=9)
