"""Every kernel compiles for three generations of GPUs, and takes no more than the committed table says."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from interlace.ops.core import gpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())]
HERE = Path(__file__).parent
SHARED = {90: 232_448, 80: 166_912, 100: 232_448}  # bytes that one program can have
MATRIX = {  # kernels that are made of products
    "gated_delta": ("prepare", "states", "carry", "scan", "reverse", "gradients"),
    "kimi_delta": ("prepare", "states", "carry", "scan", "reverse", "pairs", "gradients"),
    "state_space": ("collect", "scan", "value_gradients", "key_gradients"),
    "experts": ("product", "hidden_backward", "weight_gradients"),
}
MORE = 1.05  # instructions, and 8 registers: what another build of the same compiler may differ by


def compiled(architecture):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, HERE / "ahead.py", str(architecture)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_kernels_stay_within_their_budgets():
    tested = importlib.import_module("ahead").tested
    version = importlib.metadata.version("triton")
    if not version.startswith("3.7."):
        pytest.skip(f"the table was made with Triton 3.7, and this is {version}")
    budgets = json.loads((HERE / "budgets.json").read_text(encoding="utf-8"))
    budgets = {name: row for name, row in budgets.items() if tested(name)}
    with ThreadPoolExecutor(2) as pool:
        found = {name: row for part in pool.map(compiled, SHARED) for name, row in part.items()}
    assert set(found) == set(budgets), "python tests/ops/ahead.py --write makes the table anew"
    worse = []
    for name, (registers, spilled, shared, instructions, matrix) in found.items():
        allowed = budgets[name]
        within = registers <= allowed[0] + 8 and spilled <= allowed[1] and shared <= allowed[2]
        within = within and instructions <= MORE * allowed[3] and bool(matrix) == bool(allowed[4])
        if not within:
            worse.append((name, found[name], allowed))
    assert not worse


def test_the_table_says_what_the_kernels_are_meant_to_be():
    budgets = json.loads((HERE / "budgets.json").read_text(encoding="utf-8"))
    for name, (_, spilled, shared, _, matrix) in budgets.items():
        target, operator, *_, kernel = name.split()
        architecture = int(target.removeprefix("sm_"))
        assert shared <= SHARED[architecture], name
        assert architecture != 90 or not spilled, name
        assert matrix or "float32" in name or kernel not in MATRIX.get(operator, ()), name
