"""Nasty inputs for `state_space`."""

from __future__ import annotations

import functools

from interlace.ops.core.cases import Operator, recurrence_case, recurrence_probe
from interlace.ops.state_space import dispatch

state_space_case = functools.partial(recurrence_case, "state_space")
probe = functools.partial(recurrence_probe, "state_space")

OPERATOR = Operator("state_space", dispatch, state_space_case, mixes=True)
