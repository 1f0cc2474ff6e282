"""An endpoint that does not answer is named with its address, once, with how long it is waited for."""

from __future__ import annotations

import socket

import pytest

from interlace.cli.distill import Display
from interlace.distill.run import generate
from interlace.distill.teachers.client import Dead


@pytest.fixture
def nowhere():
    """An address at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"


def said(recipe, url, tmp_path, capsys):
    """Lines on standard error of a run that waits for an endpoint that is dead."""
    file = recipe(url, teacher="patience_seconds = 3\nconnections = 4")
    with Display(every_seconds=0.2) as display, pytest.raises(Dead):
        generate(file, tmp_path / "run", watch=display.update)
    return capsys.readouterr().err.splitlines()


def test_a_dead_endpoint_is_named_once_with_its_address(recipe, tmp_path, nowhere, capsys):
    lines = said(recipe, nowhere, tmp_path, capsys)
    about = [line for line in lines if nowhere in line]
    assert about
    assert "teachers.sim" in about[0]
    assert "patience_seconds" in about[0] or "3 s" in about[0]
    assert len(about) <= 2


def test_a_line_that_says_nothing_new_is_not_repeated(recipe, tmp_path, nowhere, capsys):
    lines = said(recipe, nowhere, tmp_path, capsys)
    assert len(lines) <= 6
    assert len(set(lines)) == len(lines)
