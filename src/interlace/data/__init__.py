"""Text to tokens to deterministic ragged batches."""
