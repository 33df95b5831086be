"""Image classifiers, each with a builder that takes its own options and three common arguments.

Args:
    in_channels: Channels of an image, >= 1.
    num_classes: Length of the output, >= 2.
    image_size: Height and width in pixels.

The networks map images (batch, in_channels, height, width) to logits (batch, num_classes). An argument that is out of
range raises ArgumentError.
"""

from lr_lightning.training.models.resnet import resnet9, resnet20, resnet56, wrn16_4
from lr_lightning.training.models.small_cnn import small_cnn
from lr_lightning.training.models.smith_cnn import smith_cnn

__all__ = ["resnet9", "resnet20", "resnet56", "small_cnn", "smith_cnn", "wrn16_4"]
