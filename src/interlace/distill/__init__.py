"""Synthetic data from any teacher: every request paid for once, every row accounted for."""
