"""The families, in the order in which saving tries them: the first that can express a model takes it."""

from __future__ import annotations

from interlace.checkpoint import native, olmo3, olmo_hybrid
from interlace.checkpoint.family import Family

FAMILIES: tuple[Family, ...] = (olmo_hybrid.FAMILY, olmo3.FAMILY, native.FAMILY)
