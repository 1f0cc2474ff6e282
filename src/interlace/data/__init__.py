"""Turns text into tokens, and tokens into ragged batches; a batch depends on (seed, step) alone.

Tokenizers, chat templates, and folders of token shards with checksums.
"""
