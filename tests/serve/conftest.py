"""A live server in this process, on a port of its own."""

from __future__ import annotations

import gc

import openai
import pytest
from live import KEY, OTHER, Live, small

from interlace.generation import scheduler
from interlace.serve.keys import Keys
from interlace.serve.served import Served


@pytest.fixture(scope="session")
def live():
    model = small(max_positions=2000)
    made = Live({"tiny": Served("tiny", model, "2GB", 8, None)}, Keys([KEY, OTHER]), 40)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def closed():
    """A connection that a module leaves open fails that module, not whatever runs when it is collected."""
    yield
    gc.collect()


@pytest.fixture
def ask(live):
    """A client that bears the key."""
    with live.client() as client:
        yield client


@pytest.fixture
def client(live):
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


class Counted:
    """Counts what was drawn of one answer, in the place of a generator."""

    drawn = 0


@pytest.fixture
def says(live, monkeypatch):
    """Return what has every answer begin with a text, and then end, or go on with the likeliest tokens."""
    tokenizer = live.served["tiny"].tokenizer

    def with_text(text, end=True):
        ids = [*tokenizer.encode_text(text), *([tokenizer.eos] if end else [])]

        class Draws:
            def __init__(self, _, generators, device):
                self.generators = generators

            def __call__(self, logits):
                found = []
                for generator, row in zip(self.generators, logits, strict=True):
                    found.append(ids[generator.drawn] if generator.drawn < len(ids) else int(row.argmax()))
                    generator.drawn += 1
                return found

        monkeypatch.setattr(scheduler, "Draws", Draws)
        monkeypatch.setattr(scheduler, "seeded", lambda seed: Counted())

    return with_text
