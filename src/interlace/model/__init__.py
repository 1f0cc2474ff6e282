"""Defines the one model that trains, scores and generates: config, `HybridLM`, its state, its sizes.

Sizes are parameters, FLOPs and bytes, computed from the config alone.
"""
