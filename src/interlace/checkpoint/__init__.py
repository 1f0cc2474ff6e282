"""Loads models from folders on disk, saves them back, converts them; never executes what a folder holds.

`families/` has one file for each published family.
"""
