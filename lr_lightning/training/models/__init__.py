"""Image classifiers: each builder takes its own options and three common arguments.

These are ``in_channels`` (>= 1), ``num_classes`` (>= 2) and ``image_size`` (height and width in pixels). The networks
map images (batch, in_channels, height, width) to logits (batch, num_classes). What is out of range raises
ArgumentError.
"""

from lr_lightning.training.models.resnet import resnet9, resnet20, resnet56, wrn16_4
from lr_lightning.training.models.small_cnn import small_cnn
from lr_lightning.training.models.smith_cnn import smith_cnn

__all__ = ["resnet9", "resnet20", "resnet56", "small_cnn", "smith_cnn", "wrn16_4"]
