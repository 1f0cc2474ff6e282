"""The child process of `interlace.sandbox.worker`: read a request, answer it, and start over."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from typing import Any


def main(module: str, memory_bytes: int) -> None:
    """Answer requests with `module.answer` until the input ends."""
    answer = importlib.import_module(module).answer
    pipe_in, pipe_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # what the work prints must not be taken for an answer
    _limit_memory(memory_bytes)
    pipe_out.write(b"!")
    pipe_out.flush()
    while len(size := pipe_in.read(8)) == 8:
        raw = pipe_in.read(int.from_bytes(size, "big"))
        try:
            reply: dict[str, Any] = {"answer": answer(json.loads(raw))}
            raw = json.dumps(reply).encode()
        except MemoryError:
            raw = b'{"memory": true}'
        except ValueError as error:
            raw = json.dumps({"refused": str(error)}).encode()
        except Exception as error:
            raw = json.dumps({"refused": f"{type(error).__name__}: {error}"}).encode()
        pipe_out.write(len(raw).to_bytes(8, "big") + raw)
        pipe_out.flush()


def _limit_memory(memory_bytes: int) -> None:
    """Limit the memory beyond what the import took; on systems without such a limit, only time is limited."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        print(f"interlace: memory of a worker is not limited here: {error}", file=sys.stderr)
