"""Generates text: one decoding loop serves prompts, conversations and batches.

`capture` captures the kernel calls of one step and replays them. `pack` stores weights as decoding reads them fastest.
"""
