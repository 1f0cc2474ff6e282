"""A model is one graph for torch.compile, forward and backward, whatever its segments.

In a process of its own: the shape checks that the tests wrap around the operators cannot be traced.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from interlace import HybridLM, Segments
from interlace.model.presets import preset

name, kind, dtype = sys.argv[1:]
torch.manual_seed(0)
model = HybridLM(preset(name), dtype=getattr(torch, dtype))
tokens = torch.randint(model.config.vocabulary, (131,))
given = (tokens, Segments.from_lengths([31, 1, 64, 35])) if kind == "ragged" else (tokens[:128].view(2, 64),)

def loss(m, *args):
    hidden, _, _ = m.hidden(*args)
    return hidden.square().sum()

weights = list(model.blocks.parameters())
want = torch.autograd.grad(loss(model, *given), weights)
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
for a, b in zip(want, torch.autograd.grad(compiled(model, *given), weights), strict=True):
    close = {"rtol": 1e-9, "atol": 1e-10} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(a, b, **close)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "dtype"),  # float32 is served by the native kernels
    [
        ("tiny-hybrid", "equal", "float64"),
        ("tiny-hybrid", "ragged", "float32"),
        ("tiny-sliding", "ragged", "float64"),
    ],
)
def test_compiles_as_one_graph(name, kind, dtype):
    command = [sys.executable, "-c", SCRIPT, name, kind, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
