"""Triton kernels: whether this process can run them, how one is launched, and the row "triton" of an operator's table.

With TRITON_INTERPRET=1 in the environment before Python starts, Triton's interpreter runs the kernels on CPU tensors:
slowly, and with the values of a GPU in float32. The tests do so.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import BackendUnavailable
from interlace.ops.core import kernels, self_check
from interlace.ops.core.backends import Backend, constant_when_traced
from interlace.ops.core.cases import Case
from interlace.ops.core.self_check import Probe

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CHECKED = ("cuda", "xpu")  # the types of device on which a kernel is checked before its first answer
LARGEST_HEAD = 256  # of key_dim and value_dim
MOST_TAPS = 4  # of a short convolution


@functools.cache
def missing() -> str:
    """Return why this process cannot run Triton kernels; empty if it can."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install triton"
    if INTERPRETED:
        return ""
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever a driver raises is the reason
        return f"Triton {triton.__version__} has no driver for a GPU here ({type(error).__name__}: {error})"
    return ""


def backend(
    operator: str,
    refuses: Callable[..., str | None],
    selects: Callable[..., tuple[torch.dtype, tuple[int, ...]]],
    part: str = "",
    when: Callable[..., bool] = lambda *_: True,
    probed: Callable[..., str] | None = None,
) -> Backend:
    """Return the row "triton"; "auto" takes it on NVIDIA's GPUs, and on others a user may name it.

    Args:
        operator: names the folder. Its triton.py holds `run`; its cases.py holds `probe`, which makes a case of sizes.
        part: of the operator, as "step": then they are named `step` and `step_probe`.
        when: of which arguments "auto" considers it at all.
        refuses: given the call's arguments, why the kernels cannot serve them, or None.
        selects: given the call's arguments, the dtype and the sizes that select a kernel; each is checked once.
        probed: given the call's arguments, which part of the operator serves them; `part` if None.
    """

    def loaded() -> Callable[..., Any]:
        if reason := missing():
            raise BackendUnavailable(reason)
        run: Callable[..., Any] = getattr(import_module(f"interlace.ops.{operator}.triton"), part or "run")
        return run

    def wanted(*arguments: Any) -> bool:
        return arguments[0].device.type == "cuda" and torch.version.hip is None and when(*arguments)

    def unfit(*arguments: Any) -> str | None:
        device = arguments[0].device
        if (reason := refuses(*arguments)) or device.type not in CHECKED:
            return reason
        dtype, sizes = selects(*arguments)
        return checked(operator, probed(*arguments) if probed else part, dtype, sizes, device)

    devices = ("cuda", "xpu", "cpu") if INTERPRETED else ("cuda", "xpu")
    return Backend("triton", loaded, devices, unfit, when=wanted)


@constant_when_traced
def checked(operator: str, part: str, dtype: torch.dtype, sizes: tuple[int, ...], device: torch.device) -> str | None:
    """Return why kernels must not serve, or None; torch.compile calls this, and traces none of it."""
    probe = Probe(f"{operator} {part}".strip(), dtype, sizes, partial(_case, operator, part, *sizes))
    return self_check.objection(probe, device)


def _case(operator: str, part: str, *sizes: int) -> Case:
    probe = f"{part}_probe" if part else "probe"
    case: Case = getattr(import_module(f"interlace.ops.{operator}.cases"), probe)(*sizes)
    return case


def rows(x: Tensor) -> Tensor:
    """Return x [total, ...] with each row contiguous; rows may lie apart, but 64 of them within 32 bits."""
    return kernels.rows(x) if x.stride(0) < 1 << 24 or x.shape[0] == 1 else x.contiguous()


def power(n: int) -> int:
    """Return the smallest power of two that is at least n, and at least 16, as products want it."""
    return max(16, 1 << max(n - 1, 0).bit_length())


def architecture(device: torch.device) -> int:
    """Return the compute capability, as 90 for Hopper; the interpreter runs what Hopper would."""
    if _thread.captured is not None:
        return _thread.captured.architecture
    if device.type != "cuda" or torch.version.hip is not None:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def processors(device: torch.device) -> int:
    """Return how many multiprocessors the GPU has; few for the interpreter, whose programs run one after the other."""
    if _thread.captured is not None or device.type == "cpu":
        return 2
    if device.type != "cuda":
        return 64
    return torch.cuda.get_device_properties(device).multi_processor_count


@dataclass(frozen=True)
class Launch:
    """One launch, as it was asked for: enough to compile its kernel for any architecture."""

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int


class Capture:
    """The launches of a block, which compute nothing.

    Attributes:
        architecture: the compute capability that the configurations are chosen for.
        launches: in order.
    """

    def __init__(self, architecture: int) -> None:
        """Begin with no launches."""
        self.architecture = architecture
        self.launches: list[Launch] = []


class _Thread(threading.local):
    captured: Capture | None = None


_thread = _Thread()


@contextmanager
def capturing(architecture: int) -> Iterator[Capture]:
    """Collect the launches made inside the block, for this architecture, in place of running them."""
    _thread.captured = capture = Capture(architecture)
    try:
        yield capture
    finally:
        _thread.captured = None


def launch(
    kernel: Any, programs: int, arguments: Sequence[Any], constants: dict[str, Any], warps: int, stages: int = 2
) -> None:
    """Run a kernel as `programs` programs on one axis, which counts to 2^31; none where there is nothing to do.

    Args:
        kernel: what `triton.jit` made.
        arguments: tensors and numbers, in the kernel's order; None for a tensor that its constants leave out.
        constants: its `tl.constexpr` parameters.
        warps, stages: how Triton schedules it.
    """
    names = kernel.arg_names
    if _thread.captured is not None:
        given = dict(zip(names, arguments, strict=False))
        _thread.captured.launches.append(Launch(kernel, given, constants, warps, stages))
        return
    if programs == 0:
        return
    first = next(x for x in arguments if isinstance(x, Tensor))
    with torch.cuda.device(first.device) if first.device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **constants, num_warps=warps, num_stages=stages)
