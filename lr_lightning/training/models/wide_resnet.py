"""The wide residual networks of Zagoruyko and Komodakis."""

import torch.nn.functional as F
from torch import Tensor, nn

from lr_lightning.training.models.checks import check_shape
from lr_lightning.training.models.init import kaiming_init


class PreactBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions, beside a shortcut.

    Where the shape changes the shortcut is a 1 x 1 convolution of the activated input, else the input itself.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        dropout: Probability of dropping an activation between the convolutions.
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

    The stages have 16, 32 and 64 times `widen` channels; the second and third start with stride 2.

    Args:
        in_channels: Channels of an image.
        num_classes: Length of the output.
        image_size: Height and width in pixels; the network pools globally and does not depend on it.
        blocks_per_stage: Blocks in each of the three stages, >= 1. The depth in the paper's names, 6 times it + 4,
            counts the convolutions.
        widen: The paper's widening factor k, >= 1.
        dropout: Probability of dropping an activation inside a block, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        (batch, in_channels, height, width) to (batch, num_classes).

    Source:
        Zagoruyko and Komodakis, "Wide residual networks", 2016, table 1.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        blocks_per_stage: int,
        widen: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        if blocks_per_stage < 1:
            raise ValueError(f"blocks_per_stage must be >= 1, got {blocks_per_stage}")
        if widen < 1:
            raise ValueError(f"widen must be >= 1, got {widen}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
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


def wrn16_4(in_channels: int, num_classes: int, image_size: tuple[int, int], dropout: float = 0.0) -> WideResNet:
    """Build WRN-16-4: 16 layers, 4 times as wide; 2,748,890 parameters at 3 channels and 10 classes."""
    return WideResNet(in_channels, num_classes, image_size, blocks_per_stage=2, widen=4, dropout=dropout)
