"""The initialization that the networks with batch norm share."""

from torch import nn

# --- What every model builder checks of its arguments.


def check_shape(in_channels: int, num_classes: int, image_size: tuple[int, int], *, min_side: int = 1) -> None:
    """Refuse an image or a class count that a network cannot be built for.

    Args:
        in_channels: Channels of an image.
        num_classes: Length of the output.
        image_size: Height and width in pixels.
        min_side: The shortest side, in pixels, that the network can take.

    Raises:
        ValueError: If a value is out of range; the message names the argument and the bound.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels must be >= 1, got {in_channels}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    if len(image_size) != 2 or min(image_size) < min_side:
        raise ValueError(
            f"image_size must be (height, width), each >= {min_side}, got {tuple(image_size)}. "
            "Choose another model, or enlarge the images"
        )


def kaiming_init(module: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, in place.

    Biases are set to zero. Batch norm keeps torch's start (weight 1, bias 0) and linear layers keep torch's own.

    Args:
        module: The network; its submodules are visited in registration order.

    Source:
        He et al., "Delving deep into rectifiers", 2015, equation 14 (the variant by fan-out).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
