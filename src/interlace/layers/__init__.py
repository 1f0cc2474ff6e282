"""Layers: one module per file, each beside the config that describes it and predicts its size."""
