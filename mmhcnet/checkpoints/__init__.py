"""Checkpoints: writing, finding, reading without running them, fitting them into a model."""
