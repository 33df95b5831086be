"""The nine-layer residual network that won DAWNBench's CIFAR-10 race."""

from torch import Tensor, nn

from lr_lightning.training.models.checks import check_shape
from lr_lightning.training.models.init import kaiming_init


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class Residual(nn.Module):
    """Two convolutions with batch norm and ReLU, added to their input.

    Args:
        channels: Channels of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_bn_relu(channels, channels), *_conv_bn_relu(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x), of the shape of `x`."""
        out: Tensor = x + self.body(x)
        return out


class ResNet9(nn.Module):
    """Eight 3 x 3 convolutions with batch norm and ReLU, a global max pool, and a linear layer whose output is scaled.

    Channels are 64, 128, 256, 512; the 128 and the 512 are followed by a `Residual`. Each of the last three
    widenings ends in a 2 x 2 max pool, left out where the image is less than 4 pixels on its shorter side by then.

    Args:
        in_channels: Channels of an image.
        num_classes: Length of the output.
        image_size: Height and width in pixels.
        head_scale: Factor on the logits, > 0. It keeps the softmax of the first steps soft.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        (batch, in_channels, height, width) to (batch, num_classes). 6,573,120 parameters at 3 channels, 10 classes.

    Source:
        Page, "How to train your ResNet", 2018 (parts 4 and 5); the scale 0.125 is his.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: tuple[int, int], head_scale: float = 0.125
    ) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        if head_scale <= 0:
            raise ValueError(f"head_scale must be > 0, got {head_scale}")
        self.head_scale = head_scale
        layers = _conv_bn_relu(in_channels, 64)
        side, channels = min(image_size), 64
        for out, residual in ((128, True), (256, False), (512, True)):
            layers += _conv_bn_relu(channels, out)
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


def resnet9(in_channels: int, num_classes: int, image_size: tuple[int, int], head_scale: float = 0.125) -> ResNet9:
    """Build a `ResNet9`; its docstring has the arguments, the layers and the source."""
    return ResNet9(in_channels, num_classes, image_size, head_scale)
