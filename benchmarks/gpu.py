"""What a single GPU does with interlace, in under four minutes: checks, operators, a model, and peers in the same run.

    python benchmarks/gpu.py [--minutes 4] [--json FILE] [--tune] [--only operators,models] [--pretend]

Each line comes as soon as it is known, and FILE is written anew after each. Work runs in processes that may hang or
crash: the line that was lost is named, and the rest goes on. `--pretend` runs everything on the CPU, Triton's kernels
by its interpreter, on tiny shapes. docs/performance.md says what the lines mean. Exit codes: 1 if anything failed, 2
without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_crew import Crew
from gpu_jobs import Job, phases

ABOUT = {
    "machine": "what runs here, and the two ceilings that floors are computed from",
    "first calls": "kernels compiled, and compared by their self-check with the recurrence at these sizes of heads",
    "checks": "the Triton kernels against the float64 recurrence: worst error of values, of gradients, and the limit",
    "operators": "bfloat16, medians; x floor: how many times the least that bytes or operations allow",
    "models": "a hybrid with random weights; training in bfloat16 on float32 weights, decoding in bfloat16",
    "tune first calls": "configurations compiled",
    "tune": "gated_delta by configuration: chunk, values, warps, stages; keys, columns, warps of gradients",
    "peers": "theirs on the same inputs; ratio: their time by ours",
}
COMPILING = ("first calls", "checks", "tune first calls")
EACH = 5 << 30  # bytes of the GPU's memory for a process that compiles
SHARE = 0.5  # of the time that is left, which kernels may be compiled for


class Report:
    """Everything said so far, on standard output and in a file.

    Attributes:
        lines, failures, skipped: as JSON has them.
    """

    def __init__(self, file: Path | None, pretend: bool) -> None:
        """file: rewritten after each line; None for none."""
        self.file, self.pretend, self.start = file, pretend, time.monotonic()
        self.lines: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.skipped: list[str] = []
        self.section = self.label = ""
        self.ended = False

    def say(self, job: Job, found: dict[str, Any]) -> None:
        """Print what a job found; of its end, only what went wrong."""
        if found.pop("end", False):
            label = f"{job.section}: {job.label}"
            if error := found.get("error"):
                self.failures.append(f"{label}: {error}")
                self.print(job, {"text": f"FAILED after {found['seconds']:.0f} s: {error}", "failed": True})
            elif reason := found.get("skipped"):
                self.skipped.append(f"{label}: {reason}")
                self.print(job, {"text": f"skipped: {reason}", "skipped": True})
            return
        if found.get("good") is False:
            self.failures.append(f"{job.section}: {job.label}: {found['text']}")
        if place := found.pop("beside", None):
            self.compare(found, *place)
        self.print(job, found)

    def compare(self, found: dict[str, Any], label: str, part: str) -> None:
        """Add the ratio to our line of this label and part, if there is one."""
        ours = next((r for r in self.lines if r["label"] == label and r.get("part") == part and "ms" in r), None)
        if ours is not None and "ms" in found:
            found["ratio"] = found["ms"] / ours["ms"]
            found["text"] += f"; {found['ratio']:.2f} x ours"

    def print(self, job: Job, found: dict[str, Any]) -> None:
        """Print a line, with its section's title before the first of it, and write the file."""
        if job.section != self.section:
            self.section, self.label = job.section, job.section
            print(f"\n{job.section}: {ABOUT[job.section]}", flush=True)
        found["text"] = found["text"].strip()
        if part := found.get("part"):
            if job.label != self.label:
                print(f"  {job.label}", flush=True)
            print(f"    {part:<20}  {found['text']}", flush=True)
        else:
            print(f"  {job.label:<34}  {found['text']}", flush=True)
        self.label = job.label
        self.lines.append({"section": job.section, "label": job.label, "at_seconds": self.seconds, **found})
        self.write()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return round(time.monotonic() - self.start, 2)

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if self.file is None:
            return
        found = {"pretend": self.pretend, "seconds": self.seconds, "ended": self.ended}
        found |= {"failures": self.failures, "skipped": self.skipped, "lines": self.lines}
        handle, name = tempfile.mkstemp(dir=self.file.resolve().parent, prefix=self.file.name)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=1)
        os.replace(name, self.file)

    def compiled(self) -> None:
        """Print how long first calls took, all processes together."""
        took = [r["first_seconds"] for r in self.lines if r["section"] in COMPILING and "first_seconds" in r]
        text = f"{sum(took):.0f} s in {len(took)} first calls, processes added; {self.seconds:.0f} s since the start"
        self.print(Job(self.section, "total", ""), {"text": text, "first_seconds_total": sum(took)})

    def end(self) -> int:
        """Print how it went; return the exit code."""
        self.ended = True
        self.write()
        print(f"\n{len(self.lines)} lines in {self.seconds:.0f} s; {len(self.skipped)} skipped", flush=True)
        for failure in self.failures:
            print(f"FAILED {failure}", flush=True)
        return int(bool(self.failures))


def chosen(jobs: list[Job], words: list[str]) -> list[Job]:
    """Return the jobs whose section or label holds one of the words; always the machine's."""
    return [j for j in jobs if not words or j.section == "machine" or any(w in f"{j.section} {j.label}" for w in words)]


def together(facts: dict[str, Any], options: argparse.Namespace) -> int:
    """Return how many processes compile at a time: as many as there are cores, and as the GPU's memory holds."""
    if options.processes is not None:
        return options.processes
    held = facts.get("memory_bytes", 16 * EACH) // EACH
    return max(1, min(16, (os.cpu_count() or 1) - 2, held))


def measure(report: Report, options: argparse.Namespace) -> int:
    """Do all phases within the time."""
    deadline = report.start + 60 * options.minutes
    crew = Crew(report.say, {"pretend": options.pretend}, deadline)
    words = [word for word in options.only.split(",") if word]
    try:
        for at_once, jobs in phases(options.pretend, options.tune):
            if not (wanted := chosen(jobs, words)):
                continue
            now = time.monotonic()
            until = now + SHARE * (deadline - now) if at_once else deadline - 3
            crew.run(wanted, together(crew.facts, options) if at_once else 1, until)
            if at_once:
                report.compiled()
    except KeyboardInterrupt:
        print("ended by Ctrl-C", flush=True)
        report.failures.append("ended by Ctrl-C")
    finally:
        crew.end()
    return report.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="what no longer fits is skipped, and named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--only", default="", help="words of sections or labels, with commas")
    parser.add_argument("--processes", type=int, help="that compile at a time; the default depends on the cores")
    parser.add_argument("--tune", action="store_true", help="time configurations of gated_delta's kernels too")
    parser.add_argument("--pretend", action="store_true", help="on the CPU, on tiny shapes")
    options = parser.parse_args()
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.resolve().parent}")
    if options.pretend:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
        print("PRETENDING: measured on this CPU, tiny shapes, Triton interpreted; says nothing about a GPU", flush=True)
    else:
        import torch

        if not torch.cuda.is_available():
            print(f"there is no GPU that torch {torch.__version__} can use; --pretend runs everything on the CPU")
            return 2
    return measure(Report(options.json, options.pretend), options)


if __name__ == "__main__":
    sys.exit(main())
