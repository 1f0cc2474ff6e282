"""Compares texts: words, near-duplicates, benchmark contamination, topics; reads rows of files.

It needs no torch.
"""
