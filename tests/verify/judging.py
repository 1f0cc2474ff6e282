"""Many programs judged by their tests in one process and its forks, without cages: what counts as a check."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile

from interlace.sandbox import cage

SECONDS = 5


def judged(pairs):
    """["passed" or "failed" or "nothing", why] of each pair of a solution and its tests."""
    run = [sys.executable, __file__]
    with tempfile.TemporaryDirectory(prefix=cage.PREFIX) as folder:
        done = subprocess.run(
            run, input=json.dumps(pairs), capture_output=True, text=True, timeout=120, check=True, cwd=folder
        )
    return json.loads(done.stdout)


def one(solution, tests):
    """A process for each side, as `programs.check` has them."""
    from interlace.verify import solution_child, tests_child

    to_solution, from_tests = os.pipe()
    to_tests, from_solution = os.pipe()
    said, say = os.pipe()
    sides = (
        (lambda: solution_child.serve(solution, to_solution, from_solution), (from_tests, to_tests, say)),
        (lambda: tests_child.judge(tests, to_tests, from_tests, "word"), (from_solution, to_solution)),
    )
    started = []
    for serve, others in sides:
        started.append(os.fork())
        if not started[-1]:
            for other in others:
                os.close(other)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            signal.alarm(SECONDS)
            try:
                serve()
                os.write(say, b"passed\n")
            except BaseException as error:
                kind = "nothing" if type(error).__name__ == "ProvesNothing" else "failed"
                os.write(say, f"{kind}\n{type(error).__name__}: {error}".encode("utf-8", "replace"))
            os._exit(0)
    for end in (to_solution, from_tests, to_tests, from_solution, say):
        os.close(end)
    for process in reversed(started):
        os.waitpid(process, 0)
    with os.fdopen(said) as text:
        kind, _, why = text.read().partition("\n")
    return [kind or "ended", why]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([one(*pair) for pair in json.load(sys.stdin)]))
