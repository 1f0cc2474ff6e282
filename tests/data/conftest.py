from __future__ import annotations

import pytest

from interlace.data.chat import ChatTemplate


@pytest.fixture
def chat():
    """Makes chat templates; their processes are ended with the test."""
    made = []

    def make(*args, **more):
        made.append(ChatTemplate(*args, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()
