"""Trains a model from a recipe: one loop, optimizers, schedules, checkpoints that resume exactly, many workers.

`objectives/` has the losses, `parallel/` the workers that train one model, `cut/` how weights are cut over them.
"""
