"""A live server in this process, on a port of its own."""

from __future__ import annotations

import pytest
from live import KEY, OTHER, Live, small

from interlace.serve.keys import Keys
from interlace.serve.served import Served


@pytest.fixture(scope="session")
def live():
    model = small(max_positions=2000)
    made = Live({"tiny": Served("tiny", model, "2GB", 8, None)}, Keys([KEY, OTHER]), 40)
    yield made
    made.close()


@pytest.fixture
def ask(live):
    """A client that bears the key."""
    with live.client() as client:
        yield client
