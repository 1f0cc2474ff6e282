"""Scores a model on held-out text in bits per byte, during training and after it.

It also runs a whole training: the loop of `train`, held-out scores, samples, a report.
"""
