"""What tests hand to long work: its score, and functions that are called at certain moments."""

from __future__ import annotations

from interlace.evaluate.bits_per_byte import HeldOut


def scored(corpus):
    """A score of little text."""
    return HeldOut(corpus, 48, 480).score


def at(label, call):
    """Calls `call` with every moment of this label."""
    return lambda now: call(now) if now.label == label else None
