"""Data that comes with the package: ``mmhcnet.datasets.digits`` writes the demo set."""
