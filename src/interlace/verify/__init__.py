"""Decides whether an answer is right: numbers, expressions, patterns, JSON by schema, programs by their tests.

Programs run in the sandbox's cage, everything slow in a worker. It needs no torch.
"""
