"""Makes training data with a teacher: every request is paid for once, every row ends in one recorded state.

`teachers/` asks endpoints and local checkpoints, `ledger/` stores requests and rows, `steps/` has one file for each
family of steps.
"""
