"""Compares architectures in studies that others can repeat.

`quickstart/` races a hybrid and a transformer, `tasks/` trains on formal tasks, `ladder/` trains at equal capacity,
`scaling/` fits scaling laws.
"""
