"""Small random checkpoints of `transformers`, saved to a folder: the independent implementation to agree with."""

from __future__ import annotations

import logging
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
