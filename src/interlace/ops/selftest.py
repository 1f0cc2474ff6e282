"""Run nasty inputs through every operator, and measure how far each backend is from the float64 recurrence on them.

The laws and `interlace doctor` both run this, so what is tested on our machines is what is checked on yours.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from interlace.ops.core import kernels, self_check
from interlace.ops.core.cases import LENGTHS, TOLERANCE, Case, Operator, measured, worse
from interlace.runs.progress import Progress, Watch, silent


def _operators() -> dict[str, Operator]:
    """Return the operators whose folder holds a cases.py, by name."""
    folders = [
        f"interlace.ops.{found.name}" for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.ispkg
    ]
    with_cases = [f"{name}.cases" for name in folders if name != "interlace.ops.core"]
    found: list[Operator] = [importlib.import_module(name).OPERATOR for name in with_cases]
    return {operator.name: operator for operator in found}


OPERATORS = _operators()
MIXERS = tuple(operator.name for operator in OPERATORS.values() if operator.mixes)


@dataclass(frozen=True)
class Finding:
    """The error of one backend: of values, and of gradients (None where it has none), worst over its cases.

    Attributes:
        seconds: of its first call, kernels compiled; small where nothing is compiled.
        failure: why it could not run at all, or "".
    """

    operator: str
    backend: str
    dtype: str
    values: float
    gradients: float | None
    tolerance: float
    seconds: float = 0.0
    failure: str = ""

    @property
    def good(self) -> bool:
        """Whether both errors are within the tolerance (NaN is not)."""
        return self.values <= self.tolerance and (self.gradients is None or self.gradients <= self.tolerance)


@dataclass(frozen=True)
class Variant:
    """A backend that this build contains; of the native one, a variant for each instruction set of this processor."""

    backend: str
    instruction_set: str = ""

    def __str__(self) -> str:
        """Return the name that tables show."""
        return f"{self.backend} {self.instruction_set}".strip()

    def serves(self, dtype: torch.dtype) -> bool:
        """Return whether it takes this dtype at all."""
        if self.backend == "varlen":
            return dtype == torch.bfloat16
        return self.backend not in ("native", "triton", "fla") or dtype in kernels.DTYPES


def variants(operator: str, device: str = "cpu") -> list[Variant]:
    """Return all variants that can run this operator on a device of this machine."""
    found, kind = [], torch.device(device).type
    serving = [b for b in OPERATORS[operator].backends if not b.devices or kind in b.devices]
    for backend in (b for b in serving if b.loaded[0] is not None):
        sets = kernels.instruction_sets() if backend.name == "native" else [""]
        found += [Variant(backend.name, name) for name in sets]
    return found


def cases(operator: str) -> list[Case]:
    """Yield every length pattern, with and without a state (for attention: a window)."""
    build = OPERATORS[operator].build
    return [build(n, f"{label}{', state' * on}", on) for label, n in LENGTHS.items() for on in (False, True)]


def errors(case: Case, variant: Variant, dtype: torch.dtype, device: str = "cpu") -> tuple[float, float | None]:
    """Return the worst relative error of a variant's values, and of its gradients if the case has any."""
    with kernels.using(variant.instruction_set) if variant.instruction_set else nullcontext():
        return measured(case, variant.backend, dtype, device)


def check(device: str = "cpu", watch: Watch = silent) -> list[Finding]:
    """Run every backend of every operator against the float64 recurrence on this machine.

    Kernels for a GPU also take a case of the sizes that models have, and run on a GPU alone.
    """
    found: list[Finding] = []
    kind = device.partition(":")[0]
    for operator in OPERATORS.values():
        given = cases(operator.name)
        for variant in variants(operator.name, kind):
            if variant.backend == "triton" and kind == "cpu":  # in the interpreter: for tests
                continue
            more = operator.probes() if variant.backend == "triton" else []
            for dtype in (torch.float32,) if variant.backend in ("recurrent", "plain") else tuple(TOLERANCE):
                if not variant.serves(dtype) or (kind == "mps" and dtype == torch.float64):
                    continue
                name = str(dtype).removeprefix("torch.")
                watch(Progress("checking operators", len(found), 0, detail=f"{operator.name} {variant} {name}"))
                found.append(_finding(operator.name, variant, dtype, device, [*more, *given]))
    return found


def _finding(operator: str, variant: Variant, dtype: torch.dtype, device: str, given: list[Case]) -> Finding:
    name, allowed = str(dtype).removeprefix("torch."), TOLERANCE[dtype]
    seconds, both = 0.0, []
    try:
        with self_check.suspended():
            for case in given:
                start = time.perf_counter()
                both.append(errors(case, variant, dtype, device))
                seconds = seconds or time.perf_counter() - start
    except Exception as error:  # the next backend may be good all the same
        if variant.backend not in ("triton", "fla", "varlen"):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first:.300}"
        return Finding(operator, str(variant), name, float("nan"), None, allowed, seconds, reason)
    values, gradients = (max(x, key=worse) for x in zip(*both, strict=True))
    assert values is not None
    return Finding(operator, str(variant), name, values, gradients, allowed, seconds)
