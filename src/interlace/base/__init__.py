"""Holds what every room uses: errors, config schemas, segments, files, the letters of dimensions.

Letters, the same everywhere: B batch, T time, N segments, D width, H query and key heads, G value heads,
K key dim, V value dim, C chunk. `total` is the flat axis of tokens, the sum of all segment lengths.
"""
