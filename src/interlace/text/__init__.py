"""Words, near-duplicates, contamination, topics and rows of files; no torch."""
