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
    """Return what Triton compiles: pointers are 16-byte aligned, as torch's are; numbers are not specialised."""
    signature, attributes, constants = {}, {}, {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if name in launch.constants or value is None:
            signature[name] = "constexpr"
            constants[(place,)] = launch.constants.get(name)
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
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
