"""What every long command shares: the run folder, versions, progress, report pages."""
