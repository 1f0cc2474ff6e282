"""Find devices by name, and check dtypes, before anything is built on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from interlace.base.errors import ConfigError
from interlace.ops.core import kernels
from interlace.runs.machine import machine

KINDS = ("cpu", "cuda", "mps", "xpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of weights


DRAWN_BY = {"normal_", "uniform_", "kaiming_uniform_"}  # of torch.nn.init, as nn.Linear and nn.Embedding are


class Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: on the meta device they hold nothing, and torch imports its compiler to draw it.

    That import takes two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, or return the tensor that it would draw."""
        if getattr(func, "__name__", "") in DRAWN_BY:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            return tensor
        return func(*args, **(kwargs or {}))


def resolve_device(device: Any) -> torch.device:
    """Return the device that a name means; None means the CPU, "meta" tensors without storage.

    Raises:
        ConfigError: it is no device's name, or there is no such device here.
    """
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device: {device!r} is no device; here there is: {', '.join(here())}") from None
    if found.type == "meta":
        return found
    number = found.index or 0
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if found.type == "xpu":
        count["xpu"] = torch.xpu.device_count()
    if found.type == "cuda" and number >= count["cuda"]:
        raise ConfigError(f"device: {device!r} is not here: {_cuda()}; here there is: {', '.join(here())}")
    if found.type not in KINDS or number >= count.get(found.type, 0):
        raise ConfigError(f"device: {device!r} is not here; here there is: {', '.join(here())}")
    return found


def _cuda() -> str:
    """Return what torch sees of CUDA: its own version, what it was built for, and how many devices."""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if torch.version.hip:
        built = f"built for ROCm {torch.version.hip}"
    count = torch.cuda.device_count()
    return f"torch {torch.__version__} is {built} and sees {count} CUDA device{'' if count == 1 else 's'}"


def check_dtype(dtype: Any) -> None:
    """Check the dtype that weights should get; None keeps the one they have.

    Raises:
        ConfigError: it is no dtype that a model computes in.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype: must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")


def check_device(name: str) -> None:
    """Check the name of a device that work is to be done on.

    Raises:
        ConfigError: as `resolve_device`; also for "meta", on which nothing is computed.
    """
    if name != name.strip() or not name or resolve_device(name).type == "meta":
        raise ConfigError(f"device: {name!r} is no device to work on; here there is: {', '.join(here())}")


def here() -> list[str]:
    """Return the names of the devices of this machine."""
    names = ["cpu"]
    names += ["cuda" if i == 0 else f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names + (["xpu"] if torch.xpu.is_available() else [])


def facts(device: str) -> dict[str, Any]:
    """Return facts on the machine that a run is trained on: system, processor, memory, device, threads, kernels."""
    active = kernels.active() if kernels.available() else f"none: {kernels.missing}"
    found = {**machine(), "device": device, "threads": torch.get_num_threads(), "native_kernels": active}
    if (place := torch.device(device)).type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        found |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return found
