"""What `gpu.py` measures: jobs, shapes, and the operations that a shape needs. No torch here.

Sources of the formulas: docs/performance.md, "Measuring on a GPU".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

RULES = ("gated_delta", "kimi_delta", "state_space")
TRITON = (
    *RULES,
    *("selective_scan", "short_convolution", "decay_gate", "rms_norm", "swiglu", "cross_entropy", "experts"),
)
RAGGED = (1, 33, 64, 250, 777, 2048, 512, 1300, 100, 1907, 900, 300)  # 8192 tokens
LONG_CHUNK, SHORT_CHUNK = 64, 16  # tokens of a chunk for which products are counted
ROWS = (1, 64)  # sequences that get one more token


@dataclass(frozen=True)
class Job:
    """What a worker does at a time.

    Attributes:
        section: under which its lines are printed.
        label: what is measured.
        work: "module:function", called with what is known of the machine, and the arguments.
        seconds: after which its worker is killed, its start included.
        needs: a package without which there is nothing to do.
    """

    section: str
    label: str
    work: str
    arguments: tuple[object, ...] = ()
    seconds: float = 60.0
    needs: str = ""


@dataclass(frozen=True)
class Shape:
    """One operator on sequences of these lengths.

    Attributes:
        sizes: (H, G, K, V) of the rules, (D, K) of selective_scan, (D, W) of short_convolution, (D,) or (heads, D) of
            rms_norm, (D, heads) of decay_gate, (D,) of swiglu, (D, vocabulary) of cross_entropy, (D, experts, chosen,
            inner) of experts, (heads, key heads, dim) of attention.
    """

    operator: str
    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        """Return the label of its lines."""
        equal = len(set(self.lengths)) == 1
        rows = f"{len(self.lengths)} x {self.lengths[0]}" if equal else f"{self.total} in {len(self.lengths)}"
        return f"{self.operator} {rows}; {' '.join(map(str, self.sizes))}"

    @property
    def total(self) -> int:
        """All tokens."""
        return sum(self.lengths)

    @property
    def heads(self) -> int:
        """By how many heads a time is divided."""
        return self.sizes[1] if self.operator in RULES else self.sizes[0] if self.operator == "attention" else 1

    def steps(self) -> list[Shape]:
        """Return the shapes of one token."""
        if self.operator == "cross_entropy":
            return []
        if self.total < max(ROWS):
            return [replace(self, lengths=(1, 1))]
        return [replace(self, lengths=(1,) * rows) for rows in (ROWS if self.operator in RULES else ROWS[-1:])]

    def flops(self) -> tuple[float, float]:
        """Return the operations of matrix products, forward and backward; a multiply-add counts 2."""
        if self.operator in RULES:
            forward, backward = _rule_flops(self.operator, *self.sizes)
            return self.total * self.heads * forward, self.total * self.heads * backward
        if self.operator == "cross_entropy":
            return 2.0 * self.total * self.sizes[0] * self.sizes[1], 4.0 * self.total * self.sizes[0] * self.sizes[1]
        if self.operator == "experts":
            D, _, chosen, inner = self.sizes
            return 6.0 * self.total * chosen * D * inner, 12.0 * self.total * chosen * D * inner
        if self.operator == "attention":
            heads, _, dim = self.sizes
            forward = 2.0 * heads * dim * sum(n * n for n in self.lengths)
            return forward, 2.5 * forward
        return 0.0, 0.0


def _rule_flops(operator: str, H: int, G: int, K: int, V: int) -> tuple[float, float]:
    """Per token and value head."""
    C = SHORT_CHUNK if operator == "kimi_delta" else LONG_CHUNK
    if operator == "state_space":
        forward = 4 * K * V + 2 * C * V + 2 * C * K * H / G
        return forward, 2 * forward
    return 6 * K * V + C * (4 * K + 4 * V) + C * C / 3, 16 * K * V + C * (20 * K + 10 * V) + 4 * C * C


SHAPES = (
    Shape("gated_delta", (2048,) * 4, (30, 30, 96, 192)),
    Shape("gated_delta", (8192,), (30, 30, 96, 192)),
    Shape("gated_delta", (8192,) * 4, (16, 32, 128, 128)),
    Shape("gated_delta", (32768,), (16, 32, 128, 128)),
    Shape("gated_delta", (2048,) * 8, (12, 12, 64, 128)),
    Shape("gated_delta", RAGGED, (30, 30, 96, 192)),
    Shape("kimi_delta", (2048,) * 4, (32, 32, 128, 128)),
    Shape("state_space", (2048,) * 4, (1, 64, 128, 64)),
    Shape("selective_scan", (2048,) * 4, (4096, 16)),
    Shape("short_convolution", (2048,) * 8, (5760, 4)),
    Shape("rms_norm", (2048,) * 8, (3840,)),
    Shape("rms_norm", (2048,) * 8, (30, 192)),
    Shape("swiglu", (2048,) * 8, (11008,)),
    Shape("cross_entropy", (2048,) * 8, (3840, 100_352)),
    Shape("experts", (2048,) * 4, (2048, 64, 8, 1024)),
    Shape("attention", (2048,) * 4, (32, 8, 128)),
    Shape("attention", RAGGED, (32, 8, 128)),
    Shape("decay_gate", (2048,) * 4, (4096, 32)),
    Shape("gated_delta", (32768,), (8, 8, 128, 128)),  # few heads: the sequence is cut
)
TUNED = (Shape("gated_delta", (2048,) * 4, (30, 30, 96, 192)), Shape("gated_delta", (2048,) * 4, (16, 32, 128, 128)))
TRAINED = ((8, 2048), (2, 8192))  # rows, tokens of each
DECODED = (1, 8, 64)  # rows

SMALL = {
    "gated_delta": (2, 2, 8, 12),
    "kimi_delta": (2, 2, 8, 12),
    "state_space": (1, 2, 8, 12),
    "selective_scan": (4, 3),
    "short_convolution": (12, 4),
    "decay_gate": (12, 2),
    "swiglu": (16,),
    "cross_entropy": (8, 40),
    "experts": (16, 4, 2, 8),
    "attention": (4, 2, 16),
}


def small(shape: Shape) -> Shape:
    """Return the shape that stands for this one on a CPU: a few tokens, two heads, small widths."""
    sizes = SMALL[shape.operator] if shape.operator != "rms_norm" else (16,) if len(shape.sizes) == 1 else (2, 12)
    if shape.operator == "gated_delta":
        sizes = {30: sizes, 32: (1, 2, 8, 12), 12: (2, 2, 8, 16), 8: (1, 1, 8, 12)}[shape.heads]
    lengths = (1, 4, 2) if len(set(shape.lengths)) > 1 else (7,) if len(shape.lengths) == 1 else (3, 3)
    return Shape(shape.operator, lengths, sizes)


@dataclass(frozen=True)
class Tune:
    """Which numbers of `Tiles` are tried: every program that scans, then every program of gradients."""

    values: tuple[int, ...] = (32, 64, 128)
    warps: tuple[int, ...] = (4, 8)
    stages: tuple[int, ...] = (1, 2, 3)
    keys: tuple[int, ...] = (32, 64)
    columns: tuple[int, ...] = (32, 64)
    gradient_warps: tuple[int, ...] = (4, 8)

    def scans(self) -> list[dict[str, int]]:
        """Return what differs from the default in the programs that scan."""
        return [
            {"chunk": 64, "values": v, "warps": w, "stages": s}
            for v in self.values
            for w in self.warps
            for s in self.stages
        ]

    def gradients(self) -> list[dict[str, int]]:
        """Return what differs from the default in the programs of gradients."""
        return [
            {"keys": k, "columns": c, "gradient_warps": w}
            for k in self.keys
            for c in self.columns
            for w in self.gradient_warps
        ]


def phases(pretend: bool, tune: bool) -> list[tuple[bool, list[Job]]]:
    """Return (whether its jobs may run at once, jobs), in the order of what a run should say first."""
    shapes = [small(s) for s in SHAPES] if pretend else list(SHAPES)
    found = [
        (False, [Job("machine", "machine", "gpu_clock:machine")]),
        (True, [*_first_calls(shapes), *_checks(("bfloat16",) if pretend else ("bfloat16", "float32"))]),
        (False, [Job("operators", str(s), "gpu_operators:operator", (s,), 60) for s in shapes]),
    ]
    found[-1][1].insert(1, Job("operators", f"chunked {shapes[0]}", "gpu_operators:chunked", (shapes[0],)))
    found.append((False, _models(pretend)))
    if tune:
        tuned = [small(s) for s in TUNED[:1]] if pretend else list(TUNED)
        table = Tune((32,), (4,), (1,), (32,), (64,), (4,)) if pretend else Tune()
        found += _tuning(tuned, table)
    found.append((False, _peers(shapes, pretend)))
    return found


def _first_calls(shapes: Sequence[Shape]) -> list[Job]:
    """One job for each set of kernels: they are compiled, and compared with the recurrence at these sizes of heads."""
    distinct: dict[str, Shape] = {}
    for s in (s for s in shapes if s.operator in TRITON):
        distinct.setdefault(f"{s.operator} {' '.join(map(str, s.sizes))}", s)
    jobs = [Job("first calls", f"the model, {w}", f"gpu_models:first_{w}", (), 150) for w in ("training", "decoding")]
    return jobs + [Job("first calls", label, "gpu_operators:first", (s,), 120) for label, s in distinct.items()]


def _checks(dtypes: Sequence[str]) -> list[Job]:
    return [
        Job("checks", f"{operator} triton {dtype}", "gpu_operators:check", (operator, dtype), 120)
        for operator in TRITON
        for dtype in dtypes
    ]


def _models(pretend: bool) -> list[Job]:
    trained, decoded = (((2, 8), (1, 16)), (1, 2)) if pretend else (TRAINED, DECODED)
    jobs = [Job("models", "parameters", "gpu_models:parameters")]
    jobs += [Job("models", f"training {r} x {t}", "gpu_models:training", (r, t), 90) for r, t in trained]
    return jobs + [Job("models", f"decoding {rows} rows", "gpu_models:decoding", (rows,), 90) for rows in decoded]


def _peers(shapes: Sequence[Shape], pretend: bool) -> list[Job]:
    trained, decoded = (((2, 8), (1, 16)), (1, 2)) if pretend else (TRAINED, DECODED)
    fla = [s for s in shapes if s.operator == "gated_delta"]
    jobs = [Job("peers", f"fla {s}", "gpu_operators:fla", (s,), 45, "fla") for s in fla]
    theirs = [
        Job("peers", "transformers training", "gpu_models:their_training", (trained,), 90, "transformers"),
        Job("peers", "transformers decoding", "gpu_models:their_decoding", (decoded,), 90, "transformers"),
    ]
    return [*jobs[:1], *theirs, *jobs[1:]]


def _tuning(shapes: Sequence[Shape], table: Tune) -> list[tuple[bool, list[Job]]]:
    def jobs(section: str, work: str, seconds: float) -> list[Job]:
        found = []
        for part, rows in (("scan", table.scans()), ("gradients", table.gradients())):
            for row in rows:
                label = f"{part} {' '.join(map(str, row.values()))}"
                found.append(Job(section, label, f"gpu_tune:{work}", (tuple(shapes), part, row), seconds))
        return found

    measured = jobs("tune", "measure", 45)
    measured.append(Job("tune", "best", "gpu_tune:best", (tuple(shapes),)))
    return [(True, jobs("tune first calls", "compile", 90)), (False, measured)]
