"""The training app: configuration, the building of its parts, and the run. Light to import."""
