"""Judgements on recorded numbers: pure functions without Lightning, MLflow or plotting."""

from lr_lightning.diagnosis.diagnose import diagnose
from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.verdict import Advice, Label, Reason, Verdict

__all__ = ["Advice", "History", "Label", "Point", "Reason", "Verdict", "diagnose"]
