"""The compiled CPU kernels of `src/native/`: whether they are here, for which instruction set, and what they accept.

The environment variable INTERLACE_NATIVE names an instruction set to force ("avx512bf16", "avx512", "avx2", "neon",
"portable"), or is "off" for pure PyTorch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import BackendUnavailable, ConfigError, nearest
from interlace.base.package import folders
from interlace.ops.core.backends import Backend
from interlace.ops.core.quantised import Quantised

VARIABLE = "INTERLACE_NATIVE"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
DEVICES = ("cpu", "meta")  # on the meta device, shapes and what autograd keeps, as on the CPU
NONE = 0  # the address of an absent tensor


def _find() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or the reason why there is none."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        return None, f"{VARIABLE}=off"
    try:
        # after torch, whose OpenMP runtime must be the one that both use
        _native = import_module("interlace._native")
    except ImportError as error:
        notes = [folder / "_native_missing.txt" for folder in folders()]
        reasons = [note.read_text(encoding="utf-8").strip() for note in notes if note.is_file()]
        return None, reasons[0] if reasons else str(error)
    if wanted:
        known = _native.instruction_sets()
        if wanted not in known:
            raise ConfigError(
                f"{VARIABLE}: '{wanted}' is not an instruction set of this processor and build; "
                f"{nearest(wanted, ['off', *known])}"
            )
        _native.use(wanted)
    return _native, ""


_module, missing = _find()


def available() -> bool:
    """Return whether this process has the kernels; `missing` says why not."""
    return _module is not None


def module() -> Any:
    """Return the compiled module, or what captures its calls; call it only if `available`."""
    assert _module is not None, missing
    return _thread.recording or _module


def instruction_sets() -> list[str]:
    """Return what this processor and build can run, the widest first; empty without kernels."""
    return _module.instruction_sets() if _module else []


def active() -> str:
    """Return the instruction set in use, or "none"."""
    return _module.active() if _module else "none"


def shares_torch_threads() -> bool:
    """Return whether the kernels run on torch's own pool of threads; two pools would wait for each other to sleep."""
    return _module is not None and _module.threads_of_torch() == torch.get_num_threads()


def keep_memory() -> None:
    """Keep freed memory in this process: a training step then reuses its pages, which the system need not clear again.

    Resident memory stays at its peak. Without kernels, or with another malloc than glibc's, nothing happens.
    """
    if _module is not None:
        _module.keep_memory()


def return_memory() -> None:
    """Give freed memory back to the system, in a process that runs for long and holds states of many sizes.

    Else what is freed between states that live on is kept, and resident memory grows past what is in use. Without
    kernels, or with another malloc than glibc's, nothing happens.
    """
    if _module is not None:
        _module.return_memory()


@contextmanager
def using(instruction_set: str) -> Iterator[None]:
    """Run the kernels of this instruction set inside the block."""
    assert _module is not None, missing
    before = active()
    _module.use(instruction_set)
    try:
        yield
    finally:
        _module.use(before)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Run the kernels on no more threads than this inside the block, in this process."""
    assert _module is not None, missing
    before = _module.most_threads()
    _module.use_at_most(threads)
    try:
        yield
    finally:
        _module.use_at_most(before)


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Return whether autograd will go back through a call on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def wants_graph(*tensors: Tensor | None) -> bool:
    """Whether a call must go through torch's dispatcher: for autograd, for torch.compile, or for shapes alone.

    Else the kernel is called at once, which saves tens of microseconds.
    """
    if torch.compiler.is_compiling() or any(x is not None and x.device.type == "meta" for x in tensors):
        return True
    return wants_gradients(*tensors)


def refuses(*tensors: Tensor | None) -> str | None:
    """Return why the kernels cannot serve these tensors, or None."""
    for x in tensors:
        if x is not None and x.dtype not in DTYPES:
            return f"the kernels take float32 and bfloat16, not {str(x.dtype).removeprefix('torch.')}"
    devices = {x.device for x in tensors if x is not None}
    return f"the tensors lie on {' and '.join(sorted(map(str, devices)))}" if len(devices) > 1 else None


def backend(
    load: Callable[[], Callable[..., Any]],
    refuses: Callable[..., str | None] = refuses,
    devices: tuple[str, ...] = DEVICES,
    **how: Any,
) -> Backend:
    """Return the row "native" of an operator's table; `how` holds other fields of `Backend`."""

    def loaded() -> Callable[..., Any]:
        if not available():
            raise BackendUnavailable(missing)
        return load()

    return Backend("native", loaded, devices, refuses, **how)


def address(x: Tensor | None) -> int:
    """Return where a tensor's first element lies; NONE for None."""
    if x is None:
        return NONE
    if _thread.recording is not None:
        _thread.recording.kept.append(x.detach())  # its memory, whatever becomes of the parameter
    return x.data_ptr()


def quantised(weight: Quantised) -> tuple[list[int], list[int]]:
    """Return where the parts of a weight of few bits lie, and its bits and the inputs of a group."""
    return [address(weight.words), address(weight.scales), address(weight.minima)], list(weight.rounding)


class Recording:
    """Calls that were captured, to be repeated at the same addresses: nothing is allocated or looked up.

    Attributes:
        calls: the functions and their arguments, in order.
        kept: the tensors that kernels point into.
    """

    def __init__(self) -> None:
        """Begin with no calls."""
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []
        self.kept: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        """Return a kernel that is captured and then run."""
        kernel = getattr(_module, name)

        def call(*arguments: Any) -> Any:
            self.calls.append((kernel, arguments))
            return kernel(*arguments)

        return call

    def replay(self) -> None:
        """Repeat the calls."""
        for function, arguments in self.calls:
            function(*arguments)


class _Thread(threading.local):
    recording: Recording | None = None  # what one thread captures is no other's


_thread = _Thread()


@contextmanager
def recording() -> Iterator[Recording]:
    """Capture the kernel calls made inside the block, which run as always."""
    _thread.recording = recording = Recording()
    try:
        yield recording
    finally:
        _thread.recording = None


def owned(state: Tensor) -> bool:
    """Return whether a kernel may write over a state: a step that is captured owns the states that it reads."""
    return _thread.recording is not None and state.dtype == torch.float32 and state.is_contiguous()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Capture no kernel calls inside the block."""
    before, _thread.recording = _thread.recording, None
    try:
        yield
    finally:
        _thread.recording = before


def rows(x: Tensor) -> Tensor:
    """Return x [total, ...] with each row contiguous; rows may lie apart, as in a slice of a wider tensor."""
    if x.is_contiguous():
        return x
    inner = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[1:]), strict=True):
        if size != 1 and stride != inner:
            return x.contiguous()
        inner *= size
    return x


def borders(offsets: Tensor) -> Tensor:
    """Return segment offsets as the kernels read them."""
    return offsets.to(torch.int32).contiguous()


def floats(x: Tensor) -> Tensor:
    """Return x as contiguous float32."""
    return x.to(torch.float32).contiguous()
