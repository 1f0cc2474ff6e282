"""Processes that start in no time: one has imported everything, and forks another for each script that it is given."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

# Its children are reaped by the system, and talk by named pipes.
SERVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
for name in json.loads(sys.argv[1]):
    __import__(name)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("warm", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.stdout, sys.stdin, status = open(job["out"], "w"), open(job["in"]), 1
    sys.argv = ["-c", *job["arguments"]]
    try:
        exec(job["script"], {"__name__": "__main__"})
        status = 0
    finally:
        sys.stdout.write(f"exit {status}\\n")
        sys.stdout.flush()
        os._exit(status)
"""


class Warm:
    """A process that has imported some modules."""

    def __init__(self, modules):
        """modules: names."""
        command = [sys.executable, "-c", SERVER, json.dumps(modules)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "warm\n"

    def start(self, script, arguments, folder):
        """A new process that runs a script; its pipes are made in `folder`."""
        number = len(list(folder.glob("*.out")))
        pipes = {name: folder / f"{number}.{name}" for name in ("in", "out")}
        for pipe in pipes.values():
            os.mkfifo(pipe)
        job = {"script": script, "arguments": list(arguments), **{name: str(pipe) for name, pipe in pipes.items()}}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), pipes)

    def close(self):
        """End it."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Child:
    """A process that `Warm` started; it answers as one of subprocess.Popen does."""

    def __init__(self, pid, pipes):
        """pid: of the process; pipes: "in" and "out", which it opens in the other order."""
        self.pid, self._handle = pid, os.pidfd_open(pid)
        self.stdout = open(pipes["out"])  # noqa: SIM115 - closed by close()
        self.stdin = open(pipes["in"], "w")  # noqa: SIM115
        self.returncode = None

    def wait(self):
        """Wait for its end; its exit status, as it said it itself."""
        if self.returncode is None:
            said = [line for line in self.stdout.read().splitlines() if line.startswith("exit ")]
            select.select([self._handle], [], [])
            self.returncode = int(said[-1].split()[1]) if said else -signal.SIGKILL
        return self.returncode

    def kill(self):
        """End it by SIGKILL."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self):
        """Close its pipes."""
        self.stdout.close()
        self.stdin.close()
        os.close(self._handle)
