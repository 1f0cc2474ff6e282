"""Compile captured launches for a GPU that is not here, and read what the compiler made of them.

Run in a process of its own: TRITON_INTERPRET must not be set when the kernels are imported.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from interlace.ops.core.gpu import Launch

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


def source(launch: Launch) -> ASTSource:
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
    return ASTSource(launch.kernel, signature, constants, attributes)


def report(launch: Launch, architecture: int) -> Report:
    """Compile one launch for `architecture`."""
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _run("cuobjdump", "-res-usage", cubin.name)
        assembly = _run("cuobjdump", "-sass", cubin.name)
    registers, spilled = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    operations = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", assembly)
    matrix = sum(name.startswith(("HGMMA", "HMMA", "UTCHMMA", "QGMMA")) for name in operations)
    return Report(registers, spilled, compiled.metadata.shared, len(operations), matrix)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
