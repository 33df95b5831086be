"""Search for the learning rate and for what interacts with it; the only importer of Optuna."""
