"""Compile what the operators launch, for GPUs that are not here, and read what the compiler made of it.

    python tests/ops/ahead.py 90            print what each kernel takes on compute capability 9.0, as JSON
    python tests/ops/ahead.py 80 100        the same of 8.0 and 10.0, for a choice of kernels
    python tests/ops/ahead.py --write       write budgets.json anew: all kernels, for all architectures
    python tests/ops/ahead.py --seen        compile what the tests do; note in budgets.sha256 that it is within

The tests compile nothing while operators, table and compiler are those that budgets.sha256 was written for.

Run in a process of its own: TRITON_INTERPRET must not be set when the kernels are imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from interlace.base.segments import Segments
from interlace.ops.core import delta_kernels, gpu
from interlace.ops.core.gpu import Launch
from interlace.ops.core.operands import Recurrence

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Report:
    """What one launch takes.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's stack.
        shared: bytes of shared memory.
        instructions: of a warp.
        matrix: matrix instructions (wgmma, mma or tcgen05).
    """

    registers: int
    spilled: int
    shared: int
    instructions: int
    matrix: int


class Source(ASTSource):
    """What Triton compiles; equal ones are compiled once."""

    def __hash__(self) -> int:
        return hash(self.hash())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.hash() == other.hash()


def source(launch: Launch) -> Source:
    """Return what Triton compiles: pointers 16-byte aligned, as torch's are; numbers specialised as at run time."""
    signature, attributes, constants = {}, {}, {}
    for parameter in launch.kernel.params:
        place, name = (parameter.num,), parameter.name
        value = launch.constants[name] if name in launch.constants else launch.arguments[name]
        free = not parameter.do_not_specialize
        if name in launch.constants or value is None or (type(value) is int and value == 1 and free):
            signature[name], constants[place] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[place] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if free and value % 16 == 0:
                attributes[place] = [["tt.divisibility", 16]]
    return Source(launch.kernel, signature, constants, attributes)


def report(launch: Launch, architecture: int) -> Report:
    """Compile one launch for `architecture`."""
    return _compiled(source(launch), launch.warps, launch.stages, architecture)


@functools.cache
def _compiled(what: Source, warps: int, stages: int, architecture: int) -> Report:
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(what, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        found = _run("cuobjdump", "-res-usage", "-sass", cubin.name)
    registers, spilled = (int(re.findall(rf"\b{name}:(\d+)", found)[-1]) for name in ("REG", "STACK"))
    operations = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", found)
    matrix = sum(name.startswith(("HGMMA", "HMMA", "UTCHMMA", "QGMMA")) for name in operations)
    return Report(registers, spilled, compiled.metadata.shared, len(operations), matrix)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


SEGMENTS = Segments.from_lengths([4200, 5])
ARCHITECTURES = (90, 80, 100)
BUDGETS = Path(__file__).parent / "budgets.json"
SEEN = Path(__file__).parent / "budgets.sha256"
MORE = 1.05  # instructions, and 8 registers: what another build of the same compiler may differ by


def rule(name: str, heads: tuple[int, int, int, int], dtype: torch.dtype = torch.bfloat16) -> Callable[[], None]:
    """Return what runs a rule forward and backward, with everything it can be given."""

    def run() -> None:
        module = importlib.import_module(f"interlace.ops.{name}.triton")
        (H, G, K, V), total = heads, SEGMENTS.total
        mixed = torch.zeros(total, 2 * H * K + G * V, dtype=dtype)
        query, key, value = mixed.split((H * K, H * K, G * V), dim=1)
        gate = (total, G, K) if name == "kimi_delta" else (total, G)
        tensors = (query.unflatten(1, (H, K)), key.unflatten(1, (H, K)), value.unflatten(1, (G, V)))
        tensors += (torch.zeros(gate), torch.zeros(total, G, dtype=dtype))
        x = Recurrence.of(tensors, SEGMENTS, torch.zeros(2, G, K, V), None, name != "state_space")
        out, final, *saved = module._forward(*x, True)
        module._backward(out, final, *saved, *x, True)

    return run


def convolution() -> None:
    """Run a short convolution forward and backward."""
    module = importlib.import_module("interlace.ops.short_convolution.triton")
    x, weight = torch.zeros(SEGMENTS.total, 2048, dtype=torch.bfloat16), torch.zeros(2048, 5, dtype=torch.bfloat16)
    state = torch.zeros(2, 3, 2048, dtype=torch.bfloat16)
    operands = (x, weight, SEGMENTS.offsets, state, True, True, 0)
    module._forward(*operands)
    module._backward(x, state, *operands)


def selective_scan() -> None:
    """Run a selective scan forward and backward, in stretches."""
    module = importlib.import_module("interlace.ops.selective_scan.triton")
    total, D, K = SEGMENTS.total, 64, 16
    x, lines = torch.zeros(total, D, dtype=torch.bfloat16), torch.zeros(total, K, dtype=torch.bfloat16)
    inputs = (x, torch.zeros(total, D), torch.zeros(D, K), lines, lines, SEGMENTS.offsets, torch.zeros(2, D, K), 0)
    out, final, border = module._forward(*inputs, True)
    module._backward(out, final, border, *inputs, True)


def one_token(name: str, heads: tuple[int, int, int, int]) -> Callable[[], None]:
    """Return what takes one token by a rule."""

    def run() -> None:
        module = importlib.import_module(f"interlace.ops.{name}.triton")
        N, (H, G, K, V), dtype = 4, heads, torch.bfloat16
        query, value, beta = (torch.zeros(N, n, size, dtype=dtype) for n, size in ((H, K), (G, V), (1, G)))
        gate = torch.zeros((N, G, K) if name == "kimi_delta" else (N, G))
        segments, tensors = Segments.equal(N, 1), (query, query, value, gate, beta[:, 0])
        module.run(Recurrence.of(tensors, segments, torch.zeros(N, G, K, V), None, name != "state_space"))

    return run


def layer_token() -> None:
    """Take one token through all of a layer between its projections."""
    module = importlib.import_module("interlace.ops.gated_delta.triton")
    cases = importlib.import_module("interlace.ops.gated_delta.mixer_step")
    N, H, K, V, dtype = 4, 16, 96, 192, torch.bfloat16
    memory, channels = torch.zeros(N, H, K, V), H * (2 * K + V)
    projected = torch.zeros(N, channels + H * (V + 2), dtype=dtype)
    weights = (torch.zeros(channels, 4, dtype=dtype), torch.zeros(V, dtype=dtype), torch.zeros(H), torch.zeros(H))
    window = torch.zeros(N, 3, channels, dtype=dtype)
    module.mixer_step(cases.MixerStep(projected, *weights, window, memory, H, True, 1e-6))


def gates() -> None:
    """Compute the gates of a layer and their gradients."""
    module = importlib.import_module("interlace.ops.gated_delta.triton")
    total, G = 64, 30
    projected, wide = torch.zeros(total, 256, dtype=torch.bfloat16), torch.zeros(total, G)
    weights = (torch.zeros(G), torch.zeros(G), True)
    module.gates(projected, 128, *weights, (wide, wide))
    module.gates_backward(projected, 128, *weights, (wide, wide, wide), projected)


def decay_gate() -> None:
    """Compute the gates of a decay and their gradients."""
    module = importlib.import_module("interlace.ops.decay_gate.triton")
    x, wide = torch.zeros(512, 1024, dtype=torch.bfloat16), torch.zeros(512, 1024)
    given = (x, torch.zeros(1024), torch.zeros(8), 0.0, 1e38, True)
    module._forward(*given)
    module._backward(wide, wide, *given)


def norm(width: int) -> Callable[[], None]:
    """Return what runs a norm forward and backward with all its operands."""

    def run() -> None:
        module = importlib.import_module("interlace.ops.rms_norm.triton")
        x = torch.zeros(64, width, dtype=torch.bfloat16)
        form = (1e-5, 0.0, "silu", False)
        _, total, inverse = module._forward(x, torch.zeros(width), x, x, x, *form, torch.bfloat16)
        module._backward(x, x, total, torch.zeros(width), x, inverse, torch.bfloat16, *form)

    return run


def swiglu() -> None:
    """Run SwiGLU forward and backward."""
    module = importlib.import_module("interlace.ops.swiglu.triton")
    x = torch.zeros(64, 2 * 4096, dtype=torch.bfloat16)
    module._backward(module._forward(x), x)


def cross_entropy() -> None:
    """Run the loss of a block of tokens."""
    module = importlib.import_module("interlace.ops.cross_entropy.triton")
    module._forward(torch.zeros(8, 32000, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int64), -100, 1.0, None)


def experts() -> None:
    """Run experts forward and backward, with enough pairs for the largest tiles."""
    module = importlib.import_module("interlace.ops.experts.triton")
    x, weights = torch.zeros(512, 256, dtype=torch.bfloat16), torch.zeros(512, 2)
    first, second = torch.zeros(4, 512, 256, dtype=torch.bfloat16), torch.zeros(4, 256, 256, dtype=torch.bfloat16)
    inputs = (x, torch.zeros(512, 2, dtype=torch.int64), weights, first, second, "swiglu")
    module._backward(module._forward(*inputs), *inputs)


def decoding(size: int, group: int, window: int = 0, dtype: torch.dtype = torch.bfloat16) -> Callable[[], None]:
    """Return what runs one decoded token of attention, over more than one stretch."""

    def run() -> None:
        module = importlib.import_module("interlace.ops.attention.triton")
        step = importlib.import_module("interlace.ops.attention.step").Step
        state = importlib.import_module("interlace.ops.core.attention_state").AttentionState
        query, key, cache = (torch.zeros(2, *s, size, dtype=dtype) for s in ((2 * group,), (2,), (600, 2)))
        held = state(cache, cache, [0, 0], window or None)
        module.run(step(query, key, key, held.on_device(torch.zeros(2, dtype=torch.int64)), size**-0.5))

    return run


HEADS = {"96x192": (16, 16, 96, 192), "128x128": (16, 32, 128, 128), "64x128": (12, 12, 64, 128)}
GROUPS = ((64, 4), (128, 1), (128, 8), (256, 8))  # size of a head of attention, and query heads of a key head
CASES: dict[str, Callable[[], None]] = {
    **{f"gated_delta {name}": rule("gated_delta", heads) for name, heads in HEADS.items()},
    "gated_delta 48x96": rule("gated_delta", (8, 8, 48, 96)),
    "gated_delta 256x256": rule("gated_delta", (4, 4, 256, 256)),
    "gated_delta 96x192 float32": rule("gated_delta", HEADS["96x192"], torch.float32),
    "gated_delta one token": one_token("gated_delta", HEADS["96x192"]),
    "gated_delta one token of a layer": layer_token,
    "gated_delta gates": gates,
    "kimi_delta 128x128": rule("kimi_delta", (8, 8, 128, 128)),
    "kimi_delta one token": one_token("kimi_delta", (8, 8, 128, 128)),
    "state_space one token": one_token("state_space", (1, 16, 128, 64)),
    "state_space 128x64": rule("state_space", (1, 16, 128, 64)),
    "selective_scan": selective_scan,
    "short_convolution": convolution,
    **{f"rms_norm {width}": norm(width) for width in (128, 1024, 3840)},
    "decay_gate": decay_gate,
    "swiglu": swiglu,
    "cross_entropy": cross_entropy,
    "experts": experts,
    **{f"attention {size} of {group}": decoding(size, group) for size, group in GROUPS},
    "attention 128 of 4 window": decoding(128, 4, 500),
    "attention 128 of 4 float32": decoding(128, 4, 0, torch.float32),
}
# What the tests compile for other architectures than Hopper.
ELSEWHERE = ("gated_delta 96x192", "short_convolution", "rms_norm 1024", "experts", "attention 128 of 8")


def tested(kernel: str) -> bool:
    """Return whether the tests compile what a row of the table names."""
    return kernel.startswith("sm_90 ") or any(f" {name} " in kernel for name in ELSEWHERE)


def reports(architecture: int, everything: bool) -> dict[str, Report]:
    """Compile the cases of an architecture: everything, or what the tests do."""
    found = {}
    for name, run in CASES.items():
        if not everything and not tested(f"sm_{architecture} {name} "):
            continue
        with gpu.capturing(architecture) as captured:
            run()
        for launch in captured.launches:
            kernel = f"sm_{architecture} {name} {launch.kernel.__name__}"
            if kernel in found:  # with other constants: a product that gathers, or does not
                kernel += f" {sum(name.startswith(kernel) for name in found) + 1}"
            found[kernel] = report(launch, architecture)
    return found


def digest() -> str:
    """Return a hash of all that the table depends on: operators, this script, the table, the compiler."""
    operators = sorted(Path(gpu.__file__).parents[1].rglob("*.py"))
    raw = [
        importlib.metadata.version("triton").encode(),
        *(p.read_bytes() for p in (*operators, Path(__file__), BUDGETS)),
    ]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in raw)).hexdigest()


def compiled(architecture: int) -> dict[str, list[int]]:
    """Return what the kernels take that the tests compile, from a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(architecture)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {name: list(row) for name, row in json.loads(done.stdout).items()}


def worse(found: dict[str, list[int]]) -> list[tuple[str, list[int], list[int]]]:
    """Return the kernels that take more than the table says: (name, what it takes, what the table says)."""
    budgets = {n: row for n, row in json.loads(BUDGETS.read_text(encoding="utf-8")).items() if tested(n)}
    assert set(found) == set(budgets), "python tests/ops/ahead.py --write makes the table anew"
    beyond = []
    for name, (registers, spilled, shared, instructions, matrix) in found.items():
        allowed = budgets[name]
        within = registers <= allowed[0] + 8 and spilled <= allowed[1] and shared <= allowed[2]
        if not (within and instructions <= MORE * allowed[3] and bool(matrix) == bool(allowed[4])):
            beyond.append((name, found[name], allowed))
    return beyond


def main(arguments: list[str]) -> None:
    """Print or write what the kernels take."""
    if arguments == ["--seen"]:
        found = {name: row for arch in ARCHITECTURES for name, row in compiled(arch).items()}
        if beyond := worse(found):
            raise SystemExit(f"beyond the table: {beyond}")
        SEEN.write_text(f"{digest()}\n", encoding="utf-8")
        return
    delta_kernels.FEW = 1 << 30  # what goes through stretches of a sequence at once is compiled too
    everything = arguments == ["--write"]
    wanted = ARCHITECTURES if everything else [int(a) for a in arguments]
    found = {name: list(asdict(r).values()) for arch in wanted for name, r in reports(arch, everything).items()}
    if not everything:
        print(json.dumps(found))
        return
    SEEN.unlink(missing_ok=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
    BUDGETS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
