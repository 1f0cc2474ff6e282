"""Trains a model from a recipe: one loop, optimizer, schedule, checkpoints that resume exactly.

`objectives/` has the losses.
"""
