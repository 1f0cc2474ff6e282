"""Shapes are checked by jaxtyping and beartype here, and only here; warnings are errors."""

from __future__ import annotations

import os
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel, one process to a core, and so do their children
os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels serve CPU tensors: see interlace.ops.core.gpu

from jaxtyping import install_import_hook
from shaped import MODULES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    install_import_hook(MODULES, "beartype.beartype")

import pytest
import torch
from terminal import Terminal


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def terminal():
    """Starts verbs in pseudo-terminals; they are ended with the test."""
    running = []

    def start(*arguments, **more):
        running.append(Terminal(arguments, **more))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def texts(tmp_path):
    """A folder of small text files with something to learn in them."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        words = " ".join(f"the {'quick' if j % 3 else 'slow'} fox {i * j % 17} jumps" for j in range(120))
        (folder / f"{i:02}.txt").write_text(words + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def recipe(texts):
    """Plain data of a run that takes a second."""
    return {
        "model": {
            "width": 32,
            "depth": 2,
            "vocabulary": 300,
            "pattern": ["gated_delta", "attention"],
            "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
            "attention": {"heads": 2, "norm": "output", "position": "none"},
            "mlp": {"width": 48},
        },
        "data": {"source": [str(texts)], "tokenizer": "train:300", "length": 48, "rows": 4},
        "train": {"tokens": 20 * 192, "evaluations": 4, "evaluation_tokens": 960, "checkpoints": 5},
    }


STARTERS = {"terminal", "server"}  # fixtures that start processes


def pytest_collection_modifyitems(items):
    """Mark what starts processes."""
    for item in items:
        source = item.module.__dict__
        if STARTERS & set(item.fixturenames) or "subprocess" in source or "Popen" in source:
            item.add_marker(pytest.mark.process)
