"""Image classifiers. Each builder takes (in_channels, num_classes, image_size) and its own options."""

from lr_lightning.training.models.resnet import resnet9, resnet20, resnet56, wrn16_4
from lr_lightning.training.models.small_cnn import small_cnn
from lr_lightning.training.models.smith_cnn import smith_cnn

__all__ = ["resnet9", "resnet20", "resnet56", "small_cnn", "smith_cnn", "wrn16_4"]
