"""Generates text: one decoding loop serves prompts, conversations and batches.

`capture` captures one step and replays it: the kernel calls on a CPU, a CUDA graph (`graph`) on a GPU. `pack` stores
weights as decoding reads them fastest.
"""
