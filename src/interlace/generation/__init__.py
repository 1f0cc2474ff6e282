"""Text from a model, piece by piece: sampling, stop strings, conversations, batches of rows."""
