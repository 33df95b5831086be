"""The learning-rate range test: what a curve says, and the sweep that records it."""
