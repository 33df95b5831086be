"""What the networks share: the check of their shape, and the initialization of their convolutions."""

from torch import nn

from lr_lightning._checks import check_count
from lr_lightning.errors import ArgumentError


def check_shape(in_channels: int, num_classes: int, image_size: tuple[int, int], *, min_side: int = 1) -> None:
    """Refuse an image or a number of classes that a network cannot be built for.

    Args:
        in_channels: Channels of an image.
        num_classes: Length of the output.
        image_size: Height and width in pixels.
        min_side: The shortest side, in pixels, that the network can take.

    Raises:
        ArgumentError: A value is out of range.
    """
    check_count("in_channels", in_channels, 1)
    check_count("num_classes", num_classes, 2)
    if len(image_size) != 2 or min(image_size) < min_side:
        raise ArgumentError(
            f"must be (height, width), each >= {min_side}, got {tuple(image_size)}. "
            "Choose another model, or enlarge the images",
            "image_size",
        )


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside [0, 1).

    Raises:
        ArgumentError: ``dropout`` is out of range.
    """
    if not 0 <= dropout < 1:
        raise ArgumentError(f"must be in [0, 1), got {dropout}", "dropout")


def kaiming_init(module: nn.Module) -> None:
    """Draw the weights of every convolution from He's normal distribution, in place, and set its biases to 0.

    Batch norm keeps torch's start (weight 1, bias 0), and linear layers keep torch's own initialization. Submodules are
    visited in registration order.

    Source:
        He et al., "Delving deep into rectifiers", 2015, equation 14 (the variant by fan-out).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
