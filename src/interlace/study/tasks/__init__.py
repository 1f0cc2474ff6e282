"""Formal tasks that separate architectures: what each can express, learn and carry to lengths it never saw."""
