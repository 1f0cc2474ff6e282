"""Test cases of operators: nasty inputs, and how far a backend may be from the float64 truth on them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interlace.base.segments import Segments
from interlace.ops.core.backends import Backend

# Relative error of values and gradients against float64. float32: the recurrence is a product of up to a few hundred
# factors of norm 1, each rounded at 6e-8, and nearly parallel keys amplify what is lost by up to 1e2. bfloat16: inputs
# and outputs are rounded at 4e-3, the arithmetic is float32.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 2e-2}
LENGTHS = {
    "one token": [1],
    "many single tokens": [1] * 9,
    "a chunk exactly": [64],
    "not a multiple of a chunk": [137],
    "equal": [70, 70, 70],
    "ragged": [3, 1, 64, 100, 7, 1, 90],
}


@dataclass(frozen=True)
class Case:
    """One operator on one set of inputs.

    Attributes:
        operator: its name.
        label: what is nasty here.
        tensors: float64 inputs by argument name, the state's included; all take part in the gradient check.
        call: (backend, tensors) to the list of outputs that are compared.
        shared: names of the tensors that are not one row to a token: weights, and a state.
        truth: the backend that defines the operator.
        differentiable: whether gradients of the outputs are compared too.
        options: what the operator is told beside tensors and segments.
        known: by dtype, what `truth` gives; filled when first asked for, since every variant is compared with it.
    """

    operator: str
    label: str
    tensors: dict[str, Tensor]
    call: Callable[[str, dict[str, Tensor]], list[Tensor]]
    shared: tuple[str, ...] = ("state",)
    truth: str = "recurrent"
    differentiable: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    known: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Operator:
    """An operator as the laws and `interlace doctor` see it: its folder's cases.py holds one.

    Attributes:
        name: the name of the public function.
        dispatch: the module that holds it, and its table BACKENDS.
        build: (lengths, label, whether with a state or whatever else the operator can be given) to a case.
        mixes: whether it carries something from token to token.
        probes: makes cases of the sizes that models have, for kernels that are compiled for sizes.
    """

    name: str
    dispatch: ModuleType
    build: Callable[[list[int], str, bool], Case]
    mixes: bool = False
    probes: Callable[[], list[Case]] = list

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Return the operator's table of backends."""
        table: tuple[Backend, ...] = self.dispatch.BACKENDS
        return table


def recurrence_case(
    operator: str,
    lengths: list[int],
    label: str,
    with_state: bool,
    seed: int = 0,
    shape: tuple[int, int, int, int] = (2, 4, 12, 20),
) -> Case:
    """Make a case: H != G, K != V; keys nearly parallel; beta at 0, 1, 2 and between; log_decay at 0, -30 and between.

    With a state, queries and keys are of any length and the operator normalises them, if it is a delta rule.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def pick(values: list[float], *shape: int) -> Tensor:
        index = torch.randint(len(values) + 1, shape, generator=draw)
        between = torch.rand(*shape, generator=draw, dtype=torch.float64) * (values[-1] - values[0]) + values[0]
        return torch.cat((torch.tensor(values, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))[index].where(
            index < len(values), between
        )

    T, (H, G, K, V) = sum(lengths), shape
    parallel = normalize(normal(1, H, K), dim=-1)
    key = normalize(parallel + 0.1 * normal(T, H, K), dim=-1)
    run = _public(operator)
    declared = inspect.signature(run).parameters  # a rule says by its signature what it takes
    gate = (T, G, K) if "total G K" in str(declared["log_decay"].annotation) else (T, G)
    strength = list(declared)[4]
    options = {"normalise": with_state} if "normalise" in declared else {}
    weak = torch.randint(2, gate, generator=draw).double()  # half of them hardly decay
    tensors = {
        "query": normalize(normal(T, H, K), dim=-1),
        "key": key.where(torch.randint(2, (T, 1, 1), generator=draw) > 0, normalize(normal(T, H, K), dim=-1)),
        "value": normal(T, G, V),
        "log_decay": pick([-30.0, 0.0], *gate) * (1 - weak) - 0.05 * weak * normal(*gate).abs(),
        strength: pick([0.0, 1.0, 2.0], T, G),
    }
    if with_state:
        tensors["state"] = normal(len(lengths), G, K, V)
        tensors["query"] = tensors["query"] * normal(T, H, 1).exp()
        tensors["key"] = tensors["key"] * normal(T, H, 1).exp()
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return list(run(**x, segments=segments, **options, backend=backend))

    return Case(operator, label, tensors, call, options=options)


def recurrence_probe(operator: str, key_dim: int, value_dim: int) -> Case:
    """Make the case that a GPU's kernels are checked with: long enough for two borders at which a sequence is cut.

    Kernels are compiled anew for calls without a state, as training makes them, and for those without gradients, so
    the first two sequences are taken so too.
    """
    case = recurrence_case(operator, [1, 70, 1100], "probe", True, shape=(1, 2, key_dim, value_dim))
    run, segments = _public(operator), Segments.from_lengths([1, 70])

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        short = {name: y[: 2 if name == "state" else 71] for name, y in x.items()}
        how = {"segments": segments, **case.options, "backend": backend}
        with torch.no_grad():
            seen = run(**short, **how)
        del short["state"]
        return [*case.call(backend, x), run(**short, **how)[0], *seen]

    return Case(operator, "probe", case.tensors, call)


def _public(operator: str) -> Callable[..., tuple[Tensor, Tensor]]:
    run: Callable[..., tuple[Tensor, Tensor]] = getattr(
        importlib.import_module(f"interlace.ops.{operator}.dispatch"), operator
    )
    return run


def step_probe(operator: str, key_dim: int, value_dim: int) -> Case:
    """Make the case that a GPU's kernel of one token is checked with."""
    case = recurrence_case(operator, [1] * 3, "step", True, shape=(2, 4, key_dim, value_dim))
    run, segments = _public(operator), Segments.equal(3, 1)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(run(**x, segments=segments, **case.options, backend=backend))

    return Case(operator, "step", case.tensors, call, differentiable=False)


def relative(value: Tensor, truth: Tensor) -> float:
    """Return ||value - truth|| / ||truth||; NaN stays NaN."""
    difference = (value.double().cpu() - truth.cpu()).norm()
    return float(difference / truth.norm().cpu().clamp(min=1e-30))


def given_dtype(operator: str, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which an argument is given when the model's is `dtype`: states and decays stay wide."""
    wide = name in ("log_decay", "A", "step", "A_log", "dt_bias") or (
        name == "state" and operator != "short_convolution"
    )
    return torch.promote_types(dtype, torch.float32) if wide else dtype


def outputs_and_gradients(
    case: Case, backend: str, dtype: torch.dtype, run_in: torch.dtype, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Return a backend's outputs for inputs rounded to `dtype`, run in `run_in`, and the gradients of a random sum."""
    inputs: dict[str, Tensor] = {}
    for name, x in case.tensors.items():
        rounded = x.to(given_dtype(case.operator, name, dtype))
        inputs[name] = rounded.to(device, given_dtype(case.operator, name, run_in)).requires_grad_()
    outputs = case.call(backend, inputs)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=draw, dtype=torch.float64) for y in outputs]
    if not case.differentiable:
        return [y.detach() for y in outputs], []
    parts = [(y.double().cpu() * w).sum() for y, w in zip(outputs, weights, strict=True)]
    gradients = torch.autograd.grad(torch.stack(parts).sum(), list(inputs.values()))
    return [y.detach() for y in outputs], list(gradients)


def measured(case: Case, backend: str, dtype: torch.dtype, device: str) -> tuple[float, float | None]:
    """Return the worst relative error of a backend's values, and of its gradients if the case has any."""
    if dtype not in case.known:
        case.known[dtype] = outputs_and_gradients(case, case.truth, dtype, torch.float64, "cpu")
    found = outputs_and_gradients(case, backend, dtype, dtype, device)
    values, gradients = (
        [relative(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(found, case.known[dtype], strict=True)
    )
    return max(values, key=worse), max(gradients, key=worse) if gradients else None


def worse(error: float | None) -> tuple[bool, float]:
    """Return a sort key by which NaN is the largest error, and no error the smallest."""
    return (False, -1.0) if error is None else (error != error, error)
