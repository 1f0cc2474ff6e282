"""Weights of 8 or 4 bits in groups of inputs, laid out as `src/native/quantised.h` reads them.

A group of 32 or 64 inputs of one output shares a scale: w = scale q with 8 bits (q in -127..127), and with 4 bits also
a least value: w = scale q + least (q in 0..15).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from interlace.base.errors import ConfigError

BITS = (8, 4)
GROUPS = (64, 32)  # inputs that share a scale
LANES = 16  # outputs of a block
PIECE = 1 << 22  # weights that are rounded at once
TRIES = 3  # of a group's scale and least value with 4 bits


class Rounding(NamedTuple):
    """How weights are rounded.

    Attributes:
        bits: 8 or 4.
        group: inputs that share a scale, 64 or 32.
    """

    bits: int
    group: int = GROUPS[0]

    def check(self) -> None:
        """Raise ConfigError if there are no such bits or groups."""
        for name, given, known in (("bits", self.bits, BITS), ("group", self.group, GROUPS)):
            if given not in known:
                raise ConfigError(f"{name}: must be {' or '.join(map(str, known))}, got {given!r}")


@dataclass(frozen=True)
class Quantised:
    """A weight [*more, outputs, D] of few bits; outputs are padded to whole blocks, inputs to whole groups.

    Attributes:
        words: int32 [*more, blocks, words, 16]: 4 inputs of 8 bits or 8 of 4 bits of each output of a block.
        scales: bfloat16 [*more, blocks, groups, 16].
        minima: bfloat16, the least values of the same groups with 4 bits, else None.
        shape: the weight's own.
        rounding: the bits, and the inputs of a group.
    """

    words: Tensor
    scales: Tensor
    minima: Tensor | None
    shape: tuple[int, ...]
    rounding: Rounding

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        found = {"words": self.words, "scales": self.scales}
        return found if self.minima is None else {**found, "minima": self.minima}

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Quantised:
        """Return it where `fn`, as `nn.Module._apply` is given it, puts tensors; it is never cast."""
        return self.to(fn(torch.empty(0, device=self.device)).device)

    def to(self, device: torch.device) -> Quantised:
        """Return it on a device."""
        minima = None if self.minima is None else self.minima.to(device)
        return replace(self, words=self.words.to(device), scales=self.scales.to(device), minima=minima)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that it stands for, [*more, outputs, D]."""
        *more, blocks, _, _ = self.words.shape
        shifts = torch.tensor(_shifts(self.rounding.bits), dtype=torch.int32, device=self.device)
        steps = (self.words.unsqueeze(-1) >> shifts) & (2**self.rounding.bits - 1)
        steps = steps.transpose(-1, -2).reshape(*more, blocks, -1, self.rounding.group, LANES).float()
        scales = self.scales.float().unsqueeze(-2)
        wide = (steps - 128) * scales if self.minima is None else steps * scales + self.minima.float().unsqueeze(-2)
        wide = wide.flatten(-3, -2).transpose(-1, -2).flatten(-3, -2)  # [*more, outputs, D], both padded
        return wide[..., : self.shape[-2], : self.shape[-1]].to(dtype)

    def at(self, index: int) -> Quantised:
        """Return one of several weights."""
        minima = None if self.minima is None else self.minima[index]
        return replace(self, words=self.words[index], scales=self.scales[index], minima=minima, shape=self.shape[1:])

    def __deepcopy__(self, _: object) -> Quantised:
        """Share the tensors, which nothing writes to."""
        return self


def quantise(weight: Tensor, rounding: Rounding) -> Quantised:
    """Round a weight [*more, outputs, D], a group of inputs at a time.

    Raises:
        ConfigError: there are no such bits or groups.
    """
    rounding.check()
    bits, group = rounding
    made = empty(tuple(weight.shape), rounding, weight.device)
    *_, outputs, width = weight.shape
    flat = weight.detach().reshape(-1, outputs, width)
    words, scales = made.words.flatten(0, -3), made.scales.flatten(0, -3)
    minima = None if made.minima is None else made.minima.flatten(0, -3)
    blocks = words.shape[0] // max(1, flat.shape[0])
    step = max(1, PIECE // (LANES * max(1, width)))  # blocks at once
    for number, one in enumerate(flat):
        for first in range(0, blocks, step):
            last = min(blocks, first + step)
            place = slice(number * blocks + first, number * blocks + last)
            rows = one[first * LANES : last * LANES].float()
            wide = rows.new_zeros((last - first) * LANES, scales.shape[1] * group)
            wide[: rows.shape[0], :width] = rows
            grouped = wide.view(last - first, LANES, -1, group)
            scale, least, steps = _symmetric(grouped) if bits == 8 else _with_minimum(grouped)
            scales[place] = scale.squeeze(-1).transpose(1, 2)
            if minima is not None:
                minima[place] = least.squeeze(-1).transpose(1, 2)
            words[place] = _packed(steps.flatten(2), bits).transpose(1, 2)
    return made


def empty(shape: tuple[int, ...], rounding: Rounding, device: torch.device | str = "cpu") -> Quantised:
    """Return a weight of this shape whose parts are allocated and not yet written."""
    (*more, outputs, width), (bits, group) = shape, rounding
    blocks, groups = -(-outputs // LANES), -(-width // group)
    words = torch.empty(*more, blocks, groups * group * bits // 32, LANES, dtype=torch.int32, device=device)
    scales = torch.empty(*more, blocks, groups, LANES, dtype=torch.bfloat16, device=device)
    return Quantised(words, scales, torch.empty_like(scales) if bits == 4 else None, shape, rounding)


def _shifts(bits: int) -> list[int]:
    """Return where a word holds each input, so that the kernel's pairs of 16-bit numbers are neighbours."""
    return [bits * (i // 2) + 16 * (i % 2) for i in range(32 // bits)]


def _packed(steps: Tensor, bits: int) -> Tensor:
    """Return int32 words [..., n / inputs of a word] of steps [..., n], byte by byte, the lowest first."""
    steps = steps.to(torch.uint8).unflatten(-1, (-1, 32 // bits))
    if bits == 8:
        ordered = steps[..., [0, 2, 1, 3]]
    else:
        ordered = steps[..., [0, 4, 1, 5]] | steps[..., [2, 6, 3, 7]] << 4
    return ordered.contiguous().view(torch.int32).squeeze(-1)


def _symmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bfloat16 scales, zeros, and steps of 8 bits, 128 for zero, of groups [..., group]."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).bfloat16()
    steps = (x / scale.float().clamp(min=1e-30)).round_().clamp_(-127, 127)
    return scale, torch.zeros_like(scale), steps + 128


def _with_minimum(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bfloat16 scales, bfloat16 least values, and steps of 4 bits of groups [..., group].

    The first try spans the group; each further one is the line of least squares through the steps of the one before.
    A group keeps its best try.
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    count, total, squares = x.shape[-1], x.sum(-1, keepdim=True), (x * x).sum(-1, keepdim=True)
    scale, least = (high - low) / 15, low
    best: list[Tensor] = []
    for _ in range(TRIES):
        scale, least = scale.bfloat16(), least.bfloat16()
        s, m = scale.float(), least.float()
        steps = (x - m).mul_(1 / s.clamp(min=1e-30)).round_().clamp_(0, 15)
        q, qq, qx = (y.sum(-1, keepdim=True) for y in (steps, steps * steps, steps * x))
        error = squares + s * s * qq + m * m * count + 2 * (s * m * q - s * qx - m * total)
        found = [scale, least, steps, error]
        best = [torch.where(error < best[3], *pair) for pair in zip(found, best, strict=True)] if best else found
        spread = qq - q * q / count
        scale = torch.where(spread > 0, (qx - q * total / count) / spread.clamp(min=1e-30), s)
        least = (total - scale * q) / count
    return best[0], best[1], best[2]
