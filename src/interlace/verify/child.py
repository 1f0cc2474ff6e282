"""The worker that checks numbers, patterns and schemas, any of which may take long."""

from __future__ import annotations

import re
from typing import Any

import jsonschema  # noqa: F401 - before the worker says that it is ready

from interlace.verify.numbers import same_number
from interlace.verify.structure import fitting


def answer(request: dict[str, Any]) -> Any:
    """Return [right, why not] for numbers or a pattern; [value, what is wrong] for JSON."""
    if request["do"] == "number":
        return list(same_number(request["answer"], request["gold"], request["tolerance"]))
    if request["do"] == "pattern":
        found = re.search(request["pattern"], request["text"], re.DOTALL)
        return [found is not None, "" if found else "the pattern is not found"]
    return list(fitting(request["text"], request["schema"]))
