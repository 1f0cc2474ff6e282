"""The operands of a recurrence over a matrix state, defined once: the record that every backend of a rule gets.

Its fields, in order, are also the inputs of the rules' custom operators (`core.rules`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core.normalise import normalised
from interlace.ops.core.quantised import Quantised


def check_devices(operator: str, tensors: Mapping[str, Tensor | Quantised | None]) -> None:
    """Raise ShapeError, naming the operator and two arguments, unless the tensors lie on one device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    (first, one), *others = given.items()
    for name, x in others:
        if x.device != one.device:
            raise ShapeError(
                f"{operator}: {name} lies on {x.device}, but {first} on {one.device}; move them to one device"
            )


class Recurrence(NamedTuple):
    """One call of `gated_delta`, `kimi_delta` or `state_space`.

    Attributes:
        query, key: [total, H, K].
        value: [total, G, V], G a multiple of H.
        log_decay: [total, G], at most 0; [total, G, K] for a rule that decays by channel.
        strength: [total, G], of each write: beta of the delta rules, the step of Mamba-2.
        offsets: int32 [N + 1], where sequences start, and total; None where every token is a sequence.
        state: [N, G, K, V], what each sequence starts from; None for zeros.
        scale: multiplies the output.
        time: tokens of each sequence where all have as many, else 0.
        normalise: whether queries and keys are divided by their lengths first.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    strength: Tensor
    offsets: Tensor | None
    state: Tensor | None
    scale: float
    time: int
    normalise: bool

    @classmethod
    def of(
        cls,
        tensors: Sequence[Tensor],
        segments: Segments | None,
        state: Tensor | None,
        scale: float | None = None,
        normalise: bool = False,
    ) -> Recurrence:
        """Build the record from (query, key, value, log_decay, strength).

        Without segments every token is a sequence; `scale` is K ** -0.5 if None.
        """
        query, key, value, log_decay, strength = tensors
        if scale is None:
            scale = (query.shape[-1:].numel() or 1) ** -0.5
        offsets, time = (None, 1) if segments is None else (segments.offsets, segments.time or 0)
        return cls(query, key, value, log_decay, strength, offsets, state, float(scale), time, normalise)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.query.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: float32, or float64 for float64 inputs."""
        return torch.promote_types(self.value.dtype, torch.float32)

    @property
    def rows(self) -> int:
        """N, the number of sequences."""
        return self.query.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that may want gradients."""
        return (self.query, self.key, self.value, self.log_decay, self.strength, self.state)

    def spans(self) -> list[tuple[int, int]]:
        """Return (first, end) of each sequence."""
        if self.offsets is None:
            return [(row, row + 1) for row in range(self.rows)]
        return list(pairwise(self.offsets.tolist()))

    def bordered(self) -> Recurrence:
        """Return the same call with borders, where every token is a sequence too."""
        if self.offsets is not None:
            return self
        return self._replace(offsets=torch.arange(self.rows + 1, dtype=torch.int32))

    def unit(self) -> Recurrence:
        """Return the same call with queries and keys normalised already, if that was asked for."""
        if not self.normalise:
            return self
        _, _, value, log_decay, strength, offsets, state, scale, time, _ = self
        unit = (normalised(self.query), normalised(self.key))
        return Recurrence(*unit, value, log_decay, strength, offsets, state, scale, time, False)

    def of_heads(self, heads: slice, groups: slice) -> Recurrence:
        """Return the call on some key heads and the value heads that read them."""
        q, k, v, g, b, offsets, state, scale, time, normalise = self
        parts = (q[:, heads], k[:, heads], v[:, groups], g[:, groups], b[:, groups])
        return Recurrence(*parts, offsets, None if state is None else state[:, groups], scale, time, normalise)

    def wide(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return (q, k, v, log_decay, strength) for the paper's recurrence: each value head with a key of its own."""
        x = self.unit()
        group = x.value.shape[1] // x.key.shape[1]
        q, k = (y.to(x.dtype).repeat_interleave(group, dim=1) for y in (x.query, x.key))
        return q, k, x.value.to(x.dtype), x.log_decay.to(x.dtype), x.strength.to(x.dtype)

    def first_state(self, row: int) -> Tensor:
        """Return [G, K, V], the state that a sequence starts from."""
        if self.state is not None:
            return self.state[row].to(self.dtype)
        return self.value.new_zeros(self.value.shape[1], self.key.shape[2], self.value.shape[2], dtype=self.dtype)

    def check(self, operator: str, total: int, *, strength: str = "beta", by_channel: bool = False) -> None:
        """Raise ShapeError, naming the operator and the argument, unless the operands fit together.

        Args:
            total: tokens that the segments cover.
            strength: the operator's name for the strength of a write.
            by_channel: whether `log_decay` has a value for each channel of the key.
        """

        def fail(name: str, tensor: Tensor, rule: str) -> None:
            raise ShapeError(f"{operator}: {name} has shape {list(tensor.shape)}, but {rule}")

        query, key, value, log_decay, state = self.query, self.key, self.value, self.log_decay, self.state
        if query.ndim != 3:
            fail("query", query, "it must be [total, H, K]")
        tokens, H, K = query.shape
        if key.shape != query.shape:
            fail("key", key, f"it must equal query's {list(query.shape)}")
        if value.ndim != 3 or value.shape[0] != tokens or (value.shape[1] % H if H else 1):
            fail("value", value, f"it must be [{tokens}, G, V] with G a multiple of H = {H}")
        G, V = value.shape[1:]
        if min(H, K, G, V, tokens) < 1:
            fail("value", value, f"with query's {list(query.shape)} it leaves nothing to compute")
        gate, letters = ((tokens, G, K), "total, G, K") if by_channel else ((tokens, G), "total, G")
        if log_decay.shape != gate:
            fail("log_decay", log_decay, f"it must be [{letters}] = {list(gate)}")
        if self.strength.shape != (tokens, G):
            fail(strength, self.strength, f"it must be [total, G] = [{tokens}, {G}]")
        if total != tokens:
            raise ShapeError(f"{operator}: segments cover {total} tokens, but query has {tokens}")
        if state is not None and state.shape != (self.rows, G, K, V):
            fail("state", state, f"it must be [N, G, K, V] = [{self.rows}, {G}, {K}, {V}]")
        names = ("query", "key", "value", "log_decay", strength, "state")
        check_devices(operator, dict(zip(names, self.tensors, strict=True)))
        waits = log_decay.device.type != "cpu" or torch.compiler.is_compiling()  # a look at a GPU's values waits for it
        if not waits and bool((log_decay > 0).any()):
            raise ShapeError(
                f"{operator}: log_decay must be at most 0 (the state would grow), got {float(log_decay.max()):.4g}; "
                "pass the logarithm of the decay"
            )
