"""The initialization that the networks with batch norm share."""

from torch import nn


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
