"""Small random checkpoints of `transformers`, saved to a folder: the independent implementation to agree with."""

from __future__ import annotations

import logging
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from configs import CONFIGS

import interlace

logging.getLogger("transformers").setLevel(logging.ERROR)
SCALARS = ("A_log", "dt_bias", "D")


@pytest.fixture(autouse=True)
def _their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def pair(name, tmp_path):
    """(theirs, ours loaded from their folder, the folder)."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters():  # norms off 1 and biases off 0, so that a swap of two would show
            p.add_((0.3 if n.rpartition(".")[2] in SCALARS else 0.1) * torch.randn_like(p))
        for n, buffer in theirs.named_buffers():
            if n.endswith("e_score_correction_bias"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, interlace.load(tmp_path / "theirs"), tmp_path
