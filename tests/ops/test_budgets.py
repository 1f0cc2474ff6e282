"""Every kernel compiles for three generations of GPUs, and takes no more than the committed table says."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
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


def test_kernels_stay_within_their_budgets():
    ahead = importlib.import_module("ahead")
    version = importlib.metadata.version("triton")
    if not version.startswith("3.7."):
        pytest.skip(f"the table was made with Triton 3.7, and this is {version}")
    if ahead.SEEN.is_file() and ahead.SEEN.read_text().strip() == ahead.digest():
        pytest.skip("compiled already, by python tests/ops/ahead.py --seen, from the same operators")
    with ThreadPoolExecutor(2) as pool:
        found = {name: row for part in pool.map(ahead.compiled, SHARED) for name, row in part.items()}
    assert not ahead.worse(found)


def test_what_takes_more_than_the_table_says_is_named():
    ahead = importlib.import_module("ahead")
    rows = {n: list(r) for n, r in json.loads(ahead.BUDGETS.read_text(encoding="utf-8")).items() if ahead.tested(n)}
    assert not ahead.worse(rows)
    for number, more in ((0, 9), (1, 1), (2, 1), (3, 10**6)):
        name = list(rows)[number]
        wrong = list(rows[name])
        wrong[number] += more
        assert [found for found, _, _ in ahead.worse({**rows, name: wrong})] == [name]


def test_the_table_says_what_the_kernels_are_meant_to_be():
    budgets = json.loads((HERE / "budgets.json").read_text(encoding="utf-8"))
    for name, (_, spilled, shared, _, matrix) in budgets.items():
        target, operator, *_, kernel = name.split()
        architecture = int(target.removeprefix("sm_"))
        assert shared <= SHARED[architecture], name
        assert architecture != 90 or not spilled, name
        assert matrix or "float32" in name or kernel not in MATRIX.get(operator, ()), name
