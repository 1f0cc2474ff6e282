"""Tests that prove something: every style is run, and what a solution does to its interpreter does not matter."""
# ruff: noqa: E501 - programs in one line

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import closing

import pytest

from interlace.distill.desk import Desk
from interlace.distill.ledger.records import Row
from interlace.distill.steps.verify import Verify
from interlace.sandbox import cage
from interlace.sandbox.templates import Templates
from interlace.verify import programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cage is made of Linux's locks")

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
ASSERT = "assert add(1, 2) == 3"
CASE = (
    "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"
)

STYLES = {
    "asserts": "assert add(1, 2) == 3",
    "check": "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)",
    "a test function": "def test_add():\n    assert add(1, 2) == 3",
    "a class of tests": "class TestAdd:\n    def test_add(self):\n        assert add(1, 2) == 3",
    "a test that waits": "async def test_add():\n    assert add(1, 2) == 3",
    "unittest.main()": "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\nunittest.main()",
    "unittest.main(exit=False)": "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\nunittest.main(exit=False)",
    "unittest, guarded": "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\nif __name__ == '__main__':\n    unittest.main()",
    "unittest, never started": "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n",
    "unittest by a runner": "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\nunittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(Sums))",
    "a guarded main": "def main():\n    assert add(1, 2) == 3\nif __name__ == '__main__':\n    main()",
    "sys.exit(main())": "import sys\ndef main():\n    assert add(1, 2) == 3\n    return 0\nif __name__ == '__main__':\n    sys.exit(main())",
    "sys.exit(0) after it": "import sys\nassert add(1, 2) == 3\nsys.exit(0)",
    "sys.exit(1) if wrong": "import sys\nif add(1, 2) != 3:\n    sys.exit(1)",
    "import from the solution": "from solution import add\nassert add(1, 2) == 3",
    "annotations from the future": "from __future__ import annotations\nassert add(1, 2) == 3",
    "pytest, from another module": "import pytest\nfrom my_module import add\n@pytest.mark.parametrize('a, b', [(1, 2), (2, 1)])\ndef test_add(a, b):\n    assert add(a, b) == pytest.approx(3)",
    "unittest, guarded, by a suite": "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\nif __name__ == '__main__':\n    suite = unittest.TestSuite([Sums('test_add')])\n    unittest.TextTestRunner().run(suite)",
}

NOTHING = [
    "# nothing",
    "pass",
    "def check(candidate):\n    assert candidate(1, 2) == 3",
    "def helper():\n    return add",
    "def main():\n    assert add(1, 2) == 3",
    "import unittest\nclass Sums(unittest.TestCase):\n    pass",
    "print(add(1, 2) == 3)",
    "def test_add():\n    add(1, 2)",
    "import unittest\nclass Sums(unittest.TestCase):\n    def test_add(self):\n        add(1, 2)",
    "for x in []:\n    assert add(x, 1) == x + 1",
    "import pytest\n@pytest.mark.skip\ndef test_add():\n    assert add(1, 2) == 3",
    "def test_add(mocker):\n    assert add(1, 2) == 3",
]

# ways to the solution's end of the pipe, which it shares an interpreter with
END = "import sys,gc\nex=sys.modules['interlace.verify.exchange']\nw=[o for o in gc.get_objects() if type(o) is ex.Wire][0]\n"
CLOSE = "import math\nassert abs(add(1, 2) - 3) < 1e-6\nassert math.isclose(add(1, 2), 3)"
ATTACKS = {
    "sys.exit": (WRONG + "\nimport sys\nsys.exit(0)", ASSERT),
    "os._exit": (WRONG + "\nimport os\nos._exit(0)", ASSERT),
    "at the call": ("import os\ndef add(a, b):\n    os._exit(0)", ASSERT),
    "exit at the call": ("def add(a, b):\n    raise SystemExit(0)", ASSERT),
    "a signal": (WRONG + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGTERM)", ASSERT),
    "a thread": (WRONG + "\nimport os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()", ASSERT),
    "atexit": (WRONG + "\nimport atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)", ASSERT),
    "an endless print": (WRONG + "\nprint('end\\n' * 1000)", ASSERT),
    "AssertionError": (WRONG + "\nimport builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})", ASSERT),
    "SystemExit for it": (WRONG + "\nimport builtins\nbuiltins.AssertionError = SystemExit", ASSERT),
    "the checker": (WRONG + "\ndef check(candidate):\n    pass", STYLES["check"]),
    "assertEqual": (
        WRONG + "\nimport unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None",
        CASE + "unittest.main(exit=False)",
    ),
    "unittest.main": (
        WRONG + "\nimport unittest\nunittest.main = lambda *a, **k: None",
        CASE + "unittest.main(exit=False)",
    ),
    "TestCase.run": (
        WRONG + "\nimport unittest\nunittest.TestCase.run = lambda self, result=None: result",
        CASE + "unittest.main(exit=False)",
    ),
    "print and exec": (WRONG + "\nimport builtins\nbuiltins.print = builtins.exec = lambda *a, **k: None", ASSERT),
    "abs": (WRONG + "\nimport builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda *a, **k: True", CLOSE),
    "the trace": (WRONG + "\nimport sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)", ASSERT),
    "the hook": (WRONG + "\nimport sys\nsys.excepthook = lambda *a: None", ASSERT),
    "a module of the library": (
        WRONG
        + "\nimport sys, types\nsys.modules['math'] = types.ModuleType('math')\nsys.modules['math'].isclose = lambda *a: True",
        CLOSE,
    ),
    "an object": (
        "class Yes:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
        ASSERT,
    ),
    "a number": (
        "class Yes(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes(7)",
        CLOSE,
    ),
    "a list": (
        "class Yes(list):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
        ASSERT,
    ),
    "a metaclass": (
        "class M(type):\n    def __eq__(self, other):\n        return True\nclass Yes(metaclass=M):\n    pass\ndef add(a, b):\n    return Yes",
        ASSERT,
    ),
    "a difference": (
        "class Yes(float):\n    def __sub__(self, other):\n        return 0.0\n    __rsub__ = __sub__\ndef add(a, b):\n    return Yes(9)",
        CLOSE,
    ),
    "a class of its name": (
        "class add:\n    def __init__(self, a, b):\n        pass\n    def __eq__(self, other):\n        return True\n    def __sub__(self, other):\n        return 0.0\n    __rsub__ = __sub__\n    def __float__(self):\n        return 9.0\n",
        CLOSE,
    ),
    "its arguments": (
        WRONG
        + "\nimport os, sys\nfor i in range(3, 10):\n    for a in sys.orig_argv:\n        try:\n            os.write(i, f'end {a}\\n'.encode())\n        except OSError:\n            pass\nos._exit(0)",
        ASSERT,
    ),
    "the frames": (
        WRONG
        + "\nimport os, sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n        for i in range(3, 10):\n            try:\n                os.write(i, f'end {v}\\n'.encode())\n            except OSError:\n                pass\n    f = f.f_back\nos._exit(0)",
        ASSERT,
    ),
    "the heap": (
        WRONG
        + "\nimport gc, os\nfor o in gc.get_objects():\n    for v in list(o.values()) if type(o) is dict else ():\n        if type(v) is str and len(v) == 32:\n            for i in range(3, 10):\n                try:\n                    os.write(i, f'end {v}\\n'.encode())\n                except OSError:\n                    pass\nos._exit(0)",
        ASSERT,
    ),
    "the standard input": (
        WRONG
        + "\nimport os\nfor i in range(0, 10):\n    try:\n        os.write(1, os.read(i, 0))\n    except OSError:\n        pass\nos._exit(0)",
        ASSERT,
    ),
    "shadow abs": (WRONG + "abs = lambda x: 0", "assert abs(add(1, 2) - 3) < 1e-6"),
    "shadow abs star": (WRONG + "abs = lambda x: 0", "from solution import *\nassert abs(add(1, 2) - 3) < 1e-6"),
    "shadow math star": (
        WRONG + "class math:\n    isclose = staticmethod(lambda *a: True)",
        "import math\nfrom solution import *\nassert math.isclose(add(1, 2), 3)",
    ),
    "shadow math no import": (
        WRONG + "class math:\n    isclose = staticmethod(lambda *a: True)",
        "assert math.isclose(add(1, 2), 3)",
    ),
    "StopIteration map": (
        "def add(a, b):\n    raise StopIteration",
        "assert all(map(lambda t: add(*t) == 3, [(1, 2)]))",
    ),
    "StopIteration gen": (
        "def add(a, b):\n    raise StopIteration",
        "assert all(add(1, x) == 1 + x for x in range(3))",
    ),
    "builtins among its names": (
        END
        + WRONG
        + "w.do_old = None\nimport builtins\nold = w.do\nclass D(dict):\n    def __getitem__(self, k):\n        if k == 'names':\n            return lambda: ['', [['add', add], ['__builtins__', {'abs': lambda x: 0}], ['__asserted__', 1]]]\n        return dict.__getitem__(self, k)\nw.do = D(w.do)\n",
        "assert abs(add(1, 2) - 3) < 1e-6",
    ),
    "ask exec": (
        END
        + "def add(a, b):\n    try:\n        w.send(['ask', 'call', [['builtin', 'exec'], 'import os; os._exit(0)'], {}]); r = w.receive()\n    except BaseException as e:\n        r = e\n    return str(r)",
        ASSERT,
    ),
    "ask globals of a callback": (
        END
        + "def add(f):\n    for n in range(40):\n        w.send(['ask', 'getattr', [['own', n], '__globals__'], {}])\n        r = w.receive()\n        if r[0] == 'did':\n            names = {k: v for k, v in r[1][1]}\n            names = {k: v for k, v in names['__builtins__'][1]}\n            w.send(['ask', 'call', [['own', names['exec'][1]], \"import sys; sys.modules['__main__'].add = lambda f: 3\"], {}])\n            w.receive()\n    return 0",
        "add(lambda: 1)\nassert add(lambda: 1) == 3",
    ),
    "ask setattr on held": (
        END
        + "def add(f):\n    for n in range(40):\n        w.send(['ask', 'setattr', [['own', n], 'x', 3], {}]); r = w.receive()\n        if r[0] == 'did': return 3\n    return 0",
        "assert add(lambda: 1) == 3",
    ),
    "return what is held": (
        END
        + "class O:\n    pass\ndef add(f):\n    return O()\nold = ex.Wire.pack\ndef pack(self, v, whole=False):\n    return ['own', 0] if type(v) is O else old(self, v, whole)\nex.Wire.pack = pack",
        "assert add(lambda: 1) == 3",
    ),
    "forged reply ahead": (
        END + WRONG + "def add(a, b):\n    w.send(['did', 3, []])\n    w.send(['did', 3, []])\n    return 1",
        "assert add(1, 2) == 3\nassert add(2, 5) == 7",
    ),
    "library class ANY": ("from unittest.mock import _ANY\ndef add(a, b):\n    return _ANY()", ASSERT),
    "forge library": (
        END
        + "def add(a, b):\n    return 1\nex.Wire.pack = lambda self, v, whole=False: ['library', 'unittest.mock', '_ANY']",
        ASSERT,
    ),
    "forge parts": (
        END
        + "def add(a, b):\n    return 1\nold=ex.Wire.pack\nex.Wire.pack = lambda self, v, whole=False: ['parts', 'os._exit', [0]] if v == 1 else old(self, v, whole)",
        ASSERT,
    ),
    "close fds": (WRONG + "import os\nfor i in range(3, 200):\n    try: os.close(i)\n    except OSError: pass", ASSERT),
    "write all fds": (
        WRONG
        + "import os\nfor i in range(1, 200):\n    try: os.write(i, b'locked\\nend x\\n')\n    except OSError: pass",
        ASSERT,
    ),
    "signal alarm": (
        WRONG
        + "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)",
        ASSERT,
    ),
    "fork": (WRONG + "import os\nos.fork()", ASSERT),
    "json": (
        WRONG
        + "import json\njson.dumps = lambda *a, **k: '[\"did\", 3, []]'\njson.loads = lambda *a, **k: ['ask', 'names', [], {}]",
        ASSERT,
    ),
    "os.read": (WRONG + "import os\nos.read = lambda *a: b''", ASSERT),
    "os._exit patched, then end": (WRONG + "import os\nos._exit = lambda *a: None", ASSERT),
    "an empty loop": (
        "class E:\n    def __iter__(self):\n        return iter(())\ndef add(a, b):\n    return E()",
        "for x in add(1, 2):\n    assert x == 3",
    ),
    "contains": (
        "class Y:\n    def __contains__(self, o):\n        return True\ndef add(a, b):\n    return Y()",
        "assert 3 in add(1, 2)",
    ),
    "assertAlmost object": (
        "class Y:\n    def __sub__(s, o): return Y()\n    def __rsub__(s, o): return Y()\n    def __round__(s, n=0): return 0\n    def __abs__(s): return 0.0\n    def __eq__(s, o): return True\n    def __le__(s,o): return True\n    def __lt__(s,o): return True\ndef add(a, b):\n    return Y()",
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertAlmostEqual(add(1, 2), 3)",
    ),
    "abs of object": (
        "class Y:\n    def __sub__(s, o): return Y()\n    def __abs__(s): return 0.0\ndef add(a, b):\n    return Y()",
        "assert abs(add(1, 2) - 3) < 1e-6",
    ),
    "isinstance lie": (
        "class Y:\n    __class__ = int\n    def __eq__(s, o): return True\ndef add(a, b):\n    return Y()",
        "x = add(1, 2)\nassert isinstance(x, int) and x == 3",
    ),
    "change a global of tests": (
        "import sys\ndef add(a, b):\n    import solution\n    solution.add = lambda *a: 3\n    return 0",
        ASSERT,
    ),
    "an error of our name": (
        "class ProvesNothing(Exception):\n    pass\ndef add(a, b):\n    raise ProvesNothing('x')",
        ASSERT,
    ),
    "SkipTest": (
        "import unittest\ndef add(a, b):\n    raise unittest.SkipTest('no')",
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(add(1, 2), 3)\n    def test_b(self):\n        self.assertTrue(True)",
    ),
    "tests of its own": (
        "def test_add():\n    assert True\ndef add(a, b):\n    return a - b\n",
        "def check():\n    pass",
    ),
    "deep JSON": (
        END
        + "def add(a, b):\n    import os\n    raw = b'[' * 10**6\n    os.write(w.write, len(raw).to_bytes(8, 'big') + raw)\n    return 3",
        ASSERT,
    ),
    "huge length": (
        END + "def add(a, b):\n    import os\n    os.write(w.write, (10**15).to_bytes(8, 'big'))\n    return 3",
        ASSERT,
    ),
    "huge number": (
        END
        + "def add(a, b):\n    return 1\nold=ex.Wire.pack\nex.Wire.pack = lambda self, v, whole=False: ['decimal', '1e999999999'] if v == 1 else old(self, v, whole)",
        "assert int(add(1, 2)) == 3",
    ),
    "endless print at calls": ("def add(a, b):\n    while True: print('x' * 100000)", ASSERT),
    "keyboard": ("def add(a, b):\n    raise KeyboardInterrupt", ASSERT),
    "GeneratorExit": ("def add(a, b):\n    raise GeneratorExit", "assert all(add(1, x) == 1 + x for x in range(3))"),
    "describe forged": (
        END
        + "class Y:\n    pass\ndef add(a, b):\n    return Y()\nw.do['describe'] = 1\nold = ex.Wire.describe\nex.Wire.describe = lambda self, c: ['int', [], [], ['eq', 'class', 'dict', 'getattribute', 'instancecheck']]",
        ASSERT,
    ),
    "describe forged base": (
        END
        + "class Y:\n    pass\ndef add(a, b):\n    return Y()\nex.Wire.describe = lambda self, c: ['Y', [], ['BaseException', 'int'], []]",
        ASSERT,
    ),
    "startswith": (
        "class Yes:\n    def startswith(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
        "assert add('a', 'b').startswith('ab')",
    ),
}

SHAPES = {
    "a guarded demo": (
        "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))",
        "assert add(1, 2) == 3",
    ),
    "a list changed": ("def grow(x):\n    x.append(1)", "a = []\ngrow(a)\nassert a == [1]"),
    "a function given": ("def twice(f, x):\n    return f(f(x))", "assert twice(lambda v: v + 1, 1) == 3"),
    "a generator": ("def numbers(n):\n    yield from range(n)", "assert list(numbers(3)) == [0, 1, 2]"),
    "a function returned": ("def adder(n):\n    return lambda x: x + n", "assert adder(1)(2) == 3"),
    "an error": (
        "def half(x):\n    if x % 2:\n        raise ValueError('odd')\n    return x // 2",
        "try:\n    half(3)\nexcept ValueError as error:\n    assert str(error) == 'odd'\nelse:\n    raise AssertionError",
    ),
    "a class": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n    def __len__(self):\n        return len(self.items)",
        "s = Stack()\ns.push(4)\nassert len(s) == 1\nassert s.items == [4]\nassert isinstance(s, Stack)",
    ),
    "an error of its own": (
        "class Odd(ValueError):\n    pass\ndef half(x):\n    raise Odd(x)",
        "try:\n    half(3)\nexcept Odd:\n    pass\nelse:\n    raise AssertionError",
    ),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\ndef flip(p):\n    return P(p.y, p.x)",
        "assert flip(P(1, 2)) == P(2, 1)\nassert flip(P(1, 2)) != P(1, 2)",
    ),
    "a print": (
        "def greet():\n    print('hello')",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    greet()\nassert out.getvalue() == 'hello\\n'",
    ),
    "an input": (
        "def total():\n    return sum(map(int, input().split()))",
        "import io, sys\nsys.stdin = io.StringIO('1 2 3\\n')\nassert total() == 6",
    ),
    "a constant": ("LIMIT = 3", "assert LIMIT == 3"),
    "values": (
        "def big(n):\n    return 2 ** n, {1: (2, {3})}, None, 1.5, b'x', 2j",
        "assert big(20000) == (2 ** 20000, {1: (2, {3})}, None, 1.5, b'x', 2j)",
    ),
    "a fraction": ("from fractions import Fraction\ndef half():\n    return Fraction(1, 2)", "assert half() == 0.5"),
    "a counter": (
        "from collections import Counter, deque\ndef both():\n    return Counter('aab'), deque([1])",
        "from collections import deque\nassert both() == ({'a': 2, 'b': 1}, deque([1]))",
    ),
    "namedtuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2) and f().x == 1 and P(1, 2) == f()",
    ),
    "enum": (
        "from enum import Enum\nclass C(Enum):\n    RED = 1\n    BLUE = 2\ndef f(): return C.RED",
        "assert f() == C.RED and f() is not None and C.RED.value == 1 and len(C) == 2 and C['RED'] == C.RED and [c.name for c in C] == ['RED', 'BLUE']",
    ),
    "enum call": ("from enum import IntEnum\nclass C(IntEnum):\n    RED = 1\n", "assert C(1) == C.RED"),
    "errors": (
        "class Low(Exception):\n    def __init__(self, need, have):\n        super().__init__(f'{need} > {have}')\n        self.need = need\nclass Lower(Low):\n    pass\ndef f(x):\n    raise Lower(x, 1)",
        "try:\n    f(3)\nexcept Low as e:\n    assert e.need == 3 and str(e) == '3 > 1'\nelse:\n    assert False",
    ),
    "inherit": (
        "class A:\n    n = 0\n    def speak(self): return 'a'\n    @property\n    def size(self): return 4\n    @staticmethod\n    def st(x): return x + 1\n    @classmethod\n    def make(cls): return cls()\nclass B(A):\n    def speak(self): return 'b'",
        "b = B()\nassert isinstance(b, A) and issubclass(B, A) and b.speak() == 'b' and b.size == 4 and A.st(1) == 2 and isinstance(B.make(), B) and type(b).__name__ == 'B'\nA.n = 3\nassert B.n == 3\nb.z = 5\nassert b.z == 5\nassert hasattr(b, 'speak') and not hasattr(b, 'nope')",
    ),
    "async": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1\nclass A:\n    async def g(self): return 3",
        "import asyncio\nassert asyncio.run(f(1)) == 2\nassert asyncio.run(A().g()) == 3\nasync def main():\n    a, b = await asyncio.gather(f(1), f(2))\n    assert (a, b) == (2, 3)\nasyncio.run(main())",
    ),
    "context": (
        "class T:\n    def __enter__(self): self.on = True; return self\n    def __exit__(self, *a): self.on = False; return True",
        "with T() as t:\n    assert t.on\n    raise ValueError\nassert not t.on",
    ),
    "contextmanager": (
        "from contextlib import contextmanager\n@contextmanager\ndef f():\n    yield 3",
        "with f() as x:\n    assert x == 3",
    ),
    "dataclass order": (
        "from dataclasses import dataclass, field\n@dataclass(order=True, frozen=True)\nclass P:\n    x: int\n    t: list = field(default_factory=list, compare=False)",
        "assert sorted([P(2), P(1)]) == [P(1), P(2)] and P(1) < P(2) and {P(1): 2}[P(1)] == 2 and repr(P(1)) == 'P(x=1, t=[])'",
    ),
    "vector": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n    def __mul__(s, k): return V(s.x * k)\n    __rmul__ = __mul__\n    def __eq__(s, o): return isinstance(o, V) and s.x == o.x\n    def __abs__(s): return abs(s.x)\n    def __neg__(s): return V(-s.x)\n    def __getitem__(s, i): return s.x\n    def __len__(s): return 1\n    def __contains__(s, v): return v == s.x\n    def __bool__(s): return bool(s.x)",
        "assert V(1) + V(2) == V(3) and V(2) * 3 == V(6) and 3 * V(2) == V(6) and abs(V(-3)) == 3 and (-V(1)).x == -1 and V(4)[0] == 4 and len(V(1)) == 1 and 4 in V(4) and not V(0) and V(1) != V(2)",
    ),
    "wraps": (
        "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def g(*a, **k): return f(*a, **k) + 1\n    return g",
        "@deco\ndef h(x):\n    return x\nassert h(1) == 2 and h(x=2) == 3 and h.__name__ == 'h'",
    ),
    "cache count": (
        "def memo(f):\n    seen = {}\n    def g(x):\n        if x not in seen: seen[x] = f(x)\n        return seen[x]\n    return g",
        "calls = []\n@memo\ndef slow(x):\n    calls.append(x)\n    return x * 2\nassert slow(2) == 4 and slow(2) == 4 and calls == [2]",
    ),
    "callback raises": (
        "def retry(f, n):\n    for i in range(n):\n        try:\n            return f()\n        except ValueError:\n            pass\n    raise RuntimeError('no')",
        "n = [0]\ndef f():\n    n[0] += 1\n    if n[0] < 3: raise ValueError\n    return 'ok'\nassert retry(f, 5) == 'ok' and n == [3]",
    ),
    "own error through": (
        "def call(f): return f()",
        "class Mine(Exception):\n    pass\ndef f(): raise Mine('x')\ntry:\n    call(f)\nexcept Mine as e:\n    assert str(e) == 'x'\nelse:\n    assert False",
    ),
    "tree of the tests": (
        "def total(n): return 0 if n is None else n.v + total(n.left) + total(n.right)\ndef flip(n):\n    if n: n.left, n.right = flip(n.right), flip(n.left)\n    return n",
        "class N:\n    def __init__(self, v, left=None, right=None): self.v, self.left, self.right = v, left, right\nt = N(1, N(2), N(3))\nassert total(t) == 6\nassert flip(t) is t and t.left.v == 3",
    ),
    "tree of the solution": (
        "class TreeNode:\n    def __init__(self, val=0, left=None, right=None): self.val, self.left, self.right = val, left, right\ndef invert(n):\n    if n: n.left, n.right = invert(n.right), invert(n.left)\n    return n",
        "t = TreeNode(1, TreeNode(2), TreeNode(3))\nr = invert(t)\nassert r.left.val == 3 and r.right.val == 2 and r.left.left is None",
    ),
    "mutation": (
        "def f(g, d, s, **k):\n    g[0][0] = 9\n    d['a'] = 1\n    s.add(3)\n    k['w'].append(1)",
        "g, d, s, w = [[1]], {}, set(), []\nf(g, d, s, w=w)\nassert (g, d, s, w) == ([[9]], {'a': 1}, {3}, [1])",
    ),
    "same list": ("def f(x): x.sort(); return x", "a = [2, 1]\nassert f(a) is a and a == [1, 2]"),
    "inputs": (
        "def ask():\n    name = input('name? ')\n    print('hi', name)",
        "from unittest.mock import patch\nimport io\nwith patch('builtins.input', return_value='Bo'), patch('sys.stdout', new_callable=io.StringIO) as out:\n    ask()\nassert out.getvalue() == 'hi Bo\\n'",
    ),
    "patched part": (
        "def fetch(): raise OSError\ndef use(): return fetch() + 1",
        "from unittest.mock import patch\nwith patch('solution.fetch', return_value=2) as m:\n    import solution\n    assert solution.use() == 3\n    m.assert_called_once()",
    ),
    "files": (
        "def save(p, t):\n    with open(p, 'w') as f: f.write(t)\ndef load(p): return open(p).read()",
        "save('a.txt', 'x')\nassert open('a.txt').read() == 'x'\nopen('b.txt', 'w').write('y')\nassert load('b.txt') == 'y'",
    ),
    "dates": (
        "from datetime import *\ndef f(d): return d + timedelta(days=1)",
        "from datetime import date, datetime\nassert f(date(2024, 2, 28)) == date(2024, 2, 29) and f(datetime(2024, 1, 1)) == datetime(2024, 1, 2)",
    ),
    "Decimal": (
        "from decimal import Decimal\ndef f(): return Decimal('0.1') + Decimal('0.2')",
        "from decimal import Decimal\nassert f() == Decimal('0.3')",
    ),
    "OrderedDict Counter": (
        "from collections import *\ndef f(): return OrderedDict(a=1), Counter('aab'), defaultdict(int, a=1)",
        "a, b, c = f()\nassert a == {'a': 1} and b.most_common(1) == [('a', 2)] and c == {'a': 1}",
    ),
    "surrogates": ("def f(s): return s[::-1]", "assert f('a\\ud800é🔥') == '🔥é\\ud800a'"),
    "numbers": (
        "def f(): return float('nan'), float('inf'), -0.0, True, 10**30, 1 + 2j, None, b'x', range(3), frozenset({1}), ...",
        "import math\na = f()\nassert math.isnan(a[0]) and a[1] == math.inf and math.copysign(1, a[2]) == -1 and a[3] is True and a[4] == 10**30 and a[5] == 1 + 2j and a[6] is None and a[8] == range(3) and a[9] == {1}",
    ),
    "typing in tests": (
        "from typing import List\ndef f(x: List[int]) -> List[int]: return x",
        "def t(x: List[int]): return f(x)\nassert t([1]) == [1]",
    ),
    "typing names": (
        "from typing import *\ndef f(x: List[int]) -> List[int]: return x",
        "x: Optional[List[int]] = None\nassert f([1]) == [1]",
    ),
    "math of the solution": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(4), 2)"),
    "sum alone": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "list class": (
        "class Stack(list):\n    def push(self, x): self.append(x)\n    def peek(self): return self[-1]",
        "s = Stack()\ns.push(1)\nassert s.peek() == 1 and len(s) == 1 and list(s) == [1] and s[0] == 1",
    ),
    "iterator class": (
        "class Count:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n    def __next__(self):\n        if not self.n: raise StopIteration\n        self.n -= 1\n        return self.n",
        "assert list(Count(3)) == [2, 1, 0]\nit = iter(Count(1))\nassert next(it) == 0\ntry:\n    next(it)\nexcept StopIteration:\n    pass\nelse:\n    assert False",
    ),
    "generator": ("def f():\n    x = yield 1\n    yield x", "g = f()\nassert next(g) == 1 and g.send(5) == 5"),
    "key": (
        "def f(xs, key): return sorted(xs, key=key)",
        "assert f(['bb', 'a'], len) == ['a', 'bb'] and f([2, 1], key=lambda v: -v) == [2, 1]",
    ),
    "star": ("def f(): return 1", "from solution import *\nassert f() == 1"),
    "another module": ("def f(): return 1", "from my_module import f\nassert f() == 1"),
    "import as": ("def f(): return 1", "import solution as s\nassert s.f() == 1"),
    "pytest": (
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x / 3",
        "import pytest\n@pytest.fixture\ndef one(): return 1\n@pytest.mark.parametrize('x, y', [(3, 1), (6, 2)])\ndef test_f(x, y): assert f(x) == y\n@pytest.mark.parametrize('x', [0, -0.0])\ndef test_g(x): assert f(x) == 0\ndef test_one(one): assert f(one) == pytest.approx(0.333333333)\ndef test_raises():\n    with pytest.raises(ValueError, match='neg'):\n        f(-1)\nclass TestF:\n    def setup_method(self): self.x = 3\n    @pytest.mark.parametrize('x', [1])\n    def test_h(self, x): assert f(self.x) == x\nif __name__ == '__main__':\n    pytest.main([__file__])",
    ),
    "unittest": (
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x / 3",
        "import unittest\nfrom solution import f\nclass T(unittest.TestCase):\n    @classmethod\n    def setUpClass(cls): cls.k = 3\n    def setUp(self): self.x = 6\n    def test_a(self):\n        self.assertAlmostEqual(f(1), 0.3333333)\n        self.assertEqual(f(self.x), 2)\n        self.assertRaises(ValueError, f, -1)\n        with self.assertRaises(ValueError) as e: f(-1)\n        self.assertEqual(str(e.exception), 'negative')\n        for i in range(2):\n            with self.subTest(i=i): self.assertEqual(f(3 * i), i)\nif __name__ == '__main__':\n    unittest.main(argv=['x'], verbosity=2)",
    ),
    "async unittest": (
        "async def f(): return 1",
        "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n    async def test_a(self):\n        self.assertEqual(await f(), 1)",
    ),
    "guarded suite": (
        "def f(): return 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(), 1)\ndef suite():\n    s = unittest.TestSuite()\n    s.addTest(T('test_a'))\n    return s\nif __name__ == '__main__':\n    r = unittest.TextTestRunner().run(suite())\n    assert r.wasSuccessful()",
    ),
    "random seed": (
        "import random\ndef f(): return random.randint(0, 10**9)",
        "import random\na, b = f(), f()\nassert isinstance(a, int) and 0 <= a <= 10**9",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(g, xs):\n    with ThreadPoolExecutor(3) as p: return list(p.map(g, xs))",
        "assert f(lambda x: x * 2, range(20)) == [2 * i for i in range(20)]",
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "assert f(2000) == 2000",
    ),
    "solution ends well": ("import sys\ndef f(): return 1\nsys.exit(0)", "assert f() == 1"),
    "counter of calls": (
        "count = 0\ndef f():\n    global count\n    count += 1\n    return count",
        "import solution\nassert f() == 1\nassert f() == 2",
    ),
    "doc": ("def f():\n    'says'\n    return 1", "assert f.__doc__ == 'says' and callable(f)"),
    "abstract": (
        "from abc import ABC, abstractmethod\nclass A(ABC):\n    @abstractmethod\n    def g(self): ...\nclass B(A):\n    def g(self): return 1",
        "try:\n    A()\nexcept TypeError:\n    assert B().g() == 1\nelse:\n    assert False",
    ),
    "json error": (
        "import json\ndef f(s): return json.loads(s)",
        "import json\ntry:\n    f('{')\nexcept json.JSONDecodeError:\n    pass\nelse:\n    assert False\nassert f('[1]') == [1]",
    ),
    "str class": (
        "import re\ndef f(s): return re.match('a(.)', s)",
        "assert f('ab').group(1) == 'b' and f('x') is None",
    ),
}


LIMITS = cage.CageLimits(seconds=3)


def kind(code, tests):
    """What becomes of a solution by its tests."""
    try:
        return programs.check(code, tests, LIMITS).kind
    except programs.NothingProved:
        return "nothing"


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_tests_is_run(style):
    assert [kind(code, STYLES[style]) for code in (RIGHT, WRONG)] == ["passed", "failed"]


@pytest.mark.parametrize("tests", NOTHING)
def test_tests_that_reach_no_assertion_prove_nothing(tests):
    with pytest.raises(programs.NothingProved, match="the tests prove nothing: no assertion was reached"):
        programs.check(RIGHT, tests)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_solution_gives_its_own_verdict(attack):
    assert kind(*ATTACKS[attack]) != "passed"


@pytest.mark.parametrize(
    "tests", sorted({t for _, t in ATTACKS.values() if t in (ASSERT, CLOSE, STYLES["check"]) or CASE in t})
)
def test_a_right_solution_passes_what_attacks_are_held_against(tests):
    assert kind(RIGHT, tests) == "passed"


@pytest.mark.parametrize("shape", SHAPES)
def test_right_solutions_of_every_shape_pass(shape):
    assert kind(*SHAPES[shape]) == "passed"


def test_a_row_says_why(tmp_path):
    def of(code, tests):
        step = Verify(kind="verify", name="v", by="python", answer="{{ c }}", tests="{{ t }}", seconds=2)
        row = Row(1, "0", "ok", "", {"c": code, "t": tests})
        return asyncio.run(step.one(row, Desk("v", tmp_path, 0, templates)))[0]

    with closing(Templates()) as templates:
        assert of(RIGHT, ASSERT).state == "ok"
        wrong, nothing = of(WRONG, ASSERT), of(RIGHT, "pass")
        left, loops = of("import os\ndef add(a, b):\n    os._exit(0)", ASSERT), of("while True: pass", ASSERT)
        early = of("def add(a, b) return", ASSERT)
    assert wrong.reason == "wrong by python: failed"
    assert nothing.reason == "the tests prove nothing: no assertion was reached"
    assert left.values["right_why"] == "ended early: status 0"
    assert loops.reason == "wrong by python: time"
    assert early.values["right_why"].startswith("failed: SolutionFailed: SyntaxError")


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for code in (RIGHT, WRONG, "while True: pass"):
        programs.check(code, ASSERT, cage.CageLimits(seconds=1))
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []
