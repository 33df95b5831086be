"""Pure functions of recorded numbers: no Lightning, no MLflow."""

from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.verdict import LABELS, Verdict, diagnose

__all__ = ["LABELS", "History", "Point", "Verdict", "diagnose"]
