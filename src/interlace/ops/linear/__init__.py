"""Matrix products of a few rows, as in decoding."""
