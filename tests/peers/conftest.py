"""Small random checkpoints of `transformers`, saved to a folder: the independent implementation to agree with."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import warnings
from functools import cache

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


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Makes a model of a config by name, and the folder it is saved in; each once."""

    @cache
    def make(name):
        torch.manual_seed(0)
        theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        with torch.no_grad():
            for n, p in theirs.named_parameters():  # norms off 1 and biases off 0, so that a swap of two would show
                p.add_((0.3 if n.rpartition(".")[2] in SCALARS else 0.1) * torch.randn_like(p))
            for n, buffer in theirs.named_buffers():
                if n.endswith("e_score_correction_bias"):
                    buffer.add_(0.3 * torch.randn_like(buffer))
        folder = tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, folder

    return make


@pytest.fixture
def pair(name, saved, tmp_path):
    """(theirs, ours loaded from their folder, a folder that holds it as "theirs")."""
    theirs, folder = saved(name)
    shutil.copytree(folder, tmp_path / "theirs")
    return copy.deepcopy(theirs), interlace.load(tmp_path / "theirs"), tmp_path
