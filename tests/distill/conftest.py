from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from says import says  # noqa: F401 - a fixture

from interlace.sandbox.templates import Templates

SERVER = Path(__file__).with_name("simulator.py")


class Server:
    """A simulated teacher that runs."""

    def __init__(self, **options):
        given = []
        for name, value in options.items():
            given += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        self.process = subprocess.Popen([sys.executable, str(SERVER), *given], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stats(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats") as answer:
            return json.load(answer)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def templates():
    """Renders; ended with the test."""
    with closing(Templates()) as made:
        yield made


@pytest.fixture
def server():
    """Starts teachers; they are stopped at the end of the test."""
    running = []

    def start(**options):
        running.append(Server(**{"latency": 0.005, **options}))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of sums: a table of numbers, a question, and steps as given."""

    def write(url, steps="", *, rows=12, output=True, teacher="", run="", name="r.toml", ask=True):
        numbers = ", ".join(map(str, range(rows)))
        text = f"""
[run]
{run}
[teachers.sim]
model = "sim"
base_url = "{url}"
licence = "none"
terms = "own"
price_in = 1.0
price_out = 2.0
{teacher}
[[steps]]
name = "seeds"
kind = "table"
columns = {{ a = [{numbers}] }}
"""
        if ask:
            text += """
[[steps]]
name = "answers"
kind = "generate"
teacher = "sim"
prompt = "What is {{ a }} + 7?"
max_tokens = 64
"""
        text += steps
        if output:
            text += '\n[output]\nuser = "What is {{ a }} + 7?"\nassistant = "{{ answer }}"\nheld_out = 0.3\n'
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
