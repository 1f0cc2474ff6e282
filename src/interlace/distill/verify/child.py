"""What runs in a worker: patterns and schemas, any of which may take for ever."""

from __future__ import annotations

import re
from typing import Any

import jsonschema  # noqa: F401 - before the worker says that it is ready

from interlace.distill.verify.structure import fitting


def answer(request: dict[str, Any]) -> Any:
    """[right, why not] of a pattern; [value, what is wrong] of JSON."""
    if request["do"] == "pattern":
        found = re.search(request["pattern"], request["text"], re.DOTALL)
        return [found is not None, "" if found else "the pattern is not found"]
    return list(fitting(request["text"], request["schema"]))
