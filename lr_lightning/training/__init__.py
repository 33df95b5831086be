"""The parts of the training app: data, models, optimizers and the LightningModule."""
