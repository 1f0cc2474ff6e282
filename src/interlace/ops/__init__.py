"""Operators: one folder each, with its derivation, its slow truth, its fast forms and their dispatch.

Every operator takes a flat axis of tokens plus `segments`, and returns `(out, state)`, always.
"""

from interlace.ops.attention.dispatch import attention
from interlace.ops.gated_delta.dispatch import gated_delta, gated_delta_step
from interlace.ops.short_convolution.dispatch import short_convolution

__all__ = ["attention", "gated_delta", "gated_delta_step", "short_convolution"]
