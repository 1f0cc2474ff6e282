"""Nasty inputs for `kimi_delta`."""

from __future__ import annotations

import functools

from interlace.ops.core import cases
from interlace.ops.core.cases import Case, Operator, recurrence_case, recurrence_probe
from interlace.ops.kimi_delta import dispatch

kimi_delta_case = functools.partial(recurrence_case, "kimi_delta")
probe = functools.partial(recurrence_probe, "kimi_delta")
step_probe = functools.partial(cases.step_probe, "kimi_delta")


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(128, 128), step_probe(128, 128)]


OPERATOR = Operator("kimi_delta", dispatch, kimi_delta_case, mixes=True, probes=probes)
