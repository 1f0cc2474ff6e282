"""Causal softmax attention over ragged sequences, with grouped heads, a sliding window and a cache."""
