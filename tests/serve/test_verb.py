"""`interlace serve` as a process: the lines of its page, SIGTERM while it answers, kill -9 and the same port again."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from live import small

import interlace

PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "hybrid"
    interlace.save(small(), made)
    return made


class Process:
    """A server, and what it has said."""

    def __init__(self, folder, *more):
        words = [sys.executable, "-m", "interlace", "serve", str(folder), "--memory", "1GB", *more]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"at (http://\S+)/v1", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.said))
        self.reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self.reader.start()

    @property
    def port(self):
        return self.url.rpartition(":")[2]

    def stream(self, most=100_000):
        endless = {str(small().tokenizer.eos): -100}
        body = {"model": "hybrid", "prompt": "the", "max_tokens": most, "stream": True, "logit_bias": endless}
        return httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()


@pytest.mark.slow
def test_the_lines_of_the_page_run_and_sigterm_ends_answers_in_time(folder):
    server = Process(folder, "--port", "0", "--drain-seconds", "1")
    try:
        if shutil.which("curl"):
            (line,) = re.findall(r"^curl .*$", PAGE, re.MULTILINE)
            made = subprocess.run(shlex.split(line.replace("8000", server.port)), capture_output=True, text=True)
            assert '"object":"text_completion"' in made.stdout.replace(" ", ""), made
        (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        exec(compile(code.replace("8000", server.port), "docs/serve.md", "exec"), {})
        with server.stream() as going:
            lines = going.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            rest = []
            with contextlib.suppress(httpx.HTTPError):
                rest.extend(lines)
        assert "data: [DONE]" not in rest  # the answer was not done
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 1 + 9  # the drain, and a slow machine's way out
    finally:
        server.end()
    assert not any("the quick" in line or "Traceback" in line for line in server.said), server.said


@pytest.mark.slow
def test_kill_9_in_the_middle_of_streams_harms_nothing(folder):
    """Clients see that the connection ended; the same port serves at once again; the folder is as it was."""
    before = {file: file.read_bytes() for file in folder.iterdir()}
    server = Process(folder, "--port", "0")
    errors, began = [], threading.Barrier(65)

    def listen():
        try:
            with server.stream() as going:
                lines = going.iter_lines()
                next(lines)
                began.wait(60)
                for _ in lines:
                    pass
        except httpx.HTTPError as error:
            errors.append(error)

    threads = [threading.Thread(target=listen) for _ in range(64)]
    for thread in threads:
        thread.start()
    began.wait(60)
    server.process.kill()
    for thread in threads:
        thread.join(60)
    server.end()
    assert len(errors) == 64
    again = Process(folder, "--port", server.port)
    try:
        found = httpx.post(f"{again.url}/v1/completions", json={"model": "hybrid", "prompt": "the", "max_tokens": 3})
        assert found.status_code == 200
    finally:
        again.end()
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.slow
def test_a_full_disk_does_not_stop_answers(folder, tmp_path):
    """What is logged has no place any more; what is asked is answered."""
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))

    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-m", "interlace", "serve", str(folder), "--memory", "1GB", "--port", "0"]
        process = subprocess.Popen(words, stderr=log, stdout=subprocess.DEVNULL, preexec_fn=small_files)
    try:
        while not (found := re.search(r"at (http://\S+)/v1", (tmp_path / "log").read_text())):
            assert process.poll() is None
        for _ in range(12):
            body = {"model": "hybrid", "prompt": "the", "max_tokens": 3}
            assert httpx.post(f"{found[1]}/v1/completions", json=body, timeout=60).status_code == 200
        assert (tmp_path / "log").stat().st_size == 400
    finally:
        process.kill()
        process.wait()
