"""Numbers, expressions and the cage."""

from __future__ import annotations

import os
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.distill.steps.ask import CHECKS
from interlace.distill.steps.verify import SYMBOLS
from interlace.sandbox import cage
from interlace.sandbox.worker import OutOfBounds, Refused, Worker
from interlace.verify.code import code_of
from interlace.verify.expressions import same
from interlace.verify.numbers import all_numbers, final_number, same_number

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cage is made of Linux's locks")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", 1234),
        ("So 5 + 6 = 11", 11),
        ("The answer is $3.50.", Fraction(7, 2)),
        ("The answer is 7 apples and 3 pears.", 7),
        ("12 + 1 = 13\n#### 13\n", 13),
        (r"thus \boxed{\frac{3}{4}}", Fraction(3, 4)),
        ("1 1/2 cups", Fraction(3, 2)),
        ("-5", -5),
        ("−7 degrees", -7),
        ("-$5", -5),
        ("$-5", -5),
        ("10%", 10),
        ("1e3", 1000),
        ("2.5E-2", Fraction(1, 40)),
        ("room 12b", None),
        ("version 2.0.1", None),
        ("3 / 0", None),
        ("nothing here", None),
        ("**Answer: 42**", 42),
        ("1,23 and 4", 4),
        ("x = .5", Fraction(1, 2)),
        ("To answer the question, we add 5 apples and 15 more. 5 + 15 = 20", 20),
        ("The answer to question 3 is 12.", 12),
        ("Answer: 12\nNote: this answer assumes 365 days.", 12),
        ("####\n42\nDone in 7 steps", 42),
        ("He ran 3 laps. The answer is 12km.", 12),
        ("5kg", 5),
        ("5m/s", 5),
        ("$5k", 5000),
        ("\\boxed{3\\frac{1}{2}}", Fraction(7, 2)),
        ("\\frac12", Fraction(1, 2)),
        ("\\frac{1}{-2}", Fraction(-1, 2)),
        ("\\boxed{2\\sqrt{3}}", None),
        ("\\boxed{2^{10}}", None),
        ("The answer is 3 \\times 10^8", 300000000),
        ("\\boxed{\\frac{7\\pi}{2}}", None),
        ("1.5 million", 1500000),
        ("1 000 000", 1000000),
        ("1e999", None),
        ("the answer is –5", -5),
        ("½", Fraction(1, 2)),
        ("3½ cups", Fraction(7, 2)),
        ("\\boxed{\\text{no solution}} since n = 4 fails", None),
        ("#### Step 1\n3 + 4 = 7\n#### Step 2\nThe answer is 9.", 9),
        ("**Final Answer:** 17", 17),
        ("**Answer**: $1,250.50", Fraction(2501, 2)),
        ("Let me find the answer: we have 48 clips. So she sold 72 clips.", 72),
        ("The final answer is: $\\boxed{42}$", 42),
        ("Therefore, the answer is **18** dollars.", 18),
        ("- 5 apples", 5),
        ("10 - 4 = 6", 6),
        ("The answer is x = 5", 5),
        ("\\boxed{3, 5}", None),
        ("the answer is\n\n**7**", 7),
        ("So the answer is $18 per day.", 18),
        ("answer is -3", -3),
        ("The answer is (5).", 5),
        ("range 3–5", 5),
        ("50%", 50),
        ("The answer is .5", Fraction(1, 2)),
        ("The answer = 8", 8),
        ("at 5pm", 5),
        ("1st", 1),
        ("Thus, the answer: 12", 12),
        ("The answer is 2 + 3 = 5 apples", 5),
        ("٣", 3),
        ("The answer is about 3/4 of it", Fraction(3, 4)),
        ("The answer is 20 minutes.", 20),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert final_number(text) == number


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${:,}", "#### {:,}", "it is {}."]))
def test_integers_are_read_back_however_they_are_written(value, form):
    assert final_number(form.format(value)) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_decimals_are_read_exactly(value):
    assert final_number(f"the answer is {value:f} litres") == Fraction(value)
    assert same_number(f"{value:f}", f"{value + 1:f}") == (False, "another number")


def test_a_tolerance_is_relative():
    assert same_number("3.14", "3.1416")[0] is False
    assert same_number("3.14", "3.1416", 1e-3)[0]
    assert same_number("nothing", "3") == (False, "the answer holds no number")
    assert all_numbers("1 2,000 3.5") == [1, 2000, Fraction(7, 2)]


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        ("2x+2", "2(x+1)", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("x = 3", "3", True),
        ("(1, 2)", "(1,2)", True),
        ("(2, 1)", "(1,2)", False),
        ("sin(x)**2 + cos(x)^2", "1", True),
        (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2", True),
        ("x^2 - 1", "(x-1)(x+1)", True),
        ("x^2 + 1", "(x-1)(x+1)", False),
        ("2^{10}", "1024", True),
        (r"3\pi", "3*pi", True),
        ("pi", "3.14159", False),
        (r"\text{No}", "No", True),
        ("Yes", "No", False),
        ("__import__('os').system('id')", "1", False),
        ("().__class__", "1", False),
        ("9**9**9**9", "1", False),
        ("lambda: 1", "1", False),
        ("3\\frac{1}{2}", "3/2", False),
        ("3\\frac{1}{2}", "7/2", True),
        ("(100,200)", "100200", False),
        ("(1,234)", "1234", False),
        ("(100,200)", "(100, 200)", True),
        ("2xy", "2*x*y", True),
        ("xy", "y*x", True),
        ("2\\pi r", "2*pi*r", True),
        ("\\sin x", "sin(x)", True),
        ("\\ln x", "log(x)", True),
        ("\\log_2 8", "3", True),
        ("|x|", "Abs(x)", True),
        ("3!", "6", True),
        ("\\binom{5}{2}", "10", True),
        ("12\\text{ cm}", "12", True),
        ("5 cm", "5", True),
        ("The answer is \\(5\\).", "5", True),
        ("**5**", "5", True),
        ("\\textbf{B}", "B", True),
        ("[0,1)", "[0, 1)", True),
        ("No solution", "no solution", True),
        ("{1,2}", "{2,1}", True),
        ("\\{1,2\\}", "\\{2, 1\\}", True),
        ("{1,2}", "{1,3}", False),
        ("cbrt(8)", "2", True),
        ("2**3", "8", True),
        ("1,234", "1234", True),
        ("\\frac{1}{2}", "1/2", True),
        ("x\\frac{1}{2}", "x/2", True),
        ("2**(1/2)", "sqrt(2)", True),
        ("a*b**2", "ab^2", True),
        ("\\frac12", "0.5", True),
        ("3\\frac12", "3.5", True),
        ("12\\frac{3}{4}", "12.75", True),
        ("\\frac{11}{2}", "5.5", True),
        ("xyz", "x*y*z", True),
        ("5 m", "5", True),
        ("x m", "x", False),
        ("\\boxed{12}", "12", True),
    ],
)
def test_expressions_are_compared_as_mathematics(answer, gold, right):
    assert same(answer, gold)[0] is right


def test_checks_that_do_not_end_are_stopped():
    worker = Worker(CHECKS, 1.0)
    start = time.monotonic()
    with pytest.raises(OutOfBounds, match="longer than 1 seconds"):
        worker.ask({"do": "pattern", "pattern": "(a+)+$", "text": "a" * 60 + "b"})
    assert time.monotonic() - start < 5
    assert worker.ask({"do": "pattern", "pattern": "a+b", "text": "xaab"}) == [True, ""]
    assert worker.ask({"do": "fit", "schema": {"type": "integer"}, "text": "3"}) == [3, ""]
    assert "not of type" in worker.ask({"do": "fit", "schema": {"type": "integer"}, "text": '"3"'})[1]
    with pytest.raises(OutOfBounds):
        worker.ask({"do": "fit", "schema": {"pattern": "^(a+)+$"}, "text": '"' + "a" * 60 + 'b"'})
    with pytest.raises(Refused):
        worker.ask({"do": "fit", "schema": {"$ref": "https://nowhere.invalid/x"}, "text": "3"})
    worker.close()
    slow = Worker(SYMBOLS, 0.3)  # its start, which takes longer, does not count
    assert slow.ask({"answer": "x + x", "gold": "2x"}) == [True, ""]
    slow.close()


def test_the_code_of_an_answer():
    assert code_of("x = 1") == "x = 1"
    assert (
        code_of("Run it:\n```bash\npip install y\n```\nNow the code:\n```Python3\nx = 1\n```\nIt prints\n```\n1\n```\n")
        == "x = 1"
    )
    assert code_of("```py\r\nx = 1\r\n```\r\nand\r\n```python\r\ny = 2\r\n```") == "x = 1\n\ny = 2"
    assert code_of("```\nfirst\n```\n```\nx = 3\n```") == "first\n\nx = 3"
    assert code_of("so:\n```python\nx = 1\n") == "x = 1\n"
    assert code_of("```python\nx = 1\n```\n```python\n>>> x\n1\n```") == "x = 1"


LIMITS = cage.CageLimits(seconds=2.0, memory_bytes=256 << 20)


@linux
@pytest.mark.parametrize(
    ("source", "kind", "why"),
    [
        ("assert sum([1, 2]) == 3", "passed", ""),
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("import os\nwhile True: os.fork()", "failed", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "failed", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "failed", "PermissionError"),
        ("import time; time.sleep(60)", "time", ""),
        ("while True: pass", "time", ""),
        ("x = []\nwhile True: x.append('a' * 10**7)", "memory", ""),
        ("x = bytearray(10**11)", "memory", ""),
        ("open('{outside}', 'w')", "failed", "PermissionError"),
        ("import os; os.rename('{outside}', 'x')", "failed", "PermissionError"),
        ("import os; os.chmod('{folder}', 0o777)", "failed", "PermissionError"),
        ("open('/etc/passwd').read()", "failed", "PermissionError"),
        ("open('/proc/self/environ').read()", "failed", "PermissionError"),
        ("import os; open('x', 'w').write('y'); assert open('x').read() == 'y'; os.remove('x')", "passed", ""),
        ("import os; os.mkdir('d')", "failed", "PermissionError"),
        ("import os; os._exit(97)", "ended early", "97"),
        ("import os; os.kill(os.getpid(), 40)", "killed", "by signal 40"),
        ("import os; os.truncate('{outside}', 0)", "failed", "PermissionError"),
        ("import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, 1)", "failed", "PermissionError"),
        ("import fcntl; fcntl.fcntl(0, 10, 9)", "failed", "PermissionError"),
        ("import fcntl; assert fcntl.fcntl(0, fcntl.F_GETFD) >= 0", "passed", ""),
        ("import os; os.sched_setaffinity(os.getppid(), {0})", "failed", "PermissionError"),
        ("import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == -1", "passed", ""),
        (
            "import asyncio\nasync def f(): return await asyncio.to_thread(sum, [1, 2])\nassert asyncio.run(f()) == 3",
            "passed",
            "",
        ),
        ("import socket; a, b = socket.socketpair(); a.sendto(b'x', ('127.0.0.1', 9))", "failed", ""),
        ("if __name__ == '__main__': input()", "passed", ""),
        ("import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A", "passed", ""),
        (
            "import unittest\nclass T(unittest.TestCase):\n def test(self): pass\nunittest.main(exit=False)",
            "passed",
            "",
        ),
        ("import os; os.symlink('/etc/passwd', 'p'); open('p')", "failed", "PermissionError"),
        ("import socket; socket.socket()", "failed", "PermissionError"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1')", "failed", ""),
        ("while True: print('x' * 10**6)", "output", ""),
        ("i = 0\nwhile True:\n open(str(i), 'w').write('x' * 900000)\n i += 1", "files", ""),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "failed", "PermissionError"),
        ("import os, signal; os.kill(-1, signal.SIGKILL)", "failed", "PermissionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", "SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
        ("import sys; sys.exit(0)", "ended early", ""),
        ("import os; os._exit(0)", "ended early", ""),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "failed", ""),
        ("import threading; t = threading.Thread(target=print); t.start(); t.join()", "passed", ""),
        ("def f(): f()\nf()", "failed", "RecursionError"),
        ("x = (", "failed", "SyntaxError"),
        ("import json, math, re, random, datetime, collections, hashlib, decimal, asyncio, typing", "passed", ""),
    ],
)
def test_the_cage_holds(source, kind, why, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    before = tmp_path.stat().st_mode
    found = cage.run(source.replace("{outside}", str(outside)).replace("{folder}", str(tmp_path)), LIMITS)
    assert (found.kind, why in found.why) == (kind, True), found
    assert outside.read_text() == "precious"
    assert tmp_path.stat().st_mode == before
    assert found.seconds < 6
    assert os.getppid() > 0


@linux
def test_the_cage_is_there_and_says_if_it_is_not(monkeypatch, tmp_path):
    assert cage.available() == ""
    broken = tmp_path / "child.py"
    broken.write_text(cage.CHILD.read_text().replace("= 444, 445, 446", "= 999, 445, 446"))
    monkeypatch.setattr(cage, "CHILD", broken)
    with pytest.raises(Exception, match=r"cannot be locked in on this system \(OSError: .*Function not implemented"):
        cage.run("print(1)")


@linux
def test_secrets_of_ours_do_not_reach_a_program(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "secret")
    assert cage.run("import os; assert 'MY_API_KEY' not in os.environ").kind == "passed"
