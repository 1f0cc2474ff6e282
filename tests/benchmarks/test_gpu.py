"""`benchmarks/gpu.py` says as much as it can: on a machine without a GPU, and when its processes die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
PLAIN = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def run(*arguments, **more):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=PLAIN, **more)


@pytest.mark.slow
def test_pretending_reports_every_section(tmp_path):
    """Nothing fails for want of anything but a GPU; the time that it keeps is longer, for a busy machine."""
    file = tmp_path / "gpu.json"
    done = run(SCRIPT, "--pretend", "--tune", "--minutes", "10", "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.splitlines()
    assert printed[0].startswith("PRETENDING")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["pretend"]
    assert found["ended"]
    assert not found["failures"]
    lines = found["lines"]
    sections = ["machine", "first calls", "checks", "operators", "models", "tune first calls", "tune", "peers"]
    assert list(dict.fromkeys(line["section"] for line in lines)) == sections
    rest = iter(printed)
    for line in lines:
        words = line.get("part") or line["label"]
        assert any(words in shown and shown.endswith(line["text"]) for shown in rest), line
        assert line.get("ms", 1) > 0
        assert line.get("floor_ms", 1) > 0
    measured = {(line["label"], line.get("part")) for line in lines if "ms" in line}
    assert len(measured) == sum("ms" in line for line in lines)
    operators = {line["label"].split()[0] for line in lines if line["section"] == "operators"}
    assert {line["label"].split()[0] for line in lines if line["section"] == "checks"} <= {*operators, "total"}
    assert not list(tmp_path.glob("gpu.json?*"))


@pytest.mark.slow
def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(SCRIPT)
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert "--pretend" in done.stdout


FAULTY = """
import ctypes, os, time
import gpu_crew

def says(facts):
    yield {"text": "said", "facts": {"known": facts.get("known", 0) + 1}}

def raises(facts):
    yield {"text": "before"}
    raise ValueError("wrong\\nsecond line")

def skips(facts):
    raise gpu_crew.Skip("nothing to do")
    yield

def dies(facts):
    yield {"text": "last words"}
    os._exit(3)

def hangs(facts):
    yield {"text": "still here"}
    time.sleep(600)
"""
DRIVER = """
import time
from gpu import Report
from gpu_crew import Crew
from gpu_jobs import Job

if __name__ == "__main__":
    report = Report(None, True)
    crew = Crew(report.say, {"pretend": True, "found": []}, time.monotonic() + 300)
    names = ["says", "raises", "skips", "dies", "says", "hangs", "says"]
    limits = {"hangs": 15}
    jobs = [Job("operators", f"{i} {n}", f"faulty:{n}", seconds=limits.get(n, 60)) for i, n in enumerate(names)]
    jobs.append(Job("peers", "absent", "faulty:says", needs="absent"))
    crew.run(jobs, 1, time.monotonic() + 200)
    late = [Job("operators", "late", "faulty:says")]
    crew.run(late, 1, time.monotonic() - 1)
    workers = list(crew.workers)
    crew.end()
    assert not any(w.process.is_alive() for w in workers)
    assert crew.facts["known"] == 3
    raise SystemExit(report.end())
"""


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_loses_one_job(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    path = os.pathsep.join((str(SCRIPT.parent), PLAIN.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py"], capture_output=True, text=True, env={**PLAIN, "PYTHONPATH": path}
    )
    assert done.returncode == 1, done.stderr
    out = done.stdout
    assert out.count("said") == 3
    assert "FAILED operators: 1 raises: ValueError: wrong\n" in out
    assert "FAILED operators: 3 dies: the process ended with code 3" in out
    assert "FAILED operators: 5 hangs: it took more than 15 s" in out
    assert "skipped: nothing to do" in out
    assert "skipped: absent is not installed" in out
    assert "skipped: no time is left" in out
    assert all(words in out for words in ("before", "last words", "still here"))
