"""Shapes are checked by jaxtyping and beartype here, and only here; warnings are errors."""

from __future__ import annotations

import os
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel, one process to a core, and so do their children
os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels serve CPU tensors: see interlace.ops.core.gpu

import shaped
from jaxtyping import install_import_hook

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    install_import_hook(shaped.MODULES, "shaped.checked")

import interpreted
import pytest
import torch
from small import recipe_of, texts_in
from terminal import Terminal

interpreted.hasten()


@pytest.fixture(autouse=True)
def _each_test() -> None:
    torch.manual_seed(0)
    shaped.begin()


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
    return texts_in(tmp_path / "texts")


@pytest.fixture
def recipe(texts):
    """Plain data of a run that takes a second."""
    return recipe_of(texts)


STARTERS = {"terminal", "server"}  # fixtures that start processes


def pytest_collection_modifyitems(items):
    """Mark what starts processes."""
    for item in items:
        source = item.module.__dict__
        if STARTERS & set(item.fixturenames) or "subprocess" in source or "Popen" in source:
            item.add_marker(pytest.mark.process)
