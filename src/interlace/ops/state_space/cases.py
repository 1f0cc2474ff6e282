"""Nasty inputs for `state_space`."""

from __future__ import annotations

import functools

from interlace.ops.core import cases
from interlace.ops.core.cases import Case, Operator, recurrence_case, recurrence_probe
from interlace.ops.state_space import dispatch

state_space_case = functools.partial(recurrence_case, "state_space")
probe = functools.partial(recurrence_probe, "state_space")
step_probe = functools.partial(cases.step_probe, "state_space")


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(128, 64), step_probe(128, 64)]


OPERATOR = Operator("state_space", dispatch, state_space_case, mixes=True, probes=probes)
