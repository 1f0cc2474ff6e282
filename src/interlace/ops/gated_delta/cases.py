"""Nasty inputs for `gated_delta`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from interlace.ops.core import cases
from interlace.ops.core.cases import Case, Operator, recurrence_case, recurrence_probe
from interlace.ops.gated_delta import dispatch
from interlace.ops.gated_delta.mixer_step import MixerStep, mixer_step

gated_delta_case = functools.partial(recurrence_case, "gated_delta")
probe = functools.partial(recurrence_probe, "gated_delta")
step_probe = functools.partial(cases.step_probe, "gated_delta")


def mixer_step_case(group: int, key_dim: int, value_dim: int, taps: int, seed: int = 0) -> Case:
    """Make a case of one token for three sequences, from a layer's projections to its gated norm."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    N, H, K, V, W = 3, 2, key_dim, value_dim, taps
    G = H * group
    channels = 2 * H * K + G * V
    tensors = {"projected": normal(N, channels + G * V + 2 * G), "taps": normal(channels, W), "norm": normal(V)}
    tensors |= {"A_log": normal(G), "dt_bias": normal(G) - 3, "window": normal(N, W - 1, channels)}
    tensors["memory"] = normal(N, G, K, V)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            wide = {n: x[n].to(torch.promote_types(x[n].dtype, torch.float32)) for n in ("A_log", "dt_bias", "memory")}
            s = MixerStep(
                **{n: y.detach().clone() for n, y in (x | wide).items()}, heads=H, negative_eigenvalues=True, eps=1e-6
            )
            return [mixer_step(s, backend), s.window, s.memory]

    return Case("gated_delta", "mixer step", tensors, call, truth="plain", differentiable=False)


mixer_step_probe = mixer_step_case


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(96, 192), probe(128, 128), probe(64, 128), step_probe(96, 192), mixer_step_case(1, 96, 192, 4)]


OPERATOR = Operator("gated_delta", dispatch, gated_delta_case, mixes=True, probes=probes)
