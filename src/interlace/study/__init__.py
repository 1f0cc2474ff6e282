"""Studies: comparisons that can be repeated and believed."""
