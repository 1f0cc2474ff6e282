"""One file for each published family of models."""
