"""Generates text: one scheduler serves prompts, conversations, batches and the engine.

`scheduler` reads prompts in parts and makes a token of every answer at each step; `rows` holds the sequences. A step is
captured once and replayed (`graph`; `replay` on a CPU). `pack` stores weights as decoding reads them fastest.
"""
