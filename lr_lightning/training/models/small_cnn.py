"""The default network, small enough to train in seconds on a CPU, and what all networks share."""

from torch import Tensor, nn

from lr_lightning._checks import check_count
from lr_lightning.errors import ArgumentError

Size = tuple[int, int]  # height and width of an image, in pixels


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
