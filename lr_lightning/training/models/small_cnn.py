"""The default network: small enough to train in seconds on a CPU."""

from torch import Tensor, nn

from lr_lightning._checks import check_count
from lr_lightning.training.models.blocks import check_dropout, check_shape, kaiming_init


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm and ReLU, a global average pool and one linear layer.

    The convolutions have `width`, 2 * `width` and 2 * `width` channels. A 2 x 2 max pool follows each of the first two
    while the shorter side is at least 4 pixels: an 8 x 8 image ends at 2 x 2 and a 32 x 32 image at 8 x 8. With 3
    channels and 10 classes there are 57,130 parameters.

    Args:
        width: Channels of the first convolution, >= 1.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1).
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: tuple[int, int], width: int = 32, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_shape(in_channels, num_classes, image_size)
        check_count("width", width, 1)
        check_dropout(dropout)
        layers: list[nn.Module] = []
        side, channels = min(image_size), in_channels
        for index, out in enumerate((width, 2 * width, 2 * width)):
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
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


def small_cnn(
    in_channels: int, num_classes: int, image_size: tuple[int, int], width: int = 32, dropout: float = 0.0
) -> SmallCNN:
    """Build a `SmallCNN`."""
    return SmallCNN(in_channels, num_classes, image_size, width, dropout)
