"""Ctrl-C in a terminal while teachers are asked: said at once, and nothing that was paid for is lost."""

from __future__ import annotations

import sys

import pytest
from terminal import CTRL_C, ends_well

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")


@pytest.fixture
def sums(tmp_path):
    def write(url, more=""):
        numbers = ", ".join(map(str, range(3000)))
        (tmp_path / "r.toml").write_text(f"""
[teachers.sim]
model = "sim"
base_url = "{url}"
licence = "none"
terms = "own"
{more}
[[steps]]
name = "seeds"
kind = "table"
columns = {{ a = [{numbers}] }}
[[steps]]
name = "answers"
kind = "generate"
teacher = "sim"
prompt = "What is {{{{ a }}}} + 7?"
[output]
user = "What is {{{{ a }}}} + 7?"
assistant = "{{{{ answer }}}}"
""")

    return write


def test_distill_finishes_what_is_in_flight_and_says_so_at_once(terminal, server, sums, tmp_path):
    sums(server(latency=0.5).url)
    screen = terminal("distill", "generate", "r.toml", "--out", "run", cwd=tmp_path)
    place = screen.until(r"answers +[1-9]")
    screen.press(CTRL_C)
    screen.until(r"waiting for \d+ requests? in flight.*Ctrl-C again", place)
    ends_well(screen, screen.end(), last="interrupted.*same command")


def test_distill_leaves_what_is_in_flight_the_second_time(terminal, server, sums, tmp_path):
    sums(server(latency=20).url)
    screen = terminal("distill", "generate", "r.toml", "--out", "run", cwd=tmp_path)
    place = screen.until(r"[1-9]\d* in flight")
    screen.press(CTRL_C)
    screen.until("Ctrl-C again", place)
    screen.press(CTRL_C)
    ends_well(screen, screen.end(), last="interrupted twice.*may have been charged")
