"""Nasty inputs for `gated_delta`."""

from __future__ import annotations

import functools

from interlace.ops.core.cases import Operator, recurrence_case, recurrence_probe
from interlace.ops.gated_delta import dispatch

gated_delta_case = functools.partial(recurrence_case, "gated_delta")
probe = functools.partial(recurrence_probe, "gated_delta")

OPERATOR = Operator("gated_delta", dispatch, gated_delta_case, mixes=True)
