"""Defines the layers: one file for each kind, with the config that predicts its size.

`registry` names the kinds that a pattern may hold.
"""
