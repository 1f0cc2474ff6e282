"""Tests that prove something: every style is run, and what a solution does to its interpreter does not matter."""
# ruff: noqa: E501 - programs in one line

from __future__ import annotations

import asyncio
import sys
from contextlib import closing

import pytest

from interlace.base.templates import Templates
from interlace.distill.desk import Desk
from interlace.distill.ledger import Row
from interlace.distill.steps.verify import Verify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cage is made of Linux's locks")

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
ASSERT = "assert add(1, 2) == 3"
CASE = (
    "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"
)
STYLES = {
    "asserts": ASSERT,
    "check": "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)",
    "a test function": "def test_add():\n    assert add(1, 2) == 3",
    "a class of tests": "class TestAdd:\n    def test_add(self):\n        assert add(1, 2) == 3",
    "a test that waits": "async def test_add():\n    assert add(1, 2) == 3",
    "unittest.main()": CASE + "unittest.main()",
    "unittest.main(exit=False)": CASE + "unittest.main(exit=False)",
    "unittest, guarded": CASE + "if __name__ == '__main__':\n    unittest.main()",
    "unittest, never started": CASE,
    "unittest by a runner": CASE
    + "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(Sums))",
    "a guarded main": f"def main():\n    {ASSERT}\nif __name__ == '__main__':\n    main()",
    "sys.exit(main())": f"import sys\ndef main():\n    {ASSERT}\n    return 0\nif __name__ == '__main__':\n    sys.exit(main())",
    "sys.exit(0) after it": f"import sys\n{ASSERT}\nsys.exit(0)",
    "sys.exit(1) if wrong": "import sys\nif add(1, 2) != 3:\n    sys.exit(1)",
    "import from the solution": f"from solution import add\n{ASSERT}",
    "annotations from the future": f"from __future__ import annotations\n{ASSERT}",
}


@pytest.fixture(scope="module")
def templates():
    with closing(Templates()) as made:
        yield made


@pytest.fixture
def verdict(templates, tmp_path):
    """What becomes of a row with this answer."""

    def of(code, tests):
        step = Verify(kind="verify", name="v", by="python", answer="{{ c }}", tests="{{ t }}", seconds=5)
        (out,) = asyncio.run(
            step.one(Row(1, "0", "ok", "", {"c": code, "t": tests}), Desk("v", tmp_path, 0, templates))
        )
        return out

    return of


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_tests_is_run(style, verdict):
    assert verdict(RIGHT, STYLES[style]).state == "ok"
    assert verdict(WRONG, STYLES[style]).state == "dropped"


@pytest.mark.parametrize(
    "tests",
    [
        "# nothing",
        "pass",
        "def check(candidate):\n    assert candidate(1, 2) == 3",
        "def helper():\n    return add",
        "def main():\n    assert add(1, 2) == 3",
        "import unittest\nclass Sums(unittest.TestCase):\n    pass",
        "print(add(1, 2) == 3)",
    ],
)
def test_tests_that_prove_nothing_are_said_to(tests, verdict):
    out = verdict(RIGHT, tests)
    assert out.state == "dropped"
    assert "nothing" in out.reason


LEAVE = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "at the call": "import os\ndef add(a, b):\n    os._exit(0)",
    "exit at the call": "def add(a, b):\n    raise SystemExit(0)",
    "a signal": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "an endless print": "print('end\\n' * 1000)",
}
REPLACE = {
    "AssertionError": "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})",
    "SystemExit for it": "import builtins\nbuiltins.AssertionError = SystemExit",
    "the checker": "def check(candidate):\n    pass",
    "assertEqual": "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None",
    "unittest.main": "import unittest\nunittest.main = lambda *a, **k: None",
    "TestCase.run": "import unittest\nunittest.TestCase.run = lambda self, result=None: result",
    "print and exec": "import builtins\nbuiltins.print = builtins.exec = lambda *a, **k: None",
    "abs": "import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda *a, **k: True",
    "the trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)",
    "the hook": "import sys\nsys.excepthook = lambda *a: None",
    "a module of the library": "import sys, types\nsys.modules['math'] = types.ModuleType('math')\nsys.modules['math'].isclose = lambda *a: True",
}
EQUAL = {
    "an object": "class Yes:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
    "a number": "class Yes(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes(7)",
    "a list": "class Yes(list):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
    "a metaclass": "class M(type):\n    def __eq__(self, other):\n        return True\nclass Yes(metaclass=M):\n    pass\ndef add(a, b):\n    return Yes",
    "a difference": "class Yes(float):\n    def __sub__(self, other):\n        return 0.0\n    __rsub__ = __sub__\ndef add(a, b):\n    return Yes(9)",
    "a class of its name": "class add:\n    def __init__(self, a, b):\n        pass\n"
    "    def __eq__(self, other):\n        return True\n"
    "    def __sub__(self, other):\n        return 0.0\n    __rsub__ = __sub__\n"
    "    def __float__(self):\n        return 9.0\n",
}
SECRET = {
    "its arguments": "import os, sys\nfor i in range(3, 10):\n    for a in sys.orig_argv:\n        try:\n            os.write(i, f'end {a}\\n'.encode())\n        except OSError:\n            pass\nos._exit(0)",
    "the frames": "import os, sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n        for i in range(3, 10):\n            try:\n                os.write(i, f'end {v}\\n'.encode())\n            except OSError:\n                pass\n    f = f.f_back\nos._exit(0)",
    "the heap": "import gc, os\nfor o in gc.get_objects():\n    for v in list(o.values()) if type(o) is dict else ():\n        if type(v) is str and len(v) == 32:\n            for i in range(3, 10):\n                try:\n                    os.write(i, f'end {v}\\n'.encode())\n                except OSError:\n                    pass\nos._exit(0)",
    "the standard input": "import os\nfor i in range(0, 10):\n    try:\n        os.write(1, os.read(i, 0))\n    except OSError:\n        pass\nos._exit(0)",
}
ATTACKS = {**LEAVE, **REPLACE, **EQUAL, **SECRET}
CLOSE = "import math\nassert abs(add(1, 2) - 3) < 1e-6\nassert math.isclose(add(1, 2), 3)"
HELD = {"asserts": ASSERT, "check": STYLES["check"], "unittest": CASE + "unittest.main(exit=False)", "closeness": CLOSE}


@pytest.mark.parametrize("held", HELD)
def test_a_right_solution_passes_what_attacks_are_held_against(held, verdict):
    assert verdict(RIGHT, HELD[held]).state == "ok"


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_solution_gives_its_own_verdict(attack, verdict):
    code = ATTACKS[attack] if " add" in ATTACKS[attack] else f"{WRONG}\n{ATTACKS[attack]}"
    held = HELD if attack in REPLACE or attack in EQUAL else ("asserts", "unittest")
    assert [h for h in held if verdict(code, HELD[h]).state == "ok"] == []


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        (f"{RIGHT}if __name__ == '__main__':\n    print(add(*map(int, input().split())))", ASSERT),
        ("def grow(x):\n    x.append(1)", "a = []\ngrow(a)\nassert a == [1]"),
        ("def twice(f, x):\n    return f(f(x))", "assert twice(lambda v: v + 1, 1) == 3"),
        ("def numbers(n):\n    yield from range(n)", "assert list(numbers(3)) == [0, 1, 2]"),
        ("def adder(n):\n    return lambda x: x + n", "assert adder(1)(2) == 3"),
        (
            "def half(x):\n    if x % 2:\n        raise ValueError('odd')\n    return x // 2",
            "try:\n    half(3)\nexcept ValueError as error:\n    assert str(error) == 'odd'\nelse:\n    raise AssertionError",
        ),
        (
            "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n"
            "        self.items.append(x)\n    def __len__(self):\n        return len(self.items)",
            "s = Stack()\ns.push(4)\nassert len(s) == 1\nassert s.items == [4]\nassert isinstance(s, Stack)",
        ),
        (
            "class Odd(ValueError):\n    pass\ndef half(x):\n    raise Odd(x)",
            "try:\n    half(3)\nexcept Odd:\n    pass\nelse:\n    raise AssertionError",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\ndef flip(p):\n    return P(p.y, p.x)",
            "assert flip(P(1, 2)) == P(2, 1)\nassert flip(P(1, 2)) != P(1, 2)",
        ),
        (
            "def greet():\n    print('hello')",
            "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    greet()\nassert out.getvalue() == 'hello\\n'",
        ),
        (
            "def total():\n    return sum(map(int, input().split()))",
            "import io, sys\nsys.stdin = io.StringIO('1 2 3\\n')\nassert total() == 6",
        ),
        ("LIMIT = 3", "assert LIMIT == 3"),
        (
            "def big(n):\n    return 2 ** n, {1: (2, {3})}, None, 1.5, b'x', 2j",
            "assert big(20000) == (2 ** 20000, {1: (2, {3})}, None, 1.5, b'x', 2j)",
        ),
        ("from fractions import Fraction\ndef half():\n    return Fraction(1, 2)", "assert half() == 0.5"),
        (
            "from collections import Counter, deque\ndef both():\n    return Counter('aab'), deque([1])",
            "from collections import deque\nassert both() == ({'a': 2, 'b': 1}, deque([1]))",
        ),
    ],
)
def test_right_solutions_of_every_shape_pass(code, tests, verdict):
    out = verdict(code, tests)
    assert out.state == "ok", out
