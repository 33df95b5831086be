"""Searching for the rate and what interacts with it. The only importer of Optuna."""
