"""Holds what all long commands share: run folder, lock, versions, machine, progress, checkpoints, report.

It also says which checkpoint of a run is the newest whole one.
"""
