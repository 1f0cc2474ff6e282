"""Nasty inputs for every operator, and how far each backend may be from the float64 recurrence on them.

The laws and `interlace doctor` both run this, so what is tested on our machines is what is checked on yours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interlace.base.segments import Segments
from interlace.ops.attention import dispatch as attention_dispatch
from interlace.ops.core import kernels as native
from interlace.ops.core.backends import Backend
from interlace.ops.cross_entropy import dispatch as cross_entropy_dispatch
from interlace.ops.experts import dispatch as experts_dispatch
from interlace.ops.gated_delta import dispatch as gated_delta_dispatch
from interlace.ops.kimi_delta import dispatch as kimi_delta_dispatch
from interlace.ops.linear import dispatch as linear_dispatch
from interlace.ops.long_convolution import dispatch as long_convolution_dispatch
from interlace.ops.rms_norm import dispatch as rms_norm_dispatch
from interlace.ops.selective_scan import dispatch as selective_scan_dispatch
from interlace.ops.short_convolution import dispatch as short_convolution_dispatch
from interlace.ops.state_space import dispatch as state_space_dispatch
from interlace.ops.swiglu import dispatch as swiglu_dispatch

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
        known: by dtype, what `truth` gives; filled when first asked for, since every variant is compared with it.
    """

    operator: str
    label: str
    tensors: dict[str, Tensor]
    call: Callable[[str, dict[str, Tensor]], list[Tensor]]
    shared: tuple[str, ...] = ("state",)
    truth: str = "recurrent"
    differentiable: bool = True
    known: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Finding:
    """The error of one backend: of values, and of gradients (None where it has none), worst over its cases."""

    operator: str
    backend: str
    dtype: str
    values: float
    gradients: float | None
    tolerance: float

    @property
    def good(self) -> bool:
        """Whether both errors are within the tolerance (NaN is not)."""
        return self.values <= self.tolerance and (self.gradients is None or self.gradients <= self.tolerance)


def recurrence_case(
    operator: str,
    lengths: list[int],
    label: str,
    with_state: bool,
    seed: int = 0,
    shape: tuple[int, int, int, int] = (2, 4, 12, 20),
) -> Case:
    """H != G, K != V; keys nearly parallel; beta at 0, 1, 2 and between; log_decay at 0, -30 and between.

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
    gate = (T, G, K) if operator == "kimi_delta" else (T, G)
    weak = torch.randint(2, gate, generator=draw).double()  # half of them hardly decay
    strength = "step" if operator == "state_space" else "beta"
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
    operators: dict[str, Callable[..., Any]] = {
        "gated_delta": gated_delta_dispatch.gated_delta,
        "kimi_delta": kimi_delta_dispatch.kimi_delta,
        "state_space": state_space_dispatch.state_space,
    }
    run = operators[operator]
    options = {} if operator == "state_space" else {"normalise": with_state}

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return list(run(**x, segments=segments, **options, backend=backend))

    return Case(operator, label, tensors, call)


gated_delta_case = functools.partial(recurrence_case, "gated_delta")
kimi_delta_case = functools.partial(recurrence_case, "kimi_delta")
state_space_case = functools.partial(recurrence_case, "state_space")


def short_convolution_case(
    lengths: list[int], label: str, with_state: bool, seed: int = 0, shape: tuple[int, int] = (13, 4)
) -> Case:
    """An odd number of channels, four taps, segments shorter than the window."""
    draw = torch.Generator().manual_seed(seed)
    T, (D, W) = sum(lengths), shape
    tensors = {
        "x": torch.randn(T, D, generator=draw, dtype=torch.float64),
        "weight": torch.randn(D, W, generator=draw, dtype=torch.float64),
    }
    if with_state:
        tensors["state"] = torch.randn(len(lengths), W - 1, D, generator=draw, dtype=torch.float64)
        tensors["bias"] = torch.randn(D, generator=draw, dtype=torch.float64)
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        operator = short_convolution_dispatch.short_convolution
        return list(operator(**x, segments=segments, backend=backend))  # type: ignore[arg-type]

    return Case("short_convolution", label, tensors, call, shared=("weight", "bias", "state"))


def attention_case(
    lengths: list[int],
    label: str,
    window: int | None,
    seed: int = 0,
    shape: tuple[int, int, int, int] = (4, 2, 12, 20),
) -> Case:
    """Grouped heads, K != V, with and without a window."""
    draw = torch.Generator().manual_seed(seed)
    T, (H, J, K, V) = sum(lengths), shape
    shapes = {"query": (T, H, K), "key": (T, J, K), "value": (T, J, V)}
    tensors = {n: torch.randn(*s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [attention_dispatch.attention(**x, segments=segments, window=window, backend=backend)[0]]  # type: ignore[arg-type]

    return Case("attention", label, tensors, call)


def rms_norm_case(lengths: list[int], label: str, dressed: bool, seed: int = 0) -> Case:
    """An odd width, rows of very different size and one of zeros; dressed: with all operands, in all forms."""
    draw = torch.Generator().manual_seed(seed)
    T, heads, D = sum(lengths), 3, 37
    tensors = {"x": torch.randn(T, heads, D, generator=draw, dtype=torch.float64)}
    tensors["x"] *= torch.randn(T, heads, 1, generator=draw, dtype=torch.float64).mul(3).exp()
    tensors["x"][0, 0] = 0
    tensors["weight"] = torch.randn(D, generator=draw, dtype=torch.float64)
    for name in ("before", "gate", "after") if dressed else ():
        tensors[name] = torch.randn(T, heads, D, generator=draw, dtype=torch.float64)
    if dressed:
        tensors["weights"] = torch.randn(heads, D, generator=draw, dtype=torch.float64)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        if not dressed:
            return [rms_norm_dispatch.rms_norm(x["x"], x["weight"], 1e-5, backend=backend)[0]]
        rest = {n: x[n] for n in ("before", "gate", "after")}
        outputs: list[Tensor] = []
        for weight, first in (("weight", False), ("weights", True)):
            for activation, offset in (("silu", 0.0), ("sigmoid", 1.0)):
                outputs += rms_norm_dispatch.rms_norm(
                    x["x"],
                    x[weight],
                    1e-5,
                    **rest,  # type: ignore[arg-type]
                    offset=offset,
                    activation=activation,
                    gate_first=first,
                    backend=backend,
                )
        return outputs

    return Case("rms_norm", label, tensors, call, truth="plain")


def selective_scan_case(lengths: list[int], label: str, with_state: bool, seed: int = 0) -> Case:
    """Steps at 0, at 3 (where half the state is gone at once) and between; decays at 0 and at -30 to a step."""
    draw = torch.Generator().manual_seed(seed)
    T, D, K = sum(lengths), 9, 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = {"x": normal(T, D), "step": (normal(T, D) * 2).clamp(0, 3), "B": normal(T, K), "C": normal(T, K)}
    tensors["A"] = -normal(D, K).abs()
    tensors["A"][0], tensors["A"][1] = 0, -30
    if with_state:
        tensors["state"] = normal(len(lengths), D, K)
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return list(selective_scan_dispatch.selective_scan(**x, segments=segments, backend=backend))

    return Case("selective_scan", label, tensors, call, shared=("A", "state"))


def long_convolution_case(lengths: list[int], label: str, slow: bool, seed: int = 0) -> Case:
    """More taps than any sequence has tokens; slow: taps that hardly fall, else taps that are soon forgotten."""
    draw = torch.Generator().manual_seed(seed)
    T, D, L = sum(lengths), 7, max(lengths) + 5
    fall = torch.exp(-torch.arange(L, dtype=torch.float64) / (1000 if slow else 3))
    tensors = {
        "x": torch.randn(T, D, generator=draw, dtype=torch.float64),
        "taps": torch.randn(L, D, generator=draw, dtype=torch.float64) * fall[:, None],
    }
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [long_convolution_dispatch.long_convolution(**x, segments=segments, backend=backend)[0]]  # type: ignore[arg-type]

    return Case("long_convolution", label, tensors, call, shared=("taps",))


def experts_case(lengths: list[int], label: str, gated: bool, seed: int = 0) -> Case:
    """One expert that nobody chose, one that all did; gated: SwiGLU, else ReLU squared."""
    draw = torch.Generator().manual_seed(seed)
    rows, D, E, k, inner = sum(lengths), 11, 5, 2, 7

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = {"x": normal(rows, D), "weights": normal(rows, k), "second": normal(E, 9, inner)}
    tensors["first"] = normal(E, 2 * inner if gated else inner, D)
    chosen = torch.stack((torch.ones(rows, dtype=torch.int64), 2 + torch.randint(3, (rows,), generator=draw)), dim=1)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        where = chosen.to(x["x"].device)
        return [experts_dispatch.experts(**x, chosen=where, activation="swiglu" if gated else "relu2", backend=backend)]

    return Case("experts", label, tensors, call, shared=("first", "second"), truth="plain")


def swiglu_case(lengths: list[int], label: str, large: bool, seed: int = 0) -> Case:
    """An odd width; large: values whose exponentials overflow."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), 74, generator=draw, dtype=torch.float64) * (60 if large else 1)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [swiglu_dispatch.swiglu(**x, backend=backend)]

    return Case("swiglu", label, {"gate_up": x}, call, truth="plain")


def cross_entropy_case(lengths: list[int], label: str, large: bool, seed: int = 0) -> Case:
    """An odd vocabulary, an ignored target; large: logits whose exponentials overflow."""
    draw = torch.Generator().manual_seed(seed)
    rows, D = sum(lengths), 61
    logits = torch.randn(rows, D, generator=draw, dtype=torch.float64) * (100 if large else 1)
    targets = torch.randint(D, (rows,), generator=draw)
    targets[rows // 2] = -100 if rows > 1 else targets[0]

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        d_logits = x["logits"].detach().clone()
        losses = cross_entropy_dispatch.cross_entropy_(
            d_logits, targets.to(d_logits.device), factor=0.5, backend=backend
        )
        return [losses, d_logits]

    return Case("cross_entropy_", label, {"logits": logits}, call, truth="plain", differentiable=False)


def linear_case(lengths: list[int], label: str, residual: bool, seed: int = 0) -> Case:
    """Few rows and many, an odd width, an odd number of outputs."""
    draw = torch.Generator().manual_seed(seed)
    rows, D, outputs = sum(lengths), 83, 71
    tensors = {"x": torch.randn(rows, D, generator=draw, dtype=torch.float64)}
    tensors["weight"] = torch.randn(outputs, D, generator=draw, dtype=torch.float64) / D**0.5
    if residual:
        tensors["residual"] = torch.randn(rows, outputs, generator=draw, dtype=torch.float64)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [linear_dispatch.linear(**x, backend=backend)]

    return Case("linear", label, tensors, call, truth="plain", differentiable=False)


CASES: dict[str, Callable[[list[int], str, bool], Case]] = {
    "gated_delta": gated_delta_case,
    "kimi_delta": kimi_delta_case,
    "state_space": state_space_case,
    "selective_scan": selective_scan_case,
    "long_convolution": long_convolution_case,
    "short_convolution": short_convolution_case,
    "attention": lambda lengths, label, windowed: attention_case(lengths, label, 5 if windowed else None),
    "rms_norm": rms_norm_case,
    "swiglu": swiglu_case,
    "experts": experts_case,
    "cross_entropy_": cross_entropy_case,
    "linear": linear_case,
}
# Those that carry something from token to token.
MIXERS = (
    "gated_delta",
    "kimi_delta",
    "state_space",
    "selective_scan",
    "long_convolution",
    "short_convolution",
    "attention",
)
_TABLES: dict[str, tuple[Backend, ...]] = {
    "gated_delta": gated_delta_dispatch.BACKENDS,
    "kimi_delta": kimi_delta_dispatch.BACKENDS,
    "state_space": state_space_dispatch.BACKENDS,
    "selective_scan": selective_scan_dispatch.BACKENDS,
    "long_convolution": long_convolution_dispatch.BACKENDS,
    "short_convolution": short_convolution_dispatch.BACKENDS,
    "attention": attention_dispatch.BACKENDS,
    "rms_norm": rms_norm_dispatch.BACKENDS,
    "swiglu": swiglu_dispatch.BACKENDS,
    "experts": experts_dispatch.BACKENDS,
    "cross_entropy_": cross_entropy_dispatch.BACKENDS,
    "linear": linear_dispatch.BACKENDS,
}


@dataclass(frozen=True)
class Variant:
    """A backend that this build contains; of the native one, a variant for each instruction set of this processor."""

    backend: str
    instruction_set: str = ""

    def __str__(self) -> str:
        """As tables name it."""
        return f"{self.backend} {self.instruction_set}".strip()

    def serves(self, dtype: torch.dtype) -> bool:
        """Whether it takes this dtype at all."""
        return not self.instruction_set or dtype in native.DTYPES


def variants(operator: str) -> list[Variant]:
    """Everything that can run this operator here."""
    found = []
    for backend in (b for b in _TABLES[operator] if b.run is not None):
        sets = native.instruction_sets() if backend.name == "native" else [""]
        found += [Variant(backend.name, name) for name in sets]
    return found


def cases(operator: str) -> list[Case]:
    """Every length pattern, with and without a state (for attention: a window)."""
    build = CASES[operator]
    return [build(n, f"{label}{', state' * on}", on) for label, n in LENGTHS.items() for on in (False, True)]


def relative(value: Tensor, truth: Tensor) -> float:
    """||value - truth|| / ||truth||; NaN stays NaN."""
    difference = (value.double().cpu() - truth.cpu()).norm()
    return float(difference / truth.norm().cpu().clamp(min=1e-30))


def given_dtype(operator: str, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an argument is handed over when the model's is `dtype`: states and decays stay wide."""
    wide = name in ("log_decay", "A", "step") or (name == "state" and operator != "short_convolution")
    return torch.promote_types(dtype, torch.float32) if wide else dtype


def outputs_and_gradients(
    case: Case, backend: str, dtype: torch.dtype, run_in: torch.dtype, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """What a backend gives for inputs rounded to `dtype`, run in `run_in`; and the gradients of a random sum of it."""
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


def errors(case: Case, variant: Variant, dtype: torch.dtype, device: str = "cpu") -> tuple[float, float | None]:
    """The worst relative error of a backend's values, and of its gradients if the case has some."""
    if dtype not in case.known:
        case.known[dtype] = outputs_and_gradients(case, case.truth, dtype, torch.float64, "cpu")
    truth = case.known[dtype]
    with native.using(variant.instruction_set) if variant.instruction_set else nullcontext():
        found = outputs_and_gradients(case, variant.backend, dtype, dtype, device)
    values, gradients = (
        [relative(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(found, truth, strict=True)
    )
    return max(values, key=worse), max(gradients, key=worse) if gradients else None


def worse(error: float | None) -> tuple[bool, float]:
    """A sort key by which NaN is the largest error, and no error the smallest."""
    return (False, -1.0) if error is None else (error != error, error)


def check(device: str = "cpu", report: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Run every backend of every operator against the float64 recurrence on this machine."""
    found = []
    for operator in CASES:
        given = cases(operator)
        for variant in variants(operator):
            if variant.instruction_set and device != "cpu":
                continue
            for dtype in (torch.float32,) if variant.backend in ("recurrent", "plain") else tuple(TOLERANCE):
                if not variant.serves(dtype):
                    continue
                name = str(dtype).removeprefix("torch.")
                report(f"{operator} {variant} {name}")
                both = [errors(case, variant, dtype, device) for case in given]
                values, gradients = (max(x, key=worse) for x in zip(*both, strict=True))
                assert values is not None
                found.append(Finding(operator, str(variant), name, values, gradients, TOLERANCE[dtype]))
    return found
