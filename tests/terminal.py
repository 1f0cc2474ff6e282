"""Runs a verb in a pseudo-terminal, presses keys when a line was seen, and keeps the screen and the exit code."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

CTRL_C, CTRL_D = "\x03", "\x04"
MARKS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Terminal:
    """A verb in a terminal of its own: its group is in the foreground, so that Ctrl-C reaches its children too."""

    def __init__(
        self,
        arguments,
        columns=100,
        rows=40,
        seconds=40.0,
        cwd=None,
        code="from interlace.cli.main import main; main()",
    ):
        self.seconds, self.screen = seconds, ""
        self._file, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}

        def own_terminal():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=cwd,
            close_fds=True,
            preexec_fn=own_terminal,
            env=environment | {"TERM": "xterm", "OMP_NUM_THREADS": "1"},
        )
        os.close(inner)

    def press(self, keys):
        os.write(self._file, keys.encode())

    def press_until_end(self, keys, every_seconds=1.0):
        """Press again while nothing ends: a key that comes between a prompt and its reading is lost. The exit code."""
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            self.press(keys)
            until = time.monotonic() + every_seconds
            while time.monotonic() < until:
                if not self._read(0.1):
                    return self.process.wait(timeout=self.seconds)
        raise AssertionError(f"it did not end; the screen:\n{self.text}")

    @property
    def text(self):
        """The screen's text without marks of colour and place."""
        return MARKS.sub("", self.screen).replace("\r\n", "\n")

    def _read(self, seconds):
        if not select.select([self._file], [], [], seconds)[0]:
            return True
        try:
            part = os.read(self._file, 1 << 16)
        except OSError as error:  # Linux: the other end is closed
            if error.errno != errno.EIO:
                raise
            return False
        self.screen += part.decode("utf-8", "replace")
        return bool(part)

    def until(self, pattern, after=0):
        """Wait until a pattern is on the screen; returns where the text after it begins."""
        deadline = time.monotonic() + self.seconds
        while not (found := re.compile(pattern).search(self.text, after)):
            if time.monotonic() > deadline or not self._read(0.2):
                raise AssertionError(f"{pattern!r} was not seen; the screen:\n{self.text}")
        return found.end()

    def end(self):
        """Wait for the end; the exit code (a signal's number is negative)."""
        deadline = time.monotonic() + self.seconds
        while self._read(0.2):
            if time.monotonic() > deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise AssertionError(f"it did not end; the screen:\n{self.text}")
        return self.process.wait(timeout=self.seconds)

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._file)


def ends_well(screen, code, *, last):
    """One sentence at the end, no trace of Python, and the cursor is there again."""
    assert code == 130, screen.text
    assert "Traceback" not in screen.text
    assert re.search(last, screen.text.strip().splitlines()[-1]), screen.text[-500:]
    assert screen.screen.rfind("\x1b[?25h") >= screen.screen.rfind("\x1b[?25l")
