"""The long convolution by fast Fourier transforms, segment by segment, or all equal segments at once; own backward.

A transform of at least 2 T points keeps the end of a sequence from wrapping round to its start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.views import views


def points(T: int) -> int:
    """Return a fast length of at least 2 T: a power of two, or 3 times one."""
    power = 1 << (2 * T - 1).bit_length()
    return 3 * power // 4 if 3 * power // 4 >= 2 * T else power


def forward(x: Tensor, taps: Tensor, offsets: Tensor, time: int) -> Tensor:
    """Map x [total, D], taps [L, D] to [total, D] in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for (_, source), (_, target) in zip(views(x, offsets, time), views(out, offsets, time), strict=True):
        T = source.shape[1]
        n = points(T)
        spectrum = torch.fft.rfft(taps[:T].to(dtype), n, dim=0) * torch.fft.rfft(source.to(dtype), n, dim=1)
        target.copy_(torch.fft.irfft(spectrum, n, dim=1)[:, :T])
    return out


def backward(d_out: Tensor, x: Tensor, taps: Tensor, offsets: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """Return gradients of x and taps: correlations of d_out with the taps and with x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_taps = torch.zeros_like(taps, dtype=dtype)
    parts = zip(*(views(z, offsets, time) for z in (d_out, x, d_x)), strict=True)
    for (_, due), (_, source), (_, target) in parts:
        T = source.shape[1]
        n = points(T)
        d_spectrum = torch.fft.rfft(due.to(dtype), n, dim=1)
        kept = torch.fft.rfft(taps[:T].to(dtype), n, dim=0).conj()
        target.copy_(torch.fft.irfft(d_spectrum * kept, n, dim=1)[:, :T])
        shared = (d_spectrum * torch.fft.rfft(source.to(dtype), n, dim=1).conj()).sum(0)
        d_taps[:T] += torch.fft.irfft(shared, n, dim=0)[:T]
    return d_x, d_taps.to(taps.dtype)


def _shapes(x: Tensor, taps: Tensor, offsets: Tensor, time: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_operator = custom_op(
    "long_convolution",
    Signature("Tensor x, Tensor taps, Tensor offsets, SymInt time", ("x", "taps"), outputs=1),
    forward,
    backward,
    _shapes,
)


def run(x: Tensor, taps: Tensor, segments: Segments) -> Tensor:
    """`long_convolution` on any device."""
    return _operator(x, taps, segments.offsets, segments.time or 0)
