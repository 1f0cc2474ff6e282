"""The ledger of a run: every row, request and charge, in one SQLite file that survives kill -9."""
