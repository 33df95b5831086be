"""Pure functions of recorded numbers: no Lightning, no MLflow."""
