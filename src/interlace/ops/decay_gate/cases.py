"""Nasty inputs for `decay_gate`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.decay_gate import dispatch


def decay_gate_case(
    lengths: list[int], label: str, limited: bool, seed: int = 0, heads: int = 3, channels: int = 30
) -> Case:
    """Make a case: arguments of softplus from -20 to 40; limited: both limits cut some steps."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(sum(lengths), channels, generator=draw, dtype=torch.float64) * 60 - 20
    tensors = {"x": x, "dt_bias": torch.randn(channels, generator=draw, dtype=torch.float64)}
    tensors["A_log"] = torch.randn(heads, generator=draw, dtype=torch.float64)
    limits = {"low": 0.5, "high": 20.0} if limited else {}

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        both = dispatch.decay_gate(**x, **limits, backend=backend)  # type: ignore[arg-type]
        decay, _ = dispatch.decay_gate(**x, **limits, keep_step=False, backend=backend)  # type: ignore[arg-type]
        _, step = dispatch.decay_gate(x["x"], x["dt_bias"], **limits, backend=backend)  # type: ignore[arg-type]
        return [*both, decay, step]

    return Case("decay_gate", label, tensors, call, truth="plain")


def probe(channels: int) -> Case:
    """Make the case that a GPU's kernels are checked with."""
    return decay_gate_case([70, 5], "probe", True, heads=1, channels=channels)


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(64), probe(4096)]


OPERATOR = Operator("decay_gate", dispatch, decay_gate_case, probes=probes)
