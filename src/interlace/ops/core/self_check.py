"""Before a Triton kernel's answer is handed out, it is compared once with the recurrence on the GPU it runs on.

Triton 3.4 to 3.7.0 compiles some kernels for Hopper wrongly, without a word (fla-org/flash-linear-attention#640, #984).
So the first call of an operator with a dtype and a size of head takes a small nasty input first, values and gradients.
The verdict is kept on disk. A kernel that fails, or that Triton cannot compile, is passed over by "auto", once with a
message; whoever names it gets the reason as an error. INTERLACE_SELF_CHECK=off leaves the check out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from interlace.base.errors import Failure
from interlace.base.files import write_file
from interlace.base.package import VERSION
from interlace.ops.core.cases import TOLERANCE, Case, measured

VARIABLE = "INTERLACE_SELF_CHECK"
GOOD = "good"


class Probe(NamedTuple):
    """What is checked.

    Attributes:
        operator: its name.
        dtype: of the tensors.
        sizes: all that selects a kernel beside the dtype: the sizes of a head, or of a window.
        build: makes the case.
        backend: what the case calls.
    """

    operator: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    build: Callable[[], Case]
    backend: str = "triton"


_suspended = threading.local()
_verdicts: dict[str, str] = {}
_running: dict[str, int] = {}  # which thread checks what: it alone may call the kernel meanwhile


def file() -> Path:
    """Return where verdicts are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "interlace" / "self_check.json"


def objection(probe: Probe, device: torch.device) -> str | None:
    """Return why a kernel must not serve on this device, or None; checks it if nobody has.

    Nothing is checked while a CUDA graph is captured: the warm-up before it has done so.

    Raises:
        Failure: the kernel left the GPU unusable for this process.
    """
    if os.environ.get(VARIABLE) == "off" or getattr(_suspended, "now", False):
        return None
    key = f"{probe.operator} {probe.sizes} {str(probe.dtype).removeprefix('torch.')} on {_machine(device)}"
    if key not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        _verdicts.update({k: v for k, v in _read().items() if k not in _verdicts})
    if key in _running:
        return None if _running[key] == threading.get_ident() else "another thread is checking it"
    if key not in _verdicts:
        _running[key] = threading.get_ident()
        try:
            _verdicts[key] = _examine(probe, device)
        finally:
            del _running[key]
        _write()
        _check_usable(probe, device, _verdicts[key])
    verdict = _verdicts[key]
    return None if verdict == GOOD else verdict


def _check_usable(probe: Probe, device: torch.device, verdict: str) -> None:
    """Raise Failure if a kernel left the GPU unusable for this process."""
    if device.type == "cuda" and verdict != GOOD:
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise Failure(
                f"{probe.operator}: its kernel broke this process's use of the GPU when it was checked ({verdict}); "
                "start again: the kernel will be passed over"
            ) from error


@contextmanager
def suspended() -> Iterator[None]:
    """Leave the check out inside the block, which makes one of its own."""
    _suspended.now = True
    try:
        yield
    finally:
        _suspended.now = False


def _examine(probe: Probe, device: torch.device) -> str:
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            values, gradients = measured(probe.build(), probe.backend, probe.dtype, str(device))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler or the driver raises is the reason
            lines = str(error).strip().splitlines() or [""]
            return f"on this GPU it does not run: {type(error).__name__}: {lines[0]:.200}"
    allowed = TOLERANCE[probe.dtype]
    if values <= allowed and (gradients is None or gradients <= allowed):
        return GOOD
    also = "" if gradients is None else f", gradients by {gradients:.1e}"
    return f"its self-check on this GPU failed: values are off by {values:.1e}{also}, {allowed:.0e} is allowed"


@functools.cache
def _machine(device: torch.device) -> str:
    """Return what a verdict depends on beside the call: the GPU, the compiler and the kernels."""
    import triton

    if device.type != "cuda":
        return f"{device.type}, Triton {triton.__version__}, interlace {VERSION} {_sources()}"
    properties = torch.cuda.get_device_properties(device)
    name = f"{properties.name} ({properties.major}.{properties.minor})"
    return f"{name}, Triton {triton.__version__}, torch {torch.__version__}, interlace {VERSION} {_sources()}"


@functools.cache
def _sources() -> str:
    """Return a digest of the kernels' sources."""
    digest = hashlib.sha256()
    for source in sorted((*Path(__file__).parents[1].glob("*/triton*.py"), *Path(__file__).parent.glob("*.py"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _read() -> dict[str, str]:
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(key): str(verdict) for key, verdict in pairs}


def _write() -> None:
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        write_file(file(), json.dumps({**_read(), **_verdicts}, indent=1, sort_keys=True) + "\n")
    except Exception:
        pass
