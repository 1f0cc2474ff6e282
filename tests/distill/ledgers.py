"""What a run's ledger holds, for tests."""

from __future__ import annotations

from interlace.distill.folder import DistillRun


def rows_of(run, step="answers"):
    """Every row of a step, whatever its state."""
    folder = DistillRun(run)
    ledger = folder.open_ledger()
    found = list(ledger.rows.ordered(next(s.id for s in folder.stages if s.name == step), state=None))
    ledger.close()
    return found
