"""Turns text into tokens, and tokens into ragged batches; a batch depends on (seed, step) alone.

Tokenizers, chat templates, text larger than memory, folders of token shards with checksums, mixtures of them.
"""
