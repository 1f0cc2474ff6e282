"""Computes: each operator has one folder with its derivation, slow recurrence, fast forms, dispatch and test cases.

Every operator that mixes tokens takes a flat axis of them plus `segments`, and returns `(out, state)`, always. Those
that work on each token alone (norm, activation, loss, product) have no state; their docstrings say what they return.
`core/` holds what operators share. `selftest` runs all cases, for the laws and for `interlace doctor`.
"""

from interlace.ops.attention.dispatch import attention
from interlace.ops.cross_entropy.dispatch import cross_entropy_
from interlace.ops.decay_gate.dispatch import decay_gate
from interlace.ops.experts.dispatch import experts
from interlace.ops.gated_delta.dispatch import gated_delta, gated_delta_step
from interlace.ops.kimi_delta.dispatch import kimi_delta
from interlace.ops.linear.dispatch import linear
from interlace.ops.long_convolution.dispatch import long_convolution
from interlace.ops.rms_norm.dispatch import rms_norm
from interlace.ops.rope.dispatch import rope
from interlace.ops.selective_scan.dispatch import selective_scan
from interlace.ops.short_convolution.dispatch import short_convolution
from interlace.ops.state_space.dispatch import state_space
from interlace.ops.swiglu.dispatch import swiglu

__all__ = [
    "attention",
    "cross_entropy_",
    "decay_gate",
    "experts",
    "gated_delta",
    "gated_delta_step",
    "kimi_delta",
    "linear",
    "long_convolution",
    "rms_norm",
    "rope",
    "selective_scan",
    "short_convolution",
    "state_space",
    "swiglu",
]
