"""Mamba-2's state space duality: a scalar decay per head, and a write that does not look at what is there."""
