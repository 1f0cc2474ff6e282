"""Find the code in an answer."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^\s*(```+|~~~+)[ \t]*([\w+-]*)")
_PYTHON = ("python", "py", "python3")


def code_of(answer: str) -> str:
    """Return the Python code of an answer.

    These are the fenced blocks marked as Python; if there are none, the blocks without a language; if there is no block
    at all, the whole answer; else "". Interactive sessions (">>> ") are left out. The last block may be open, as in an
    answer that ends inside it.
    """
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in answer.split("\n"):
        line = line.removesuffix("\r")
        mark = _FENCE.match(line)
        if mark and (not fence or (mark[1].startswith(fence) and not mark[2])):
            if not fence:
                blocks.append((mark[2].lower(), []))
            fence = "" if fence else mark[1]
        elif fence:
            blocks[-1][1].append(line)
    for languages in (_PYTHON, ("",)):
        found = [b for language, b in blocks if language in languages and not any(x.startswith(">>> ") for x in b)]
        if found:
            return "\n\n".join("\n".join(b) for b in found)
    return "" if blocks else answer
