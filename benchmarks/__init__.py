"""What the project claims, measured side by side: ``python -m benchmarks.<name>`` (``--quick`` for a small form)."""
